"""Maps and programs of the kernel's virtual machine, by bpf(2) (include/uapi/linux/bpf.h).

A loader of our own: no library, no compiler and no type information (BTF) is needed where featherlb
runs. Keys and values are bytes, in the layout that the program has for them. Creating and loading
need CAP_BPF and CAP_NET_ADMIN; whoever has a map's descriptor may use it (before Linux 5.19 with
CAP_BPF only, unless kernel.unprivileged_bpf_disabled is 0).
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Self

from featherlb.model.errors import HostError
from featherlb.system.elf import MapShape, ObjectFile, parse

OBJECTS = Path(__file__).parents[1] / "bpf"
"""Where the compiled programs are, beside their sources."""

NUMBERS = {"x86_64": 321, "aarch64": 280}
"""The number of bpf(2) on each architecture."""
NUMBER = NUMBERS.get(platform.machine())
"""That on this one; None if it isn't known."""
NAME_LENGTH = 15
"""Characters of a name in the kernel (BPF_OBJ_NAME_LEN)."""
LOG_SIZE = 1 << 20
"""Bytes of the verifier's log that are kept."""
LOG_LINES = 12
"""Lines from the end of the log that an error quotes: the instruction, and what is wrong."""
POSSIBLE_CPUS = Path("/sys/devices/system/cpu/possible")
_PAGE = mmap.PAGESIZE
_LOAD_MAP = 0x18
"""BPF_LD | BPF_DW | BPF_IMM: an instruction of 16 bytes with a 64-bit immediate."""
_PSEUDO_MAP_FD = 1
"""The source register that says that the immediate is a map's descriptor."""

_libc = ctypes.CDLL(None, use_errno=True)

Buffer = bytes | bytearray | memoryview


class Command(IntEnum):
    """enum bpf_cmd, as far as used."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29


MAP_COMMANDS = frozenset(
    {
        Command.OBJ_GET,
        Command.OBJ_GET_INFO_BY_FD,
        Command.MAP_LOOKUP_ELEM,
        Command.MAP_UPDATE_ELEM,
        Command.MAP_DELETE_ELEM,
        Command.MAP_GET_NEXT_KEY,
        Command.MAP_LOOKUP_BATCH,
        Command.MAP_UPDATE_BATCH,
        Command.MAP_DELETE_BATCH,
    }
)
"""What a process does with maps that others have made and pinned."""


class MapKind(IntEnum):
    """enum bpf_map_type, as far as used."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    QUEUE = 22
    STACK = 23
    RINGBUF = 27


class MapFlag(IntFlag):
    """Flags of a map."""

    NO_PREALLOC = 1 << 0
    """Elements are allocated when they are inserted."""
    MMAPABLE = 1 << 10


class Update(IntEnum):
    """What `Map.update` does with a key."""

    ANY = 0
    NEW = 1
    """FileExistsError if it is there."""
    EXISTING = 2
    """KeyError if it isn't."""


class ProgramKind(IntEnum):
    """enum bpf_prog_type, as far as used."""

    SCHED_CLS = 3
    XDP = 6


_KINDS = {"tc": ProgramKind.SCHED_CLS, "xdp": ProgramKind.XDP}
"""By the name of the section up to its first slash."""


