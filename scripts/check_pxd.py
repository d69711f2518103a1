"""Checks that each `.pxd` says the same as the `.py` beside it: its C types are a mirror by hand.

- what it cimports of featherlb is a type that it uses, or the module imports it too; and what the
  module imports for the interpreter alone (`if not cython.compiled`), it cimports
- its constants, classes, functions and methods are the module's, with the same parameters in the
  same order
- its attributes are declared or assigned in the class, and its `@cython.locals` in the function

The compiler would take a constant that is never assigned for 0, and another order of parameters as
it stands. Prints `file:line: fault` for each that it finds, and exits with 1 if there was one.

    python scripts/check_pxd.py [ROOT]      ROOT holds the package `featherlb`
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from Cython.Compiler import Nodes
from Cython.Compiler.Errors import CompileError
from Cython.Compiler.TreeFragment import parse_from_strings

PACKAGE = "featherlb"

Fault = tuple[int, str]
"""A line of the .pxd, and what is wrong there."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module:
    """What a `.py` defines and imports."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.imports: set[tuple[str, str]] = set()
        """Module and name, wherever the import stands."""
        self.interpreted: dict[tuple[str, str], int] = {}
        """Those under `if not cython.compiled`, with their lines."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                self.imports |= _imported(node)
            elif isinstance(node, ast.If) and ast.unparse(node.test) == "not cython.compiled":
                for inner in node.body:
                    if isinstance(inner, ast.ImportFrom):
                        self.interpreted |= dict.fromkeys(_imported(inner), inner.lineno)
        self.names = _stored(self.tree.body) | {name for _, name in self.imports}
        self.functions = _functions(self.tree.body)
        self.classes = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)
        }


def _imported(node: ast.ImportFrom) -> set[tuple[str, str]]:
    return {(node.module or "", alias.name) for alias in node.names}


def _stored(body: list[ast.stmt]) -> set[str]:
    """The names that these statements assign, outside of functions and classes."""
    stored = set()
    for statement in body:
        if isinstance(statement, ast.If):
            stored |= _stored(statement.body) | _stored(statement.orelse)
        elif not isinstance(statement, Function | ast.ClassDef):
            stored |= _names_assigned(statement)
    return stored


def _functions(body: list[ast.stmt]) -> dict[str, Function]:
    found: dict[str, Function] = {}
    for statement in body:
        if isinstance(statement, ast.If):
            found |= _functions(statement.body) | _functions(statement.orelse)
        elif isinstance(statement, Function):
            found[statement.name] = statement
    return found


def _names_assigned(node: ast.AST) -> set[str]:
    return {
        inner.id
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)
    }


def _attributes(node: ast.ClassDef) -> set[str]:
    """The attributes that the class declares, or of which it assigns at least a part."""
    targets = (
        inner
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store)
    )
    return _stored(node.body) | {
        part.attr
        for target in targets
        for part in ast.walk(target)
        if isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self"
    }


def _statements(node: Nodes.Node | None) -> Iterator[Nodes.Node]:
    if isinstance(node, Nodes.StatListNode):
        for inner in node.stats:
            yield from _statements(inner)
    elif isinstance(node, Nodes.CompilerDirectivesNode):
        yield from _statements(node.body)
    elif node is not None:
        yield node


def _name(declarator: Nodes.Node) -> str:
    while not isinstance(declarator, Nodes.CNameDeclaratorNode):
        declarator = declarator.base
    return str(declarator.name)


def _parameters(declarator: Nodes.CFuncDeclaratorNode) -> list[str]:
    """Their names; one without a type is parsed as a type without a name."""
    return [_name(one.declarator) or str(one.base_type.name) for one in declarator.args]


def _locals(declaration: Nodes.CVarDefNode) -> list[str]:
    """The names in its `@cython.locals(…)`."""
    return [
        str(item.key.value)
        for decorator in declaration.decorators or ()
        for item in decorator.decorator.keyword_args.key_value_pairs
    ]


def check_function(
    declaration: Nodes.CVarDefNode,
    declarator: Nodes.CFuncDeclaratorNode,
    functions: dict[str, Function],
) -> Iterator[Fault]:
    line, name = declarator.pos[1], _name(declarator)
    function = functions.get(name)
    if function is None:
        yield line, f"{name}() is not defined there"
        return
    arguments = function.args
    expected = [one.arg for one in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    declared = _parameters(declarator)
    if declared != expected:
        yield line, f"{name}({', '.join(declared)}) has the parameters {', '.join(expected)} there"
    assigned = _names_assigned(function)
    for local in _locals(declaration):
        if local not in assigned:
            yield line, f"{name}() does not assign its local {local} there"


def check_class(declared: Nodes.CClassDefNode, module: Module) -> Iterator[Fault]:
    node = module.classes.get(declared.class_name)
    if node is None:
        yield declared.pos[1], f"class {declared.class_name} is not defined there"
        return
    methods, attributes = _functions(node.body), _attributes(node)
    for declaration in _statements(declared.body):
        if not isinstance(declaration, Nodes.CVarDefNode):
            continue
        for declarator in declaration.declarators:
            if isinstance(declarator, Nodes.CFuncDeclaratorNode):
                yield from check_function(declaration, declarator, methods)
            elif _name(declarator) not in attributes:
                yield (
                    declarator.pos[1],
                    f"{declared.class_name} does not assign {_name(declarator)} there",
                )


def check(pxd: Path) -> Iterator[Fault]:
    """The faults of one file."""
    source = pxd.with_suffix(".py")
    if not source.exists():
        yield 1, f"there is no {source.name}"
        return
    module = Module(source.read_text())
    text = pxd.read_text()
    words = Counter(re.findall(r"\w+", text))
    tree = parse_from_strings(pxd.stem, text, level="module_pxd")
    cimported = set()
    for statement in _statements(getattr(tree, "body", tree)):
        line = statement.pos[1]
        if isinstance(statement, Nodes.FromCImportStatNode):
            names = {(str(statement.module_name), str(one[1])) for one in statement.imported_names}
            cimported |= names
            for origin, name in sorted(names - module.imports):
                if origin.split(".")[0] == PACKAGE and words[name] == 1:
                    yield line, f"{name} of {origin} is not imported there"
        elif isinstance(statement, Nodes.CClassDefNode):
            yield from check_class(statement, module)
        elif isinstance(statement, Nodes.CVarDefNode):
            for declarator in statement.declarators:
                if isinstance(declarator, Nodes.CFuncDeclaratorNode):
                    yield from check_function(statement, declarator, module.functions)
                elif _name(declarator) not in module.names:
                    yield declarator.pos[1], f"{_name(declarator)} is not assigned there"
    for (origin, name), line in module.interpreted.items():
        if (origin, name) not in cimported:
            yield 1, f"{name} of {origin} is not cimported ({source.name}:{line} imports it)"


def main(root: Path) -> int:
    found = 0
    for pxd in sorted((root / PACKAGE).rglob("*.pxd")):
        try:
            faults = sorted(check(pxd))
        except CompileError as error:
            faults = [(error.position[1], str(error.message_only))]
        for line, fault in faults:
            found += 1
            print(f"{pxd.relative_to(root)}:{line}: {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)))
