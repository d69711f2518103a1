"""Checks which module imports which: the layers of docs/architecture.md, as a program.

Reads the sources with `ast` and imports nothing of them. Prints `file:line: rule` for each
import that breaks a rule, and exits with 1 if there was one.

    python scripts/check_layers.py [ROOT]      ROOT holds the package `featherlb`
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "featherlb"

LAYERS = (
    ("model",),
    ("net",),
    ("core.pools",),
    ("core.flows",),
    ("core.path",),
    ("system", "config"),
    ("datapaths", "cluster"),
    ("host", "worker"),
    ("control",),
    ("insight",),
    ("api",),
    ("doctor", "daemon"),
    ("cli",),
)
"""The rooms of the house, from the ground up. A module imports its own room and those below it;
rooms on one floor do not import each other."""

BESIDE = {"": (), "compiled": (), "core": (), "lab": (), "__main__": ("cli",)}
"""What stands beside the floors, and what it may import: nothing of featherlb but what is listed.
`featherlb` itself (the empty name) and `compiled` say which form of the packet path runs."""

OPEN_TO = {"compiled": ("", "cli", "doctor"), "lab": ("cli",), "core": ()}
"""Who may import what stands beside the floors. `featherlb` itself is open to all."""

WITHOUT_IO = (
    "abc",
    "array",
    "bisect",
    "collections",
    "contextlib",
    "ctypes",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "ipaddress",
    "itertools",
    "math",
    "mmap",
    "operator",
    "random",
    "struct",
    "typing",
)
STDLIB = {"model": WITHOUT_IO, "net": WITHOUT_IO, "core": WITHOUT_IO}
"""The modules of the standard library that the layers without I/O may import: nothing that
touches a file, a socket, a clock, a process or a thread (mmap is there for memory)."""

FOREIGN = {
    "netfilterqueue": ("datapaths.nfqueue",),
    "pyroute2": ("system.nftables", "lab"),
    "yaml": ("config.loader", "config.writer"),
    "pydantic": ("config", "api"),
    "aiohttp": ("api", "control.http_probe"),
    "yarl": ("control.http_probe",),
    "prometheus_client": ("api.metrics",),
    "pydantic_core": ("config", "api"),
    "matplotlib": ("insight.plot",),
    "scapy": (),
    "click": ("cli",),
    "cryptography": ("cluster.keys",),
    "rich": ("cli",),
    "cython": ("net", "core", "system", "datapaths", "cli"),
}
"""Where libraries may be imported; what isn't named, nowhere."""

ONE_IMPORTER = ("netfilterqueue",)
"""Libraries that one module keeps to itself."""


@dataclass(frozen=True)
class Import:
    """`module` (dotted, of featherlb without the package's name) imports `name` in `line`."""

    path: Path
    line: int
    module: str
    name: str


def within(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether `name` is one of the modules, or inside one of the packages."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def read_imports(root: Path) -> Iterator[Import]:
    """Every import of every module, those inside functions included."""
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        dotted = parts[:-1] if is_package else parts
        module = ".".join(dotted[1:])
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = imported_from(node, dotted if is_package else dotted[:-1], root)
            else:
                continue
            for name in names:
                yield Import(path, node.lineno, module, name)


def imported_from(node: ast.ImportFrom, package: tuple[str, ...], root: Path) -> list[str]:
    """The modules that a `from … import …` in `package` names. `from featherlb import model` and
    `from featherlb.model import Backend` both name featherlb.model."""
    base = node.module or ""
    if node.level:
        above = package[: len(package) - node.level + 1]
        base = ".".join((*above, base) if base else above)
    if not within(base, (PACKAGE,)):
        return [base]
    names: dict[str, None] = {}
    for alias in node.names:
        inner = root.joinpath(*base.split("."), alias.name)
        is_module = inner.with_suffix(".py").is_file() or inner.is_dir()
        names[f"{base}.{alias.name}" if is_module else base] = None
    return list(names)


def room_of(module: str) -> str:
    """The room, or what stands beside the floors, that a module of featherlb is in."""
    rooms = [room for floor in LAYERS for room in floor] + list(BESIDE)
    found = [room for room in rooms if room and within(module, (room,))]
    return max(found, key=len, default="")


def check_internal(edge: Import) -> str | None:
    name = edge.name.removeprefix(PACKAGE).removeprefix(".")
    here, there = room_of(edge.module), room_of(name)
    if here == there or not there:
        return None
    if there in OPEN_TO:
        allowed = OPEN_TO[there]
        return None if here in allowed else f"{here} may not import {name}"
    floors = {room: floor for floor, rooms in enumerate(LAYERS) for room in rooms}
    if here in BESIDE:
        return None if there in BESIDE[here] else f"{here or PACKAGE} may not import {name}"
    if there in BESIDE or floors[there] >= floors[here]:
        return f"{here} may not import {name}: imports point down the floors"
    return None


def check_foreign(edge: Import) -> str | None:
    layer = edge.module.split(".")[0]
    top = edge.name.split(".")[0]
    if top in sys.stdlib_module_names:
        if layer in STDLIB and not within(edge.name, STDLIB[layer]):
            return f"{layer} does no I/O: of the standard library it may not import {edge.name}"
        return None
    allowed = FOREIGN.get(top, ())
    if within(edge.module, allowed):
        return None
    return f"{top} may be imported in {' '.join(allowed) or 'no module'} only"


def find_violations(root: Path) -> Iterator[tuple[Import, str]]:
    importers: dict[str, str] = {}
    for edge in read_imports(root):
        top = edge.name.split(".")[0]
        check = check_internal if top == PACKAGE else check_foreign
        if rule := check(edge):
            yield edge, rule
        elif top in ONE_IMPORTER and importers.setdefault(top, edge.module) != edge.module:
            yield edge, f"{top} is imported in {importers[top]} already, and may be in one module"


def main(root: Path) -> int:
    found = 0
    for edge, rule in find_violations(root):
        found += 1
        print(f"{edge.path.relative_to(root)}:{edge.line}: {rule}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
