"""insight/explain.py: which service is meant, and the way of its packets through the host."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from featherlb.insight.explain import Route, find_vip
from featherlb.model import Datapath, Endpoint, Protocol, Service
from featherlb.model.errors import ConfigError
from tests.world import CLIENT, ONE, service, vip

WEB = service(ONE, name="web")
SERVICES = (
    WEB,
    service(ONE, name="dns", vips="192.0.2.20:53", protocol=Protocol.UDP),
    service(ONE, name="dns-tcp", vips="192.0.2.20:53"),
    replace(service(ONE, name="ports"), vips=(replace(vip("192.0.2.30:8000"), last_port=8010),)),
    service(ONE, name="any", vips="0.0.0.0:80"),
    service("[fd00::1]:80", name="six", vips="[2001:db8::10]:80"),
    service("10.1.0.1", name="all", vips="192.0.2.40:*"),
    service(ONE, name="one", vips="192.0.2.40:80"),
)


@pytest.mark.parametrize(
    ("text", "name", "endpoint"),
    [
        ("web", "web", "192.0.2.10:80"),
        ("192.0.2.10:80", "web", "192.0.2.10:80"),
        ("192.0.2.10:80/tcp", "web", "192.0.2.10:80"),
        ("192.0.2.10", "web", "192.0.2.10:80"),
        ("192.0.2.20:53/udp", "dns", "192.0.2.20:53"),
        ("192.0.2.20/tcp", "dns-tcp", "192.0.2.20:53"),
        ("192.0.2.30:8007", "ports", "192.0.2.30:8007"),
        ("192.0.2.99:80", "any", "192.0.2.99:80"),
        ("[2001:db8::10]:80", "six", "[2001:db8::10]:80"),
        ("2001:db8::10", "six", "[2001:db8::10]:80"),
        ("192.0.2.40:80", "one", "192.0.2.40:80"),
        ("192.0.2.40:81", "all", "192.0.2.40:81"),
    ],
)
def test_which_service_is_meant(text: str, name: str, endpoint: str) -> None:
    found, target = find_vip(SERVICES, text)
    assert (found.name, str(target)) == (name, endpoint)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "192.0.2.20:53",
            "fits several services: choose one of 192.0.2.20:53/udp, 192.0.2.20:53/t",
        ),
        ("192.0.2.10:81", "there is no service or VIP '192.0.2.10:81' (VIPs: 192.0.2.10:80/tcp, "),
        ("192.0.2.10:80/udp", "there is no service or VIP"),
        ("shop", "there is no service or VIP 'shop'"),
    ],
)
def test_what_is_not_clear(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        find_vip(SERVICES, text)
    assert reason in str(refused.value)


def hooks(one: Service, client: str = CLIENT, *own: str) -> list[str]:
    route = Route(
        one, Endpoint.parse(client), Endpoint.parse("192.0.2.10:80"), Endpoint.parse(ONE), 0,
        {ip_address(address) for address in own},
    )  # fmt: skip
    return [f"{hook.direction} {hook.hook} {hook.action}" for hook in route.hooks()]


HERE = CLIENT.partition(":")[0]
BACKEND = ONE.partition(":")[0]


@pytest.mark.parametrize(
    ("datapath", "nat", "own", "expected"),
    [
        ("nfqueue", "dnat", (), ["forward PREROUTING rewrite", "reply POSTROUTING rewrite"]),
        ("nfqueue", "full", (), ["forward PREROUTING rewrite", "reply PREROUTING rewrite"]),
        ("nfqueue", "dnat", (HERE,), ["forward OUTPUT rewrite", "reply INPUT rewrite"]),
        ("nfqueue", "dnat", (BACKEND,), [
            "forward PREROUTING rewrite", "reply POSTROUTING rewrite",
        ]),
        ("raw", "dnat", (HERE,), ["forward OUTPUT rewrite", "reply INPUT rewrite"]),
        ("offload", "dnat", (), [
            "forward PREROUTING open", "forward conntrack rewrite", "reply conntrack rewrite",
        ]),
    ],
)  # fmt: skip
def test_hooks(datapath: str, nat: str, own: tuple[str, ...], expected: list[str]) -> None:
    assert hooks(service(ONE, nat=nat, datapath=Datapath(datapath)), CLIENT, *own) == expected


def test_frames_are_rewritten_on_the_wire_and_their_copies_dropped() -> None:
    found = hooks(service(ONE, datapath=Datapath.RAW))
    assert found[:2] == ["forward WIRE rewrite", "forward PREROUTING drop"]
    assert "reply WIRE rewrite" in found
