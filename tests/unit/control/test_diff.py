"""The differences between two configurations, line by line."""

import pytest

from featherlb.config.file import parse
from featherlb.control.diff import describe

FILE = """
services:
- name: web
  vip: 10.0.0.10:80
  nat: full
  backends: ['10.0.1.2:80', {address: 'b:80', weight: 4}]
"""


def changed(*pairs: tuple[str, str]) -> list[str]:
    text = FILE
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return describe(parse(FILE, "f"), parse(text, "f"))


def test_nothing_differs() -> None:
    assert changed() == []
    assert changed(("vip: 10.0.0.10:80", "vip: ['10.0.0.10:80']")) == []


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("'10.0.1.2:80', ", "", ["web: backend 10.0.1.2:80 removed"]),
        ("['10", "[c:1, '10", ["web: backend c:1 added with weight 1"]),
        ("weight: 4", "weight: 0", ["web: backend b:80 weight 4 -> 0"]),
        ("weight: 4", "weight: 4, role: backup", ["web: backend b:80 role primary -> backup"]),
        (
            "weight: 4",
            "weight: 4, max_connections: 9",
            ["web: backend b:80 max connections none -> 9"],
        ),
        ("vip: 10.0.0.10:80", "vip: 10.0.0.11:80", ["web: vips 10.0.0.10:80 -> 10.0.0.11:80"]),
        ("nat: full", "nat: dnat", ["web: nat full -> dnat"]),
        ("nat: full", "nat: full\n  slow_start: 30s", ["web: slow start none -> 30 s"]),
        (
            "nat: full",
            "nat: full\n  source_addresses: [10.0.0.2]",
            ["web: source addresses none -> 10.0.0.2"],
        ),
        ("nat: full", "nat: full\n  health: {type: tcp}", ["web: health check changed"]),
        ("nat: full", "nat: full\n  passive_health: {}", ["web: passive health check changed"]),
        ("nat: full", "nat: full\n  persistence: {}", ["web: persistence changed"]),
        ("nat: full", "nat: full\n  mss: 1400", ["web: mss none -> 1400"]),
        ("name: web", "name: site", ["service web removed", "service site added"]),
        (
            "services:",
            "workers: 2\napi: {listen: '127.0.0.1:1', token: a-secret-of-the-test}\nservices:",
            [
                "workers takes effect at the next start only",
                "api takes effect at the next start only",
            ],
        ),
        ("services:", "resolve_interval: 5s\nservices:", ["resolve interval 30 s -> 5 s"]),
    ],
)
def test_each_difference_is_a_line(old: str, new: str, lines: list[str]) -> None:
    assert changed((old, new)) == lines


def test_several_come_in_the_order_of_the_file() -> None:
    assert changed(("'10.0.1.2:80'", "c:1, d:1"), ("nat: full", "scheduler: maglev")) == [
        "web: scheduler round-robin -> maglev",
        "web: nat full -> dnat",
        "web: backend 10.0.1.2:80 removed",
        "web: backend c:1 added with weight 1",
        "web: backend d:1 added with weight 1",
    ]
