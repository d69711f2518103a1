"""host/backend_text.py: what backends have in common, by their text."""

import pytest

from featherlb.host.backend_text import Backends, common

OURS = (
    "10.0.1.2,tcp:8080",
    "10.0.1.2,tcp:10000-10009",
    "2001:db8::2,udp:53",
    "10.0.1.3,tcp:1-65535",
)


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("10.0.1.2,tcp:8080", {"10.0.1.2,tcp:8080"}),
        ("10.0.1.2,udp:8080", set()),
        ("10.0.1.2,tcp:8081", set()),
        ("10.0.1.2,tcp:10009", {"10.0.1.2,tcp:10000-10009"}),
        ("10.0.1.2,tcp:10010", set()),
        ("10.0.1.2,tcp:8000-10000", {"10.0.1.2,tcp:8080", "10.0.1.2,tcp:10000-10009"}),
        ("10.0.1.3,tcp:7", {"10.0.1.3,tcp:1-65535"}),
        ("2001:db8::2,udp:53", {"2001:db8::2,udp:53"}),
        ("2001:db8::2,udp:50-60", {"2001:db8::2,udp:53"}),
        ("10.0.1.2,tcp:8080,10.0.1.1", set()),
    ],
)
def test_ports_in_common(text: str, shared: set[str]) -> None:
    assert common(OURS, [text]) == shared
    assert (text in Backends(OURS)) is bool(shared)


def test_a_source_address_is_part_of_it() -> None:
    one = ["10.0.1.2,tcp:10000-10009,10.0.1.1"]
    assert common(one, ["10.0.1.2,tcp:10005,10.0.1.1"])
    assert not common(one, ["10.0.1.2,tcp:10005,10.0.1.9"])
