"""Names to addresses."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import pytest

from featherlb.config import resolve
from featherlb.config.file import parse
from featherlb.model import Address, Backend, Endpoint, NatMode, Persistence, Protocol, Service, Vip
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
    ("services", "faults"),
    [
        (
            "- vip: 10.0.0.1:80\n  backends:\n  - 10.0.1.1:80\n  - nowhere:80\n  - six:80",
            [
                "f:5: services[0].backends[1]: the name 'nowhere' has no IPv4 address "
                "(check it with: getent ahosts nowhere)",
                "f:6: services[0].backends[2]: the name 'six' has no IPv4 address "
                "(check it with: getent ahosts six)",
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  backends: [vip:80]",
            [
                "f:3: services[0].backends[0]: 10.0.0.1:80 is a VIP of service "
                "'10.0.0.1:80/tcp' (expected a server of its pool)"
            ],
        ),
        (
            "- vip: 10.0.0.1:80\n  backends: [web:80, 10.0.1.1:80]",
            [
                "f:3: services[0].backends[1]: 10.0.1.1:80 is already a backend of this "
                "service (line 3)"
            ],
        ),
    ],
)
def test_faults_that_show_once_names_have_addresses(services: str, faults: list[str]) -> None:
    known = names(six=["2001:db8::6"], vip=["10.0.0.1"], web=["10.0.1.1"])
    with pytest.raises(ConfigError) as raised:
        resolved(services, known)
    assert list(raised.value.faults) == faults


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
