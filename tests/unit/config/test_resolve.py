"""Names to addresses."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import pytest

from featherlb.config import Config, resolve
from featherlb.config.file import parse
from featherlb.config.resolve import absent, build, place, with_weights
from featherlb.model import (
    Address,
    Backend,
    Endpoint,
    NatMode,
    Persistence,
    Protocol,
    Role,
    Service,
    Vip,
)
from featherlb.model.errors import ConfigError


def names(**known: Sequence[str]) -> Mapping[str, Sequence[Address]]:
    return {name: [ip_address(text) for text in texts] for name, texts in known.items()}


def resolved(services: str, known: Mapping[str, Sequence[Address]]) -> tuple[Service, ...]:
    text = services if services.startswith("routes:") else f"services:\n{services}"
    return resolve(parse(text, "f"), lambda name: known.get(name, ()))


def endpoints(service: Service) -> list[str]:
    return [str(backend) for backend in service.backends]


def test_a_service_without_names() -> None:
    (service,) = resolved(
        "- name: a\n  vip: [10.0.0.1:80, '0.0.0.0:8000-8010']\n  scheduler: mh\n  nat: full\n"
        "  source_addresses: [10.0.0.2, 10.0.0.3]\n"
        "  backends: [{address: '10.0.1.1:81', weight: 3}]\n",
        {},
    )
    assert service == Service(
        name="a",
        protocol=Protocol.TCP,
        vips=(
            Vip(ip_address("10.0.0.1"), 80, 80),
            Vip(ip_address("0.0.0.0"), 8000, 8010),
        ),
        backends=(
            Backend(
                Endpoint(ip_address("10.0.1.1"), 81),
                weight=3,
                local=False,
                sources=(ip_address("10.0.0.2"), ip_address("10.0.0.3")),
            ),
        ),
        scheduler="maglev",
        nat=NatMode.FULL,
    )


def test_a_name_stands_for_all_its_addresses_of_the_family() -> None:
    known = names(web=["10.0.1.2", "2001:db8::2", "10.0.1.1", "10.0.1.2"])
    (service,) = resolved("- vip: 10.0.0.1:80\n  backends: [{address: 'web:81', weight: 2}]", known)
    assert endpoints(service) == ["10.0.1.2:81", "10.0.1.1:81"]
    assert [backend.weight for backend in service.backends] == [2, 2]
    (service,) = resolved("- vip: '[2001:db8::1]:80'\n  backends: [web:81]", known)
    assert endpoints(service) == ["[2001:db8::2]:81"]


@pytest.mark.parametrize(
    ("localhost", "endpoint", "vip"),
    [
        (["::1", "127.0.0.1", "127.0.0.2"], "a", "127.0.0.1:8080"),
        (["::1"], "a", "[::1]:8080"),
        (["127.0.0.1", "::1"], "2001:db8::1", "[::1]:8080"),
    ],
)
def test_a_vip_by_name_takes_one_address(localhost: list[str], endpoint: str, vip: str) -> None:
    (service,) = resolved(
        "routes:\n- host: localhost\n  port: 8080\n  strategy: random\n"
        f"  endpoints: [{{host: '{endpoint}', port: 1}}]",
        names(localhost=localhost, a=["10.0.1.1", "2001:db8::1"]),
    )
    assert [str(vip) for vip in service.vips] == [vip]
    assert len(service.backends) == 1


@pytest.mark.parametrize(
    ("backends", "served", "missing"),
    [
        (
            "[10.0.1.9:80, nowhere:80, six:80]",
            ["10.0.1.9:80"],
            {
                "nowhere:80": "the name 'nowhere' has no IPv4 address "
                "(check it with: getent ahosts nowhere)",
                "six:80": "the name 'six' has no IPv4 address (check it with: getent ahosts six)",
            },
        ),
        (
            "[vip:80, vip:81]",
            ["10.0.0.1:81"],
            {"vip:80": "10.0.0.1:80 is a VIP of service 's' (expected a server of its pool)"},
        ),
        (
            "[many:80]",
            [],
            {"many:80": "224.0.0.1 is a multicast address (expected an address of one host)"},
        ),
        (
            "[{address: 'web:80', weight: 2}, {address: '10.0.1.1:80', weight: 3}, alias:80]",
            ["10.0.1.1:80", "10.0.1.2:80"],
            {"10.0.1.1:80": "10.0.1.1:80 is the backend web:80 already"},
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_left_out(
    backends: str, served: list[str], missing: dict[str, str]
) -> None:
    known = names(
        six=["2001:db8::6"],
        vip=["10.0.0.1"],
        many=["224.0.0.1"],
        web=["10.0.1.1"],
        alias=["10.0.1.1", "10.0.1.2"],
    )
    config = parse(
        f"services:\n- {{name: s, vip: '10.0.0.1:80', backends: {backends}}}\n"
        "- {name: other, vip: '10.0.0.2:80', backends: ['10.0.1.1:80']}\n",
        "f",
    )
    places = place(config, lambda name: known.get(name, ()))
    service, other = build(config, places, lambda name: known.get(name, ()))
    assert endpoints(service) == served
    assert absent(places) == {("s", backend): reason for backend, reason in missing.items()}
    assert endpoints(other) == ["10.0.1.1:80"]


def test_of_the_weights_of_one_address_the_greatest_counts() -> None:
    known = names(a=["10.0.1.1"], b=["10.0.1.1"])

    def configured(first: int, second: int) -> Config:
        return parse(
            "services:\n- vip: 10.0.0.1:80\n  backends:\n"
            f"  - {{address: 'a:80', weight: {first}}}\n"
            f"  - {{address: 'b:80', weight: {second}, role: backup, max_connections: 9}}\n",
            "f",
        )

    config = configured(2, 3)
    places = place(config, lambda name: known.get(name, ()))
    (service,) = build(config, places, lambda name: known.get(name, ()))
    (backend,) = service.backends
    assert (backend.weight, backend.role, backend.max_connections) == (3, Role.PRIMARY, None)
    for first, second in ((0, 3), (3, 0), (0, 0)):
        (changed,) = configured(first, second).services
        (backend,) = with_weights(service, changed, places[service.name]).backends
        assert backend.weight == max(first, second)


def test_a_service_waits_for_the_name_of_its_vip() -> None:
    config = parse(
        "routes:\n"
        "- {host: vip, port: 80, strategy: random, endpoints: [{host: 10.0.1.1, port: 1}]}\n"
        "- {host: 10.0.0.2, port: 80, strategy: random, endpoints: [{host: 10.0.1.1, port: 1}]}\n",
        "f",
    )
    places = place(config, lambda name: [])
    assert [service.name for service in build(config, places, lambda name: [])] == [
        "10.0.0.2:80/tcp"
    ]
    assert absent(places) == {
        ("vip:80/tcp", "10.0.1.1:1"): "the VIP's name 'vip' has no IPv4 address"
    }


def test_vips_that_come_to_overlap_are_refused() -> None:
    config = parse(
        "routes:\n- {host: vip, port: 80, strategy: random, endpoints: [{host: a, port: 1}]}\n"
        "- {host: 10.0.0.2, port: 80, strategy: random, endpoints: [{host: 10.0.1.1, port: 1}]}\n",
        "f",
    )
    known = names(vip=["10.0.0.2"], a=["10.0.1.1"])
    with pytest.raises(ConfigError, match=r"10\.0\.0\.2:80 overlaps with the VIP"):
        place(config, lambda name: known.get(name, ()))


def test_the_options_of_a_service() -> None:
    tcp, udp = resolved(
        "- {vip: '10.0.0.1:80', mss: 1400, persistence: {timeout: 1m, prefix: 24}}\n"
        "- {vip: '10.0.0.1:80', protocol: udp, one_packet: true, responses: 0}\n",
        {},
    )
    assert (tcp.mss, tcp.persistence) == (1400, Persistence(timeout=60, prefix=24))
    assert (tcp.one_packet, tcp.responses) == (False, None)
    assert (udp.protocol, udp.one_packet, udp.responses) == (Protocol.UDP, True, 0)
    assert (udp.mss, udp.persistence) == (None, None)


@pytest.mark.parametrize(("vip", "prefix"), [("10.0.0.1:80", 32), ("'[2001:db8::1]:80'", 128)])
def test_persistence_is_of_single_addresses_by_default(vip: str, prefix: int) -> None:
    (service,) = resolved(f"- vip: {vip}\n  persistence: {{}}", {})
    assert service.persistence == Persistence(timeout=300, prefix=prefix)
