"""Single values that are right; those that are wrong stand in test_schema."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from featherlb.config import values
from featherlb.core.pools.schedulers import names
from featherlb.model import NatMode, Protocol, Vip, ranges_of


@pytest.mark.parametrize(
    ("reader", "word", "value"),
    [
        (values.duration, "500ms", 0.5),
        (values.duration, "30s", 30.0),
        (values.duration, "1.5m", 90.0),
        (values.duration, "1h", 3600.0),
        (values.duration, "720h", 2592000.0),
        (values.duration, 30, 30.0),
        (values.duration, 0.25, 0.25),
        (values.host, "10.0.0.1", ip_address("10.0.0.1")),
        (values.host, "2001:db8::1", ip_address("2001:db8::1")),
        (values.host, "backend2", "backend2"),
        (values.host, "my_app.example.com.", "my_app.example.com."),
        (values.host, "3com.example", "3com.example"),
        (values.backend, "backend-1:80", ("backend-1", 80, 0)),
        (values.backend, "[2001:db8::1]:80", (ip_address("2001:db8::1"), 80, 0)),
        (values.backend, "[2001:db8::1]:80-89", (ip_address("2001:db8::1"), 80, 89)),
        (values.backend, "10.0.0.1:80-80", (ip_address("10.0.0.1"), 80, 0)),
        (values.backend, "backend-1", ("backend-1", 0, 65535)),
        (values.backend, "[2001:db8::1]", (ip_address("2001:db8::1"), 0, 65535)),
        (values.vip, "10.0.0.1:*", Vip(ip_address("10.0.0.1"), 1, 65535)),
        (values.vip, "[2001:db8::1]:*", Vip(ip_address("2001:db8::1"), 1, 65535)),
        (values.vip, "10.0.0.1:80", Vip(ip_address("10.0.0.1"), 80, 80)),
        (values.vip, "10.0.0.1:80-80", Vip(ip_address("10.0.0.1"), 80, 80)),
        (values.vip, "[2001:db8::1]:80-90", Vip(ip_address("2001:db8::1"), 80, 90)),
        (values.protocol, "tcp", Protocol.TCP),
        (values.nat, "full", NatMode.FULL),
        (values.scheduler, "wlc", "weighted-least-connections"),
        (values.strategy, "roundrobin", "round-robin"),
        (values.strategy, "random", "random"),
        (values.strategy, "iphash", "source-hash"),
        (values.integer(-1, 1), -1, -1),
        (values.integer(-1, 1), 1, 1),
        (values.boolean, False, False),
        (values.name, "web-1.example_x", "web-1.example_x"),
    ],
)
def test_reads_what_is_right(reader: Callable[[object], Any], word: object, value: Any) -> None:
    assert reader(word) == value


@pytest.mark.parametrize("name", names())
def test_every_scheduler_can_be_configured(name: str) -> None:
    assert values.scheduler(name) == name


@pytest.mark.parametrize(
    "word",
    [
        "-a:80",
        "a-:80",
        "a..b:80",
        ".:80",
        f"{'a' * 64}:80",
        f"{'a.' * 127}a:80",
        "1.2.3:80",
        "a.1:80",
    ],
)
def test_what_is_no_host_name_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"is neither an IP address nor a host name|is not an IP"):
        values.backend(word)


def test_long_words_are_shortened_in_messages() -> None:
    with pytest.raises(ValueError, match=r"^'x{60}'… is not a valid name") as raised:
        values.name("x" * 10_000)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("text", ["www.example.org", "a:8080", "10.0.0.1", "[2001:db8::1]:80"])
def test_http_hosts(text: str) -> None:
    assert values.http_host(text) == text


@pytest.mark.parametrize(
    "text", ["a..b", "a/b", "a b", "u@a", "a:0", "a:x", "::1", "x" * 64, "a?b"]
)
def test_what_is_no_http_host(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"is not a host \(expected a name such as www.example.org\)"
    ):
        values.http_host(text)


WELL_WRITTEN = ("1.2.3.4", "1.2.3.0/24", "0.0.0.0/0", "::1", "2001:db8::/32", "::/0")
BADLY_WRITTEN = ("1.2.3.4/24", "01.2.3.4", "1.2.3", "1.2.3.4/", "1.2.3.4/33", "1.2.3.4/+3", "x", "")


@pytest.mark.parametrize("word", WELL_WRITTEN)
def test_the_networks_of_a_list_are_read_as_others(word: str) -> None:
    assert values.network_ranges(word) == list(ranges_of(values.network(word)))


@pytest.mark.parametrize("word", [*BADLY_WRITTEN, "1.2.3.4\0"])
def test_a_network_of_a_list_is_refused_as_others_are(word: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        values.network(word)
    with pytest.raises(ValueError, match=re.escape(str(refused.value))):
        values.network_ranges(word)
