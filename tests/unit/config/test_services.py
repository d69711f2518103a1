"""featherlb's own file: what a right one means."""

from ipaddress import ip_address
from pathlib import Path

from featherlb.config import Config
from featherlb.config.file import load, parse
from featherlb.model import Driver, NatMode, Protocol, Timeouts

EXAMPLE = Path(__file__).parents[3] / "examples" / "featherlb.yaml"


def test_the_example_is_understood() -> None:
    config = load(EXAMPLE)
    web, api = config.services
    assert (web.name, web.protocol, web.nat) == ("web", Protocol.TCP, NatMode.DNAT)
    assert web.scheduler == "weighted-least-connections"
    assert [str(vip) for vip in web.vips] == ["10.0.0.10:80", "10.0.0.11:80"]
    assert [(str(backend), backend.weight) for backend in web.backends] == [
        ("10.0.1.2:8080", 1),
        ("10.0.1.3:8080", 3),
        ("backend4:8080", 0),
    ]
    assert [str(vip) for vip in api.vips] == ["10.0.0.10:9000-9010"]
    assert api.nat is NatMode.FULL
    assert [source.address for source in api.source_addresses] == [
        ip_address("10.0.0.2"),
        ip_address("10.0.0.3"),
    ]
    assert config.hash_key == "change-me"
    assert config.timeouts == Timeouts()


def test_what_is_left_out_has_its_default() -> None:
    config = parse("services:\n- vip: 10.0.0.10:80\n", "f")
    (service,) = config.services
    assert service.name == "10.0.0.10:80/tcp"
    assert (service.protocol, service.scheduler) == (Protocol.TCP, "round-robin")
    assert (service.nat, service.source_addresses) == (NatMode.DNAT, ())
    assert service.backends == ()
    assert config == Config(services=config.services)


def test_the_keys_beside_the_services() -> None:
    config = parse(
        "services: []\nqueue: 0\nworkers: 2\nfail_open: true\n"
        "assign: false\nrestore: false\ndriver: netfilterqueue\n"
        "hash_key: k\nmax_flows: 1\n"
        "timeouts: {half_open: 500ms, established: 1h, fin: 2m, closed: 3}\n",
        "f",
    )
    assert config == Config(
        queue=0,
        workers=2,
        fail_open=True,
        assign=False,
        restore=False,
        driver=Driver.NETFILTERQUEUE,
        hash_key="k",
        max_flows=1,
        timeouts=Timeouts(0.5, 3600.0, 120.0, 3.0),
    )


def test_origins_name_the_line_of_each_value() -> None:
    (service,) = parse(
        "services:\n- name: a\n  vip:\n  - 10.0.0.1:80\n  backends:\n  - a:80\n"
        "  - weight: 2\n    address: b:80\n",
        "f",
    ).services
    assert str(service.origin) == "f:2: services[0].name"
    assert str(service.vips[0].origin) == "f:4: services[0].vip[0]"
    assert [str(backend.origin) for backend in service.backends] == [
        "f:6: services[0].backends[0]",
        "f:8: services[0].backends[1].address",
    ]
