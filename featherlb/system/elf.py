"""Reads what clang makes of a program for the kernel's virtual machine: an ELF relocatable file.

Only what is needed to load it: the programs (the functions of each executable section but `.text`),
the maps (the objects in the section `maps`, each a `struct map`, see `featherlb/bpf/kernel.h`), and
where programs refer to maps. Formats: the System V ABI's "Object Files", and the kernel's
Documentation/bpf/llvm_reloc.rst.
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
_SHF_EXECINSTR = 4
_STT_OBJECT, _STT_FUNC = 1, 2
_R_BPF_64_64 = 1
"""A 64-bit immediate: the only kind that refers to a map."""


@dataclass(frozen=True, slots=True)
class MapShape:
    """What a program expects of a map: numbers of `enum bpf_map_type`, bytes, BPF_F_* flags."""

    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


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
    programs = {
        one.name: Code(
            section_names[one.section],
            sections[one.section].data[one.value : one.value + one.size],
        )
        for one in symbols
        if one.kind == _STT_FUNC and sections[one.section].flags & _SHF_EXECINSTR
    }
    for section in sections:
        if section.kind == _SHT_REL and sections[section.info].flags & _SHF_EXECINSTR:
            _relocate(section, symbols, programs, maps)
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


def _relocate(
    section: _Section,
    symbols: list[_Symbol],
    programs: dict[str, Code],
    maps: dict[str, MapShape],
) -> None:
    """Note which instructions of the programs in one section refer to which map."""
    inside = [one for one in symbols if one.section == section.info and one.name in programs]
    for offset, info in _RELOCATION.iter_unpack(section.data):
        target = symbols[info >> 32]
        if info & 0xFFFFFFFF != _R_BPF_64_64 or target.name not in maps:
            raise ValueError(
                f"the program refers to {target.name or 'a section'}, which is no map:"
                " functions must be inlined, and variables on the stack"
            )
        for one in inside:
            if one.value <= offset < one.value + one.size:
                programs[one.name].maps[offset - one.value] = target.name


def _text(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()
