"""The configuration file of the Go featherlb."""

from pathlib import Path

import pytest

from featherlb.config.file import load, parse
from featherlb.model import NatMode
from featherlb.model.errors import ConfigError

EXAMPLE = Path(__file__).parents[3] / "examples" / "go-routes.yaml"
ROUTE = "routes:\n- host: 0.0.0.0\n  port: 8080\n  strategy: random\n"
ENDPOINTS = f"{ROUTE}  endpoints:\n"


def test_the_example_means_what_it_meant_there() -> None:
    first, second = load(EXAMPLE).services
    assert [str(vip) for vip in first.vips] == ["0.0.0.0:8080"]
    assert (first.scheduler, first.nat) == ("round-robin", NatMode.FULL)
    assert [str(backend) for backend in first.backends] == ["backend1:8081", "backend2:8082"]
    assert [str(vip) for vip in second.vips] == ["localhost:9090"]
    assert (second.scheduler, second.nat) == ("source-hash", NatMode.FULL)


def test_keys_that_it_would_ignore_are_ignored() -> None:
    text = f"debug: true\n{ROUTE}  comment: [x]\n  endpoints:\n  - {{host: a, port: 1, zone: b}}\n"
    assert len(parse(text, "f").services) == 1


@pytest.mark.parametrize(
    ("strategy", "scheduler"),
    [
        ("roundrobin", "weighted-round-robin"),
        ("random", "random"),
        ("iphash", "source-hash"),
    ],
)
def test_an_endpoint_listed_twice_counts_twice(strategy: str, scheduler: str) -> None:
    endpoints = "  - {host: a, port: 1}\n  - {host: b, port: 1}\n  - {host: a, port: 1}\n"
    text = f"{ENDPOINTS}{endpoints}".replace("strategy: random", f"strategy: {strategy}")
    (service,) = parse(text, "f").services
    assert service.scheduler == scheduler
    assert [(str(b), b.weight) for b in service.backends] == [("a:1", 2), ("b:1", 1)]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("routes: []", ["f:1: routes: the list is empty (expected at least one entry)"]),
        ("routes:", ["f:1: routes: the value is missing (expected a list)"]),
        (
            "routes:\n- {}",
            [
                "f:2: routes[0]: 'host' is missing (expected an IP address or a host name)",
                "f:2: routes[0]: 'port' is missing (expected an integer from 1 to 65535)",
                "f:2: routes[0]: 'strategy' is missing (expected roundrobin, random or iphash)",
                "f:2: routes[0]: 'endpoints' is missing (expected a list of endpoints)",
            ],
        ),
        (
            f"{ROUTE}  endpoints: []",
            ["f:5: routes[0].endpoints: the list is empty (expected at least one entry)"],
        ),
        (
            f"{ENDPOINTS}  - {{host: '', port: 0}}\n  - {{host: a, port: '1'}}",
            [
                "f:6: routes[0].endpoints[0].host: the text is empty "
                "(expected an IP address or a host name)",
                "f:6: routes[0].endpoints[0].port: 0 is too small "
                "(expected an integer from 1 to 65535)",
                "f:7: routes[0].endpoints[1].port: '1' is text "
                "(expected an integer from 1 to 65535)",
            ],
        ),
        (
            f"{ENDPOINTS}  - {{host: a, port: 1}}".replace("random", "RoundRobin"),
            [
                "f:4: routes[0].strategy: 'RoundRobin' is unknown, did you mean 'roundrobin'? "
                "(expected roundrobin or random or iphash)"
            ],
        ),
        (
            f"{ENDPOINTS}  - {{host: 127.0.0.1, port: 8080}}",
            [
                "f:6: routes[0].endpoints[0].host: 127.0.0.1:8080 is a VIP of service "
                "'0.0.0.0:8080/tcp' (expected a server of its pool)"
            ],
        ),
    ],
)
def test_faults(text: str, faults: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(text, "f")
    assert list(raised.value.faults) == faults
