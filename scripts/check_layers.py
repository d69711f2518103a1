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

INTERNAL = {
    "errors": (),
    "model": (),
    "sharing": ("model",),
    "core": ("errors", "model", "sharing", "core"),
    "config": ("errors", "model", "core.scheduler", "config"),
    "drivers": (
        "errors",
        "model",
        "sharing",
        "core.conntrack",
        "core.memory",
        "drivers.base",
        "drivers.conntrack",
        "drivers.entries",
        "drivers.nfnetlink",
        "drivers.mmsg",
        "drivers.fragments",
        "drivers.socket_filter",
        "drivers.firewall",
    ),
    "plugins": ("errors", "core.scheduler"),
}
"""What a module or package may import of featherlb; those not named may import all but cli."""

STDLIB = {
    "errors": ("collections.abc",),
    "model": ("collections.abc", "dataclasses", "enum", "ipaddress"),
    "sharing": ("dataclasses",),
    "core": (
        "abc",
        "array",
        "bisect",
        "collections",
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
    ),
}
"""The modules of the standard library that the layers without I/O may import: nothing that
touches a file, a socket, a clock, a process or a thread (mmap is there for memory)."""

FOREIGN = {
    "netfilterqueue": ("drivers",),
    "pyroute2": ("drivers",),
    "yaml": ("config.loader", "config.writer"),
    "pydantic": ("config", "api"),
    "aiohttp": ("api", "drivers.probes"),
    "yarl": ("drivers.probes",),
    "prometheus_client": ("metrics",),
    "pydantic_core": ("config",),
    "netns": ("cli.demo",),
    "scapy": ("cli",),
    "click": ("cli",),
    "rich": ("cli",),
    "cython": ("core", "drivers", "cli"),
}
"""Where libraries, and the lab in netns/, may be imported; what isn't named, nowhere."""

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


def check_internal(edge: Import) -> str | None:
    layer = edge.module.split(".")[0]
    name = edge.name.removeprefix(PACKAGE).removeprefix(".")
    if within(name, ("cli",)) and layer not in ("cli", "__main__"):
        return "nobody imports cli"
    if layer not in INTERNAL or not name:
        return None
    allowed = INTERNAL[layer]
    if within(name, (edge.module,)) or within(name, allowed):
        return None
    return f"{layer} may import {' '.join(allowed) or 'nothing'} of featherlb, not {name}"


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
