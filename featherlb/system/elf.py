"""Reads what clang makes of a program for the kernel's virtual machine: an ELF relocatable file.

Only what is needed to load it: the programs (the functions of each executable section but `.text`,
which has those that they call), the maps (the objects in the section `maps`, each a `struct map`,
see `featherlb/bpf/kernel.h`), and where programs refer to maps. Formats: the System V ABI's "Object
Files", and the kernel's Documentation/bpf/llvm_reloc.rst.
"""

import struct
from dataclasses import dataclass, field

_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
"""Elf64_Ehdr."""
_SECTION = struct.Struct("=IIQQQQIIQQ")
"""Elf64_Shdr: name, type, flags, address, offset, size, link, info, alignment, entry size."""
_SYMBOL = struct.Struct("=IBBHQQ")
"""Elf64_Sym: name, info, other, section, value, size."""
_RELOCATION = struct.Struct("=QQ")
"""Elf64_Rel: offset, and symbol << 32 | type."""
_MAP = struct.Struct("=5I")
"""struct map of featherlb/bpf/kernel.h: type, key size, value size, entries, flags."""

_MAGIC = b"\x7fELF\x02"
"""64 bits; the byte order, which follows, is the machine's."""
_EM_BPF = 247
_SHT_SYMTAB, _SHT_REL = 2, 9
_STT_OBJECT, _STT_FUNC = 1, 2
_R_BPF_64_64 = 1
"""A 64-bit immediate, which is what refers to a map."""
_CALL, _PSEUDO_CALL = 0x85, 1
"""BPF_JMP | BPF_CALL, and the source register that says that it calls a function of the program."""
_TEXT = ".text"
_INSTRUCTION = 8
"""Bytes."""


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a program expects of a map: numbers of `enum bpf_map_type`, bytes, BPF_F_* flags."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int

    @property
    def stride(self) -> int:
        """Bytes from one value of an array to the next."""
        return self.value_size + 7 & ~7


@dataclass(frozen=True, slots=True)
class Code:
    """A program: the name of its section, its instructions, and the maps that those at these
    offsets (in bytes) refer to."""

    section: str
    instructions: bytes
    maps: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """Programs and maps by their names in C."""

    programs: dict[str, Code]
    maps: dict[str, MapShape]
    license: str


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    link: int
    info: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: str
    kind: int
    section: int
    value: int
    size: int


def parse(data: bytes) -> ObjectFile:
    """Read an object file. ValueError if it is none, or has what the loader doesn't support."""
    try:
        return _parse(data)
    except (struct.error, IndexError, UnicodeDecodeError):
        raise ValueError("the object file is truncated or damaged") from None


def _parse(data: bytes) -> ObjectFile:
    identity, _, machine, _, _, _, at, *_, size, count, names = _HEADER.unpack_from(data)
    if not identity.startswith(_MAGIC) or machine != _EM_BPF or size != _SECTION.size:
        raise ValueError("not an object file for BPF")
    sections = _read_sections(data, at, count, names)
    symbols = next(
        (_read_symbols(one, sections) for one in sections if one.kind == _SHT_SYMTAB), []
    )
    section_names = [one.name for one in sections]
    maps = {
        one.name: MapShape(*_MAP.unpack_from(sections[one.section].data, one.value))
        for one in symbols
        if one.kind == _STT_OBJECT and sections[one.section].name == "maps"
    }
    linker = _Linker(sections, symbols, maps)
    programs = {
        one.name: linker.link(one)
        for one in symbols
        if one.kind == _STT_FUNC and sections[one.section].name not in ("", _TEXT)
    }
    license = sections[section_names.index("license")].data if "license" in section_names else b""
    return ObjectFile(programs, maps, license.rstrip(b"\0").decode())


