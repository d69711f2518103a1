"""Checks that what follows from the tables of record.py is up to date, and that nothing else knows
them.

In record.pxd, the C structure of a flow's record, its names for Cython, and the bits of its flags
are generated from the tables in `featherlb/core/flows/record.py`; in record_types.py, the types
that mypy checks. Exits with 1 if one differs, or if a module or a test computes where a record or a
field of it stands.

    python scripts/check_record.py [--write]      --write puts it right
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ["FEATHERLB_PURE"] = "1"  # the tables as they are in the source
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from featherlb.core.flows.record import DIRECTION, RECORD, Field, Flag, Struct  # noqa: E402

FILES = ("featherlb/core/flows/record.pxd", "featherlb/core/flows/record_types.py")
BEGIN = "# From the tables of record.py, by `scripts/check_record.py --write`:\n"
END = "# End of what the tables of record.py say.\n"

PRODUCT = re.compile(r"\w\)? ?\* ?(16|32|64|128)\b")
"""A flow's number times the size of a record, in units of 64, 32, 16 or 8 bits."""
SEARCHED = ("featherlb/core", "tests/unit/core", "tests/world.py")


def generate_c() -> str:
    """What follows from the tables in record.pxd."""
    lines = ["cdef extern from *:", '    """']
    for struct in (DIRECTION, RECORD):
        lines += [f"    {line}" for line in write_c(struct)]
    for struct in (DIRECTION, RECORD):
        name, size = struct.name, struct.size
        lines.append(f'    _Static_assert(sizeof({name}) == {size}, "{name} has gaps");')
    lines.append('    """')
    for struct in (DIRECTION, RECORD):
        lines.append(f"    ctypedef struct {struct.name}:")
        lines += [f"        {declaration(field)}" for field in flatten(struct)]
    lines += ["", "cdef enum:"]
    lines += [f"    {name} = {flag.value}" for name, flag in Flag.__members__.items()]
    return "\n".join((*lines, ""))


def generate_types() -> str:
    """What follows from the tables in record_types.py."""
    lines = ["", ""]
    for struct in (DIRECTION, RECORD):
        lines += [f"class {struct.name}:"]
        lines += [f"    {annotation(field)}" for field in flatten(struct)]
        lines += ["", ""]
    return "\n".join((*lines, ""))


def annotation(field: Field) -> str:
    """Of an attribute."""
    kind = field.kind.name if isinstance(field.kind, Struct) else "int"
    return f"{field.name}: {kind if field.count == 1 else f'MutableSequence[{kind}]'}"


def write_c(struct: Struct, indent: str = "") -> Iterator[str]:
    """The structure as C has it."""
    keyword = "union" if struct.union else "struct"
    yield f"{indent}{'' if indent else 'typedef '}{keyword} {{"
    for field in struct.fields:
        if isinstance(field, Struct):
            yield from write_c(field, indent + "    ")
        else:
            yield f"{indent}    {declaration(field)};"
    yield f"{indent}}}{struct.name and ' '}{struct.name};"


def flatten(struct: Struct) -> Iterator[Field]:
    """The fields by the names under which code uses them."""
    for field in struct.fields:
        if isinstance(field, Struct):
            yield from flatten(field)
        else:
            yield field


def declaration(field: Field) -> str:
    kind = field.kind.name if isinstance(field.kind, Struct) else field.kind
    return f"{kind} {field.name}" + (f"[{field.count}]" if field.count > 1 else "")


def find_products() -> Iterator[str]:
    """Where the place of a record is computed, as `file:line: code`."""
    for place in SEARCHED:
        path = ROOT / place
        for file in sorted(path.rglob("*.p*")) if path.is_dir() else [path]:
            if file.suffix not in (".py", ".pxd") or file.stem == "record":
                continue
            for number, line in enumerate(file.read_text().splitlines(), start=1):
                if PRODUCT.search(line):
                    yield f"{file.relative_to(ROOT)}:{number}: {line.strip()}"


def main(arguments: list[str]) -> int:
    for name, generated in zip(FILES, (generate_c(), generate_types()), strict=True):
        file = ROOT / name
        text = file.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        wanted = before + BEGIN + generated + END + after
        if text == wanted:
            continue
        if "--write" not in arguments:
            print(f"{name} differs from record.py's tables: run scripts/check_record.py --write")
            return 1
        file.write_text(wanted)
    products = list(find_products())
    for product in products:
        print(f"{product}\n  only featherlb/core/flows/record.py knows where a record stands")
    return 1 if products else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
