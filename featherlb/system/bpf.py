"""Programs in classic BPF (Documentation/networking/filter.rst, include/uapi/linux/filter.h).

The machine has an accumulator A, an index register X and 16 cells of scratch memory.
"""

import struct
from collections.abc import Sequence

MAX_INSTRUCTIONS = 4096
"""BPF_MAXINSNS."""

# Into A: from the packet at a fixed offset, from the packet at X and an offset, from a cell.
LOAD, LOAD_HALF, LOAD_BYTE = 0x20, 0x28, 0x30
LOAD_HALF_X, LOAD_BYTE_X = 0x48, 0x50
LOAD_CELL, VALUE = 0x60, 0x00
# Into X, and from A and X into a cell.
CELL_TO_X, VALUE_TO_X, A_TO_X = 0x61, 0x01, 0x07
HEADER_TO_X = 0xB1  # X = 4 * (byte & 15)
STORE, STORE_X = 0x02, 0x03
# A with a value or with X.
ADD, ADD_X, SUBTRACT_X, MULTIPLY = 0x04, 0x0C, 0x1C, 0x24
AND, OR_X, XOR_X = 0x54, 0x4C, 0xAC
SHIFT_LEFT, SHIFT_RIGHT = 0x64, 0x74
# Jumps, and the end: how many bytes of the packet are let in.
JUMP, IF_EQUAL, IF_AT_LEAST, IF_SET = 0x05, 0x15, 0x35, 0x45
RETURN = 0x06

PACKET_TYPE = 0xFFFFF000 + 4
"""The offset at which the packet's type stands (SKF_AD_OFF + SKF_AD_PKTTYPE)."""
PACKET_HOST = 0
"""The type of a packet to this host (include/uapi/linux/if_packet.h)."""


class Program:
    """Instructions with labels for the places where jumps lead to, further down."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}
        self._names = 0

    def do(self, code: int, value: int = 0) -> None:
        self._code.append((code, 0, 0, value))

    def go(self, label: str) -> None:
        self._code.append((JUMP, 0, 0, label))

    def go_if(self, test: int, value: int, label: str) -> None:
        # Conditional jumps reach 255 instructions, others all.
        self._code.append((test, 0, 1, value))
        self.go(label)

    def go_unless(self, test: int, value: int, label: str) -> None:
        self._code.append((test, 1, 0, value))
        self.go(label)

    def go_if_among(self, values: Sequence[int], label: str) -> None:
        """Go there if A is one of these few values."""
        for ahead in range(len(values), 0, -1):
            # To the last instruction here, over the last but one.
            self._code.append((IF_EQUAL, ahead, 0, values[-ahead]))
        self._code.append((JUMP, 0, 0, 1))
        self.go(label)

    def new_label(self) -> str:
        """A name that no other place has."""
        self._names += 1
        return f"label {self._names}"

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """As an array of struct sock_filter; ValueError if there are too many."""
        if len(self._code) > MAX_INSTRUCTIONS:
            raise ValueError(f"{len(self._code)} instructions")
        return b"".join(
            struct.pack(
                "=HBBI",
                code,
                true,
                false,
                self._labels[value] - at - 1 if isinstance(value, str) else value,
            )
            for at, (code, true, false, value) in enumerate(self._code)
        )
