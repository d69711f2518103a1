"""The options of `up`, alone and over a configuration file."""

from collections.abc import Sequence

import pytest

from featherlb.config import Config, ServiceConfig, from_command_line
from featherlb.config.file import parse
from featherlb.model import Datapath, NatMode
from featherlb.model.errors import ConfigError

FILE = """\
services:
- name: web
  vip: [10.0.0.10:80, 10.0.0.10:443]
  scheduler: maglev
  nat: full
  source_addresses: [10.0.0.2]
  backends: [10.0.1.1:80]
- name: mail
  vip: 10.0.0.10:25
  backends: [10.0.1.2:25]
workers: 2
"""
BASE = parse(FILE, "f")
WEB, MAIL = BASE.services


def run(
    vips: Sequence[str] = (),
    backends: Sequence[str] = (),
    scheduler: str | None = None,
    nat: str | None = None,
    base: Config | None = None,
    datapath: str | None = None,
) -> Config:
    return from_command_line(vips, backends, scheduler, nat, datapath, base)


def pool(service: ServiceConfig) -> list[tuple[str, int]]:
    return [(str(backend), backend.weight) for backend in service.backends]


def test_a_vip_alone_is_a_service_with_an_empty_pool() -> None:
    (service,) = run(["10.0.0.1:80"]).services
    assert service.name == "10.0.0.1:80/tcp"
    assert (service.scheduler, service.nat, service.backends) == ("round-robin", NatMode.DNAT, ())


def test_options_apply_to_each_named_service() -> None:
    config = run(
        ["10.0.0.1:80/tcp", "[2001:db8::1]:80-90"], ["web:8080", "mail:25@3"], "wlc", "full"
    )
    assert [str(service.vips[0]) for service in config.services] == [
        "10.0.0.1:80",
        "[2001:db8::1]:80-90",
    ]
    for service in config.services:
        assert pool(service) == [("web:8080", 1), ("mail:25", 3)]
        assert service.scheduler == "weighted-least-connections"
        assert service.nat is NatMode.FULL


def test_without_vips_the_file_runs_as_it_is() -> None:
    assert run(base=BASE) == BASE


@pytest.mark.parametrize("vips", [["10.0.0.10:443"], ["10.0.0.10:443", "10.0.0.10:80"]])
def test_a_vip_of_the_file_selects_its_service_once(vips: list[str]) -> None:
    config = run(vips, base=BASE)
    assert config.services == (WEB,)
    assert config.workers == 2


def test_a_vip_that_the_file_lacks_makes_a_new_service() -> None:
    config = run(["10.0.0.99:80", "10.0.0.10:25"], base=BASE)
    assert [service.name for service in config.services] == ["10.0.0.99:80/tcp", "mail"]
    assert pool(config.services[0]) == []
    assert config.services[1] == MAIL


def test_options_win_over_the_file() -> None:
    (service,) = run(["10.0.0.10:80"], ["10.0.1.9:80@0"], "rr", "dnat", BASE).services
    assert (service.name, service.scheduler) == ("web", "round-robin")
    assert (service.nat, service.source_addresses) == (NatMode.DNAT, ())
    assert pool(service) == [("10.0.1.9:80", 0)]
    (service,) = run(["10.0.0.10:80"], nat="full", base=BASE).services
    assert service == WEB


NO_SERVICE = (
    "no service to run: name one with --vip IP:PORT, or configure services in "
    "./featherlb.yaml or /etc/featherlb/featherlb.yaml"
)


@pytest.mark.parametrize("base", [None, parse("services: []", "f")])
def test_nothing_to_run_says_what_to_do(base: Config | None) -> None:
    with pytest.raises(ConfigError) as raised:
        run(base=base)
    assert list(raised.value.faults) == [NO_SERVICE]


def test_options_without_a_vip_are_unclear() -> None:
    with pytest.raises(ConfigError) as raised:
        run([], ["10.0.0.1:80"], "rr", "full", BASE)
    assert list(raised.value.faults) == [
        f"{option}: which service is unclear (select it with --vip IP:PORT)"
        for option in ("--backend", "--scheduler", "--nat")
    ]


def test_a_datapath_without_a_vip_is_for_every_service() -> None:
    assert {service.datapath for service in run(base=BASE, datapath="raw").services} == {
        Datapath.RAW
    }
    one = run(["10.0.0.10:25"], base=BASE, datapath="raw").services
    assert [(service.name, service.datapath) for service in one] == [("mail", Datapath.RAW)]


def test_every_fault_is_reported() -> None:
    with pytest.raises(ConfigError) as raised:
        run(
            ["10.0.0.300:80", "10.0.0.9:80/upd", "10.0.0.1:80", "10.0.0.1:70-90"],
            ["10.0.0.300:80", "a:1@x", "a:1@-1", "a:1@", "10.0.0.1:80", "x\n:1"],
            "nothing",
            "half",
        )
    faults = list(raised.value.faults)
    assert "unknown scheduler 'nothing'" in faults[7]
    del faults[7]
    assert faults == [
        "--vip 10.0.0.300:80: '10.0.0.300' is not an IP address",
        "--vip 10.0.0.9:80/upd: 'upd' is unknown, did you mean 'udp'? (expected tcp or udp)",
        "--backend 10.0.0.300:80: '10.0.0.300' is not an IP address",
        "--backend a:1@x: 'x' is text (expected an integer from 0 to 65535)",
        "--backend a:1@-1: -1 is too small (expected an integer from 0 to 65535)",
        "--backend a:1@: '' is text (expected an integer from 0 to 65535)",
        "--backend 'x\\n:1': 'x\\n:1' contains unprintable characters",
        "--nat half: 'half' is unknown (expected dnat or full)",
        "--vip 10.0.0.1:70-90: 10.0.0.1:70-90 overlaps with the VIP 10.0.0.1:80 of service "
        "'10.0.0.1:80/tcp' (--vip 10.0.0.1:80)",
        "--backend 10.0.0.1:80: 10.0.0.1:80 is a VIP of service '10.0.0.1:80/tcp' "
        "(expected a server of its pool)",
    ]


def test_a_fault_of_the_shared_pool_is_reported_once() -> None:
    with pytest.raises(ConfigError) as raised:
        run(["10.0.0.1:80", "10.0.0.2:80"], ["a:1", "a:1"])
    assert list(raised.value.faults) == [
        "--backend a:1: a:1 is already a backend of this service (--backend a:1)"
    ]


def test_a_file_and_an_option_can_disagree() -> None:
    with pytest.raises(ConfigError) as raised:
        run(["10.0.0.10:80"], ["10.0.0.10:443"], base=BASE)
    assert list(raised.value.faults) == [
        "--backend 10.0.0.10:443: 10.0.0.10:443 is a VIP of service 'web' "
        "(expected a server of its pool)"
    ]