def _read_sections(data: bytes, at: int, count: int, names: int) -> list[_Section]:
    headers = [_SECTION.unpack_from(data, at + number * _SECTION.size) for number in range(count)]
    texts = data[headers[names][4] :]
    return [
        _Section(_text(texts, name), kind, flags, link, info, data[offset : offset + size])
        for name, kind, flags, _, offset, size, link, info, _, _ in headers
    ]


def _read_symbols(table: _Section, sections: list[_Section]) -> list[_Symbol]:
    texts = sections[table.link].data
    return [
        # Special section numbers (undefined, absolute, common) are none of a section here.
        _Symbol(_text(texts, name), info & 15, number if number < len(sections) else 0, value, size)
        for name, info, _, number, value, size in _SYMBOL.iter_unpack(table.data)
    ]


class _Linker:
    """Puts a program together: its function, those that it calls, those that they call."""

    def __init__(
        self, sections: list[_Section], symbols: list[_Symbol], maps: dict[str, MapShape]
    ) -> None:
        self._sections = sections
        self._symbols = symbols
        self._maps = maps
        # By section number, what stands at an offset: the symbol and the kind of its relocation.
        self._relocations: dict[int, dict[int, tuple[_Symbol, int]]] = {}
        for table in sections:
            if table.kind == _SHT_REL:
                found = self._relocations.setdefault(table.info, {})
                for place, info in _RELOCATION.iter_unpack(table.data):
                    found[place] = symbols[info >> 32], info & 0xFFFFFFFF
        self._functions = {
            (one.section, one.value): one for one in symbols if one.kind == _STT_FUNC
        }

    def link(self, program: _Symbol) -> Code:
        """The program's code, its calls resolved."""
        maps: dict[int, str] = {}
        calls: list[tuple[int, tuple[int, int]]] = []
        linked = bytearray()
        begins: dict[tuple[int, int], int] = {}
        waiting = [(program.section, program.value)]
        while waiting:
            at = waiting.pop()
            if at in begins:
                continue
            function = self._functions.get(at)
            if function is None:
                raise ValueError("the program calls something that is no function of its own")
            begins[at] = len(linked)
            own_maps, own_calls = self._references(function)
            maps |= {len(linked) + offset: name for offset, name in own_maps}
            calls += [(len(linked) + offset, target) for offset, target in own_calls]
            waiting += [target for _, target in own_calls]
            linked += self._code(function)
        for offset, target in calls:
            # From the next instruction on.
            distance = (begins[target] - offset) // _INSTRUCTION - 1
            struct.pack_into("=i", linked, offset + 4, distance)
        return Code(self._sections[program.section].name, bytes(linked), maps)

    def _code(self, function: _Symbol) -> bytes:
        data = self._sections[function.section].data
        return data[function.value : function.value + function.size]

    def _references(
        self, function: _Symbol
    ) -> tuple[list[tuple[int, str]], list[tuple[int, tuple[int, int]]]]:
        """The maps that a function refers to, and the functions, as places (section and offset),
        each with the offset of the instruction in the function."""
        code = self._code(function)
        relocations = self._relocations.get(function.section, {})
        maps: list[tuple[int, str]] = []
        calls: list[tuple[int, tuple[int, int]]] = []
        for offset in range(0, len(code), _INSTRUCTION):
            symbol, kind = relocations.get(function.value + offset, (None, 0))
            if symbol is not None and kind == _R_BPF_64_64 and symbol.name in self._maps:
                maps.append((offset, symbol.name))
            elif code[offset] == _CALL and code[offset + 1] >> 4 == _PSEUDO_CALL:
                (ahead,) = struct.unpack_from("=i", code, offset + 4)
                distance = (ahead + 1) * _INSTRUCTION
                if symbol is None:
                    calls.append((offset, (function.section, function.value + offset + distance)))
                else:
                    calls.append((offset, (symbol.section, symbol.value + distance)))
            elif symbol is not None:
                raise ValueError(
                    f"the program refers to {symbol.name or 'a section'}, which is neither a map"
                    " nor a function of its own"
                )
        return maps, calls


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
