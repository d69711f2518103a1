"""Reads YAML text into plain data, with the line of each value.

Scalars follow the core schema of YAML 1.2 (section 10.3). That of YAML 1.1, PyYAML's default, has
traps for operators: `no` is a boolean, `10:30` the number 630, `010` the number 8. Here they are
text, and so is any number with leading zeros, because parsers disagree about it. Floats are
decimal fractions only: no value needs an exponent. Keys are always text. Merge keys (`<<`) and
aliases work; an alias inside its own anchor is a fault.
"""

import re
from typing import Any

import yaml

from featherlb.config.faults import Fault, Origin
from featherlb.model.errors import ConfigError

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the document to a value."""

_TAG = "tag:yaml.org,2002:"
_BOOLEANS = {"true": True, "false": False}


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the implicit types of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML fills it per class)


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same around libyaml, where PyYAML was built with it: ten times as fast."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def _resolve(kind: str, pattern: str, first: str) -> None:
    for one in list(first) or [""]:
        resolver = (_TAG + kind, re.compile(rf"(?:{pattern})\Z"))
        _Loader.yaml_implicit_resolvers.setdefault(one, []).append(resolver)


_resolve("null", "", "")
_resolve("null", "~|null|Null|NULL", "~nN")
_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
# Eighteen digits are beyond every limit here and still cheap to convert.
_resolve("int", "[-+]?(?:0|[1-9][0-9]{0,17})|0o[0-7]{1,18}|0x[0-9a-fA-F]{1,16}", "-+0123456789")
_resolve("float", r"[-+]?(?:0|[1-9][0-9]{0,17})?\.[0-9]{1,18}", "-+.0123456789")
_resolve("merge", "<<", "<")


class Document:
    """One YAML document: `data` of dicts, lists and scalars, and `faults` such as duplicate
    keys, which don't affect the rest."""

    def __init__(self, root: yaml.Node | None, source: str) -> None:
        self.source = source
        self.faults: list[Fault] = []
        self._root = root
        self._open: set[int] = set()
        self._done: dict[int, Any] = {}
        self._entries: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}
        self.data: Any = None if root is None else self._construct(root)

    def existing(self, path: Path) -> Path:
        """The part of a path that exists in the document."""
        return path[: len(self._walk(path))]

    def position(self, path: Path) -> tuple[int, int]:
        """Line and column, from 1, of a value or of the last existing part of its path."""
        return self._position_of(self._walk(path))

    def origin(self, path: Path) -> Origin:
        """The origin of a value or of the last existing part of its path."""
        nodes = self._walk(path)
        return Origin(self.source, self._position_of(nodes)[0], show_path(path[: len(nodes)]))

    def _position_of(self, nodes: list[yaml.Node]) -> tuple[int, int]:
        node = nodes[-1] if nodes else self._root
        return (1, 1) if node is None else _position(node)

    def _walk(self, path: Path) -> list[yaml.Node]:
        """The nodes of each part of the path: keys and list items."""
        found: list[yaml.Node] = []
        node = self._root
        for part in path:
            if isinstance(node, yaml.MappingNode) and part in self._entries[id(node)]:
                key, node = self._entries[id(node)][str(part)]
                found.append(key)
            elif (
                isinstance(node, yaml.SequenceNode)
                and isinstance(part, int)
                and part < len(node.value)
            ):
                node = node.value[part]
                found.append(node)
            else:
                break
        return found

    def _construct(self, node: yaml.Node) -> Any:
        # Nodes with several aliases are built once: expanding them could take forever.
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            raise _UnusableError(node, "an alias refers to a value that contains it")
        self._open.add(id(node))
        value: Any
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            entries = self._entries_of(node)
            value = {key: self._construct(item) for key, (_, item) in entries.items()}
        elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            value = [self._construct(item) for item in node.value]
        elif isinstance(node, yaml.ScalarNode):
            value = _scalar(node)
        else:
            raise _UnusableError(node, f"the tag {_short(node)} is not supported")
        self._open.discard(id(node))
        self._done[id(node)] = value
        return value

    def _entries_of(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """The pairs of a mapping by key: its own override merged ones, the first one later ones."""
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _TAG + "merge":
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif not isinstance(key, yaml.ScalarNode):
                raise _UnusableError(key, "a key must be a plain word")
            elif key.value in entries:
                first = _position(entries[key.value][0])[0]
                self._fault(key, f"duplicate key {key.value!r} (first on line {first})")
            else:
                entries[key.value] = (key, value)
        for other in merged:
            self._construct(other)
            if not isinstance(other, yaml.MappingNode):
                raise _UnusableError(other, "'<<' merges only mappings")
            for name, pair in self._entries[id(other)].items():
                entries.setdefault(name, pair)
        self._entries[id(node)] = entries
        return entries

    def _fault(self, node: yaml.Node, text: str) -> None:
        self.faults.append(Fault(Origin(self.source, _position(node)[0], ""), text))


class _UnusableError(Exception):
    """The document can't be turned into plain data because of this node."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        super().__init__(text)
        self.line = _position(node)[0]


def read(text: str, source: str) -> Document:
    """Read one YAML document; ConfigError with the line of a syntax error.

    `source` names the text in faults.
    """
    try:
        return Document(_compose(text), source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = " ".join(part for part in (error.context, error.problem) if part)
        fault = f"{source}:{line}: not valid YAML: {problem}{_hint(text, line)}"
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        fault = f"{source}:{line}: not valid YAML: the character {chr(error.character)!a}"
    except _UnusableError as error:
        fault = f"{source}:{error.line}: {error}"
    except RecursionError:
        fault = f"{source}:1: the document is nested too deeply"
    except (ValueError, OverflowError) as error:
        # PyYAML converts escapes and version numbers unchecked.
        fault = f"{source}:1: not valid YAML: {error}"
    raise ConfigError([fault])


def _compose(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_FastLoader)
    except yaml.YAMLError:
        # Its messages say less.
        return yaml.compose(text, Loader=_Loader)


def show_path(path: Path) -> str:
    """Write a path as `services[0].backends[2].weight`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            plain = part if re.fullmatch(r"[\w-]+", part, re.ASCII) else ascii(part)
            text += f".{plain}" if text else plain
    return text


def _hint(text: str, line: int) -> str:
    """A common cause of syntax errors: a bracket starts a list in YAML."""
    lines = text.splitlines()
    if line <= len(lines) and re.search(r"\[[0-9A-Fa-f:.]+\]:", lines[line - 1]):
        return " (an IPv6 address in brackets needs quotes)"
    return ""


def _position(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _short(node: yaml.Node) -> str:
    return ascii(str(node.tag).replace(_TAG, "!!"))


def _scalar(node: yaml.ScalarNode) -> Any:
    kind = node.tag.removeprefix(_TAG)
    try:
        match kind:
            case "str" | "merge":
                return node.value
            case "null":
                return None
            case "bool":
                return _BOOLEANS[node.value.lower()]
            case "int":
                return int(node.value, 0)
            case "float":
                return float(node.value)
    except (ValueError, KeyError):
        pass
    raise _UnusableError(node, f"the tag {_short(node)} is not supported for this value")