class _Batch(ctypes.Structure):
    """The part of `union bpf_attr` for batches. `count` comes back as how many were done."""

    _fields_ = (
        ("before", ctypes.c_uint64),
        ("after", ctypes.c_uint64),
        ("keys", ctypes.c_uint64),
        ("values", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("fd", ctypes.c_uint32),
        ("element_flags", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class Descriptor:
    """An object of the kernel, held by a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def pin(self, path: Path) -> None:
        """Give it a name on a mounted BPF file system: it outlives this process. FileExistsError if
        there is such a name already."""
        text = ctypes.create_string_buffer(os.fsencode(path))
        call(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(text), self.fd, 0))

    def close(self) -> None:
        """Let go of it; the kernel keeps it while somebody else holds it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Map(Descriptor):
    """A map. Keys and values have `shape`'s sizes; a value of a kind with PERCPU in its name is one
    for each possible CPU, each padded to 8 bytes."""

    def __init__(self, fd: int, shape: MapShape, name: str) -> None:
        super().__init__(fd)
        self.shape = shape
        self.name = name
        self.value_bytes = shape.value_size
        if shape.kind in (MapKind.PERCPU_HASH, MapKind.PERCPU_ARRAY):
            self.value_bytes = (shape.value_size + 7 & ~7) * possible_cpus()
        self._key = ctypes.create_string_buffer(max(shape.key_size, 1))
        self._value = ctypes.create_string_buffer(max(self.value_bytes, 1))
        self._element = struct.pack(
            "=IxxxxQQ", fd, ctypes.addressof(self._key), ctypes.addressof(self._value)
        )

    def look_up(self, key: bytes) -> bytes | None:
        """The value of a key; None if it has none. Of an array of maps, the inner map's id."""
        self._set_key(key)
        try:
            call(Command.MAP_LOOKUP_ELEM, self._element + bytes(8))
        except FileNotFoundError:
            return None
        return self._value.raw[: self.value_bytes]

    def update(self, key: bytes, value: bytes, how: Update = Update.ANY) -> None:
        """Set the value of a key. OSError with E2BIG if the map is full."""
        self._set_key(key)
        if len(value) != self.value_bytes:
            raise ValueError(f"{self.name}: a value of {len(value)} bytes, not {self.value_bytes}")
        ctypes.memmove(self._value, value, len(value))
        try:
            call(Command.MAP_UPDATE_ELEM, self._element + struct.pack("=Q", how))
        except FileNotFoundError:
            raise KeyError(key) from None

    def delete(self, key: bytes) -> bool:
        """Remove a key; whether it was there."""
        self._set_key(key)
        try:
            call(Command.MAP_DELETE_ELEM, self._element[:16])
        except FileNotFoundError:
            return False
        return True

    def update_batch(self, keys: Buffer, values: Buffer, count: int) -> int:
        """Set the values of `count` keys, which follow one another, in one system call. Returns how
        many were set before one was refused: all, unless the map is full. Writable buffers are not
        copied."""
        return self._batch(Command.MAP_UPDATE_BATCH, _held(keys), 0, _held(values), count)

    def delete_batch(self, keys: Buffer, count: int) -> int:
        """Remove `count` keys, which follow one another, in one system call and one more for each
        that is missing. Returns how many were there. A writable buffer is not copied."""
        held = _held(keys)
        at = found = 0
        while at < count:
            done = self._batch(Command.MAP_DELETE_BATCH, held, at, None, count - at)
            found += done
            # It stops at a key that is missing.
            at += done + 1
        return found

    def _batch(self, command: Command, keys: Any, first: int, values: Any, count: int) -> int:
        """How many of the elements, from key number `first` on, the kernel has dealt with before
        one was missing, or had no room. OSError for what is no matter of an element."""
        batch = _Batch(
            keys=ctypes.addressof(keys) + first * self.shape.key_size,
            values=ctypes.addressof(values) if values is not None else 0,
            count=count,
            fd=self.fd,
        )
        try:
            invoke(command, batch)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.E2BIG, errno.ENOMEM, errno.EBUSY):
                raise
        done: int = batch.count
        return done

    def keys(self) -> Iterator[bytes]:
        """All keys; those that come and go meanwhile may be missing, and if the key that was last
        read is removed, the kernel starts again."""
        following = ctypes.create_string_buffer(self.shape.key_size)
        key = 0
        while True:
            attribute = struct.pack("=IxxxxQQQ", self.fd, key, ctypes.addressof(following), 0)
            try:
                call(Command.MAP_GET_NEXT_KEY, attribute)
            except FileNotFoundError:
                return
            yield following.raw
            self._set_key(following.raw)
            key = ctypes.addressof(self._key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys with their values, as `keys`."""
        for key in self.keys():
            value = self.look_up(key)
            if value is not None:
                yield key, value

    def memory(self) -> mmap.mmap:
        """The values of an array with MMAPABLE as memory that the program shares, each padded to 8
        bytes."""
        size = self.shape.stride * self.shape.max_entries
        return mmap.mmap(self.fd, (size + _PAGE - 1) // _PAGE * _PAGE)

    def _set_key(self, key: bytes) -> None:
        if len(key) != self.shape.key_size:
            raise ValueError(f"{self.name}: a key of {len(key)} bytes, not {self.shape.key_size}")
        ctypes.memmove(self._key, key, len(key))


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program did with a packet: its return value, the packet afterwards, and the
    nanoseconds that a run took on average."""

    __test__ = False  # no test class of pytest's

    result: int
    packet: bytes
    duration: int


class Program(Descriptor):
    """A loaded program."""

    def __init__(self, fd: int, kind: ProgramKind, name: str) -> None:
        super().__init__(fd)
        self.kind = kind
        self.name = name

    def run(self, packet: bytes, context: bytes = b"", repeat: int = 1) -> TestRun:
        """Run it on a packet that begins with an Ethernet header (BPF_PROG_TEST_RUN). `context` is
        the `struct __sk_buff` that it sees, as far as the kernel lets it be set."""
        source = ctypes.create_string_buffer(packet, len(packet))
        output = ctypes.create_string_buffer(len(packet) + 256)
        seen = ctypes.create_string_buffer(context, max(len(context), 1))
        attribute = ctypes.create_string_buffer(
            struct.pack(
                "=IIIIQQIIIIQQIIII",
                self.fd,
                0,
                len(packet),
                len(output),
                ctypes.addressof(source),
                ctypes.addressof(output),
                repeat,
                0,
                len(context),
                0,
                ctypes.addressof(seen) if context else 0,
                0,
                0,
                0,
                0,
                0,
            )
        )
        invoke(Command.PROG_TEST_RUN, attribute)
        _, result, _, size, _, _, _, duration = struct.unpack_from("=IIIIQQII", attribute)
        return TestRun(result, output.raw[:size], duration)


def create_map(shape: MapShape, name: str, inner: Map | None = None) -> Map:
    """Create a map, of maps like `inner` if it is of such a kind. OSError if the kernel refuses."""
    attribute = struct.pack(
        "=7I16s",
        shape.kind,
        shape.key_size,
        shape.value_size,
        shape.max_entries,
        shape.flags,
        inner.fd if inner is not None else 0,
        0,
        name[:NAME_LENGTH].encode(),
    )
    return Map(call(Command.MAP_CREATE, attribute), shape, name)


def open_pin(path: Path) -> int:
    """The descriptor of a pinned object. FileNotFoundError if there is none of that name."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    return call(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(text), 0, 0))


def open_map(path: Path) -> Map:
    """A pinned map. FileNotFoundError if there is none of that name."""
    return adopt_map(open_pin(path))


def adopt_map(fd: int) -> Map:
    """The map behind a descriptor, which it owns from now on."""
    info = ctypes.create_string_buffer(40)
    attribute = struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))
    call(Command.OBJ_GET_INFO_BY_FD, attribute)
    kind, _, key_size, value_size, max_entries, flags, name = struct.unpack("=6I16s", info.raw)
    shape = MapShape(kind, key_size, value_size, max_entries, flags)
    return Map(fd, shape, name.rstrip(b"\0").decode())


def read_object(name: str) -> ObjectFile:
    """A program of featherlb's by its name; HostError if it was not compiled."""
    path = OBJECTS / f"{name}.o"
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        raise HostError(
            f"the eBPF program {name} is not compiled: clang was missing when featherlb was built;"
            " install clang and build it again"
        ) from None
    except ValueError as error:
        raise HostError(f"{path}: {error}") from None


def load(file: ObjectFile, maps: Mapping[str, Map]) -> dict[str, Program]:
    """Load all programs of an object file, with these maps in the places of its own. HostError with
    the verifier's reason if the kernel refuses one."""
    loaded: dict[str, Program] = {}
    try:
        for name in file.programs:
            loaded[name] = load_program(file, name, maps)
    except BaseException:
        for program in loaded.values():
            program.close()
        raise
    return loaded


def load_program(file: ObjectFile, name: str, maps: Mapping[str, Map]) -> Program:
    """Load one program of an object file; as `load`."""
    code = file.programs[name]
    kind = _KINDS[code.section.partition("/")[0]]
    instructions = bytearray(code.instructions)
    for offset, wanted in code.maps.items():
        if instructions[offset] != _LOAD_MAP:
            raise ValueError(f"the instruction at {offset} of {name} loads no map")
        # The source register is the upper half of the second byte; the immediate follows the
        # offset (Documentation/bpf/standardization/instruction-set.rst).
        instructions[offset + 1] = instructions[offset + 1] & 0x0F | _PSEUDO_MAP_FD << 4
        struct.pack_into("=I", instructions, offset + 4, maps[wanted].fd)
    try:
        return Program(_load(kind, bytes(instructions), file.license, name, None), kind, name)
    except OSError:
        pass
    # Once more, for the verifier's reason: a log makes loading slower.
    log = ctypes.create_string_buffer(LOG_SIZE)
    try:
        return Program(_load(kind, bytes(instructions), file.license, name, log), kind, name)
    except OSError as error:
        text = log.value.decode(errors="replace").rstrip().splitlines()
        raise HostError(_refusal(name, error, text)) from None


def _load(
    kind: int,
    instructions: bytes,
    license: str,
    name: str,
    log: "ctypes.Array[ctypes.c_char] | None",
) -> int:
    code = ctypes.create_string_buffer(instructions, len(instructions))
    text = ctypes.create_string_buffer(license.encode())
    attribute = struct.pack(
        "=IIQQIIQII16s",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(text),
        1 if log is not None else 0,
        len(log) if log is not None else 0,
        ctypes.addressof(log) if log is not None else 0,
        0,
        0,
        name[:NAME_LENGTH].encode(),
    )
    return call(Command.PROG_LOAD, attribute)


def _refusal(name: str, error: OSError, log: list[str]) -> str:
    if error.errno == errno.EPERM and not log:
        return "the kernel refuses to load eBPF programs: CAP_BPF and CAP_NET_ADMIN are needed"
    # The last lines say what the verifier has processed; the ones before, what is wrong.
    log = [line for line in log if not line.startswith(("processed ", "verification time"))]
    quoted = "".join(f"\n  {line}" for line in log[-LOG_LINES:])
    return f"the kernel's verifier refuses the eBPF program {name} ({error.strerror}):{quoted}"


def maps_need_capability() -> bool:
    """Whether map commands need CAP_BPF even with a descriptor: before Linux 5.19."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor.partition("-")[0])) < (5, 19)


def possible_cpus() -> int:
    """How many CPUs this machine could have: so many values has a key of a PERCPU map."""
    last = POSSIBLE_CPUS.read_text().strip().rpartition(",")[2]
    return int(last.rpartition("-")[2]) + 1


def _held(buffer: Buffer) -> Any:
    """The memory of a buffer, as ctypes has it; a copy if it can't be written to."""
    view = memoryview(buffer)
    if view.readonly:
        return ctypes.create_string_buffer(bytes(view), max(view.nbytes, 1))
    return ctypes.c_char.from_buffer(view)


def call(command: Command, attribute: bytes) -> int:
    """bpf(2); OSError with the kernel's reason."""
    return invoke(command, ctypes.create_string_buffer(attribute, len(attribute)))


def invoke(command: Command, attribute: Any) -> int:
    """bpf(2) with a `union bpf_attr`, a ctypes object, that the kernel may write to."""
    if NUMBER is None:
        raise OSError(errno.ENOSYS, f"bpf(2) has no known number on {platform.machine()}")
    size = ctypes.c_long(ctypes.sizeof(attribute))
    result: int = _libc.syscall(
        ctypes.c_long(NUMBER), ctypes.c_long(command), ctypes.byref(attribute), size
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
