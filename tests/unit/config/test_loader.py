"""YAML text to plain data with lines."""

from typing import Any

import pytest

from featherlb.config import loader
from featherlb.model.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: 10:30", {"a": "10:30"}),
        ("a: 80:80", {"a": "80:80"}),
        ("a: 10.0.0.1:80", {"a": "10.0.0.1:80"}),
        ("a: [on, off, yes, no, y, n]", {"a": ["on", "off", "yes", "no", "y", "n"]}),
        ("a: [true, FALSE, True]", {"a": [True, False, True]}),
        ("a: [010, 0777, 1_000, 00]", {"a": ["010", "0777", "1_000", "00"]}),
        ("a: [0, 7, -7, 0x1f, 0o17]", {"a": [0, 7, -7, 31, 15]}),
        ("a: [1.5, .5, -0.5, 1.2.3]", {"a": [1.5, 0.5, -0.5, "1.2.3"]}),
        ("a: [., .inf, .nan, +]", {"a": [".", ".inf", ".nan", "+"]}),
        ("a: [1e3, e5]", {"a": ["1e3", "e5"]}),
        ("a: 2001-12-14", {"a": "2001-12-14"}),
        ("a: " + "9" * 5000, {"a": "9" * 5000}),
        ("a: [~, null, ]", {"a": [None, None]}),
        ("a:", {"a": None}),
        ("1: x\ntrue: y\n~: z", {"1": "x", "true": "y", "~": "z"}),
        ("'a': '1'", {"a": "1"}),
        ("a: !!str 1", {"a": "1"}),
        ("a: !!int '7'", {"a": 7}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
        ("b: {<<: [{k: 1}, {k: 2, l: 2}]}", {"b": {"k": 1, "l": 2}}),
        ("", None),
        ("# nothing", None),
    ],
)
def test_reads_scalars_as_operators_mean_them(text: str, data: Any) -> None:
    assert loader.read(text, "f").data == data


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "a: 1\nb: [1, 2\nc: 3",
            "f:3: not valid YAML: while parsing a flow sequence expected ',' or ']', but got ':'",
        ),
        (
            "a: 1\n\tb: 2",
            "f:2: not valid YAML: while scanning for the next token "
            "found character '\\t' that cannot start any token",
        ),
        (
            "vips:\n- [::1]:80",
            "f:2: not valid YAML: while parsing a flow node expected the node content, "
            "but found ':' (an IPv6 address in brackets needs quotes)",
        ),
        ("a: 1\nb: \x07", "f:2: not valid YAML: the character '\\x07'"),
        ("a: *x", "f:1: not valid YAML: found undefined alias 'x'"),
        (
            "---\na: 1\n---\nb: 1",
            "f:3: not valid YAML: expected a single document in the stream "
            "but found another document",
        ),
        ("a:\n- &x [*x]", "f:2: an alias refers to a value that contains it"),
        ("a: &x {<<: *x}", "f:1: an alias refers to a value that contains it"),
        ("a: {<<: 1}", "f:1: '<<' merges only mappings"),
        ("a: 1\n? [b]\n: 2", "f:2: a key must be a plain word"),
        ("a: !!timestamp 2001-99-99", "f:1: the tag '!!timestamp' is not supported for this value"),
        ("a: !!int x", "f:1: the tag '!!int' is not supported for this value"),
        ("a: !!bool x", "f:1: the tag '!!bool' is not supported for this value"),
        ("a: !!set {x}", "f:1: the tag '!!set' is not supported"),
        ("a: !!python/name:os.system x", None),
        ('a: "\\UFFFFFFFF"', None),
        ("[" * 5000, "f:1: the document is nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_one_fault(text: str, fault: str | None) -> None:
    with pytest.raises(ConfigError) as raised:
        loader.read(text, "f")
    assert len(raised.value.faults) == 1
    assert raised.value.faults[0].startswith("f:1: " if fault is None else fault)
    assert fault is None or raised.value.faults[0] == fault


def test_each_duplicate_key_is_a_fault_and_the_first_one_counts() -> None:
    document = loader.read("a: 1\nb:\n  c: 1\n  c: 2\na: 2\na: 3", "f")
    assert document.data == {"a": 1, "b": {"c": 1}}
    assert sorted(map(str, document.faults)) == [
        "f:4: duplicate key 'c' (first on line 3)",
        "f:5: duplicate key 'a' (first on line 1)",
        "f:6: duplicate key 'a' (first on line 1)",
    ]


def test_a_merged_key_may_be_overridden() -> None:
    assert not loader.read("a: &x {k: 1}\nb:\n  <<: *x\n  k: 2", "f").faults


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ((), (1, 1)),
        (("a",), (1, 1)),
        (("a", 0), (2, 3)),
        (("a", 1), (3, 3)),
        (("a", 1, "k"), (3, 7)),
        (("a", 1, "l"), (3, 13)),
        (("a", 1, "missing", "deeper"), (3, 3)),
        (("a", 7), (1, 1)),
        (("a", "k"), (1, 1)),
        (("b", "k"), (3, 7)),
        (("missing",), (1, 1)),
    ],
)
def test_every_value_has_a_position(path: loader.Path, position: tuple[int, int]) -> None:
    document = loader.read("a:\n- 1\n- &x {k: 1, l: 2}\nb: *x", "f")
    assert document.position(path) == position


def test_aliases_of_aliases_stay_cheap() -> None:
    levels = ["a0: &a0 [x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    data = loader.read("\n".join(levels), "f").data
    assert data["a39"][0] is data["a39"][8]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("services", 0, "backends", 2, "weight"), "services[0].backends[2].weight"),
        (("a-b", "c d", "e\n"), "a-b.'c d'.'e\\n'"),
        ((), ""),
    ],
)
def test_paths_are_shown_on_one_line(path: loader.Path, text: str) -> None:
    assert loader.show_path(path) == text
