"""The options of `featherlb up` that describe services, merged with a configuration file."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from featherlb.config import checks, values
from featherlb.config.faults import Fault, Origin, refuse
from featherlb.config.types import BackendConfig, Config, ServiceConfig, VipConfig, default_name
from featherlb.model import NatMode, Protocol
from featherlb.model.errors import ConfigError

T = TypeVar("T")

_NO_SERVICE = (
    "no service to run: name one with --vip IP:PORT, or configure services in "
    "./featherlb.yaml or /etc/featherlb/featherlb.yaml"
)


def from_command_line(
    vips: Sequence[str],
    backends: Sequence[str],
    scheduler: str | None,
    nat: str | None,
    datapath: str | None,
    base: Config | None,
) -> Config:
    """The configuration that `up` runs; ConfigError with every fault of the options.

    `vips` are `IP:PORT[/tcp|/udp]`, `backends` are `HOST[:PORT[-PORT]][@WEIGHT]`; `base` is the
    file, if there is one. Without `vips`, all services of the file run. With them, only the file's
    services with these VIPs run, and each VIP that the file doesn't have creates a service. The
    other options apply to all these services and override the file; `backends` replaces their
    pools. Only `datapath` works without `vips`.
    """
    faults: list[Fault] = []

    def read(option: str, words: Sequence[str], reader: Callable[[str, Origin], T]) -> list[T]:
        found = []
        for word in words:
            origin = Origin("", 0, f"{option} {word if word.isprintable() else ascii(word)}")
            try:
                found.append(reader(word, origin))
            except ValueError as error:
                faults.append(Fault(origin, str(error)))
        return found

    wanted = read("--vip", vips, _service)
    pool = read("--backend", backends, _backend)
    schedulers = read("--scheduler", _maybe(scheduler), lambda word, _: values.scheduler(word))
    modes = read("--nat", _maybe(nat), lambda word, _: values.nat(word))
    paths = read("--datapath", _maybe(datapath), lambda word, _: values.datapath(word))
    config = base or Config()
    if not vips:
        options = {
            "--backend": backends,
            "--scheduler": scheduler,
            "--nat": nat,
        }
        for option, value in options.items():
            if value:
                text = "which service is unclear (select it with --vip IP:PORT)"
                faults.append(Fault(Origin("", 0, option), text))
        refuse(faults)
        if not config.services:
            raise ConfigError([_NO_SERVICE])

    services: list[ServiceConfig] = [] if vips else list(config.services)
    for new in wanted:
        service = next((old for old in config.services if _has(old, new)), new)
        if service not in services:
            services.append(service)
    for position, service in enumerate(services):
        if pool:
            service = replace(service, backends=tuple(pool))
        if schedulers:
            origin = Origin("", 0, "--scheduler")
            service = replace(service, scheduler=schedulers[0], scheduler_origin=origin)
        if modes:
            sources = service.source_addresses if modes[0] is NatMode.FULL else ()
            service = replace(service, nat=modes[0], source_addresses=sources)
        if paths:
            service = replace(service, datapath=paths[0])
        services[position] = service
    config = replace(config, services=tuple(services))
    refuse([*faults, *checks.check(config)])
    return config


def _maybe(word: str | None) -> list[str]:
    return [] if word is None else [word]


def _service(word: str, origin: Origin) -> ServiceConfig:
    """A service with an empty pool, from `IP:PORT[/tcp|/udp]`."""
    text, slash, protocol_word = word.partition("/")
    protocol = values.protocol(protocol_word) if slash else Protocol.TCP
    address = values.vip(text)
    vip = VipConfig(address.address, address.first_port, address.last_port, origin)
    return ServiceConfig(default_name(vip, protocol), (vip,), origin, protocol)


def _backend(word: str, origin: Origin) -> BackendConfig:
    """A backend, from `HOST[:PORT[-PORT]][@WEIGHT]`."""
    text, at, weight = word.partition("@")
    host, port, last_port = values.backend(text)
    return BackendConfig(host, port, origin, _weight(weight) if at else 1, last_port=last_port)


def _weight(word: str) -> int:
    return values.weight(int(word) if re.fullmatch(r"-?[0-9]{1,18}", word) else word)


def _has(old: ServiceConfig, new: ServiceConfig) -> bool:
    return old.protocol == new.protocol and new.vips[0] in old.vips
