"""The subject of the examination: this host, its configuration, and the running instance.

Nothing is changed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from featherlb import host
from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.config import Config, find_config
from featherlb.config.file import load, parse
from featherlb.config.resolve import absent, names
from featherlb.control.prepare import find_services, load_code, with_names
from featherlb.control.resolver import look_up
from featherlb.doctor.finding import Finding, error, refusal, warning
from featherlb.model import Address, HealthCheck, Service
from featherlb.model.errors import ConfigError, FeatherlbError, HostError
from featherlb.model.shard import remembered_prefix
from featherlb.system import ipset, iptables, kernel_state, plugins
from featherlb.system.journal import Journal, Record

PATIENCE = 5.0
"""Seconds to wait for a response of the instance; it takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Running:
    """An instance, as its API describes it."""

    record: Record
    status: schema.Status
    services: schema.Services
    stats: schema.Stats
    host: schema.Host
    config: str
    """YAML."""
    network: Mapping[str, int]
    """The kernel's counters, read together with `stats`."""
    moment: float
    """When they were read, in seconds of the monotonic clock."""

    @property
    def fix(self) -> str:
        """The command that restores what others have changed."""
        return f"featherlb reload --instance {self.record.instance}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The input of the checks."""

    config: Config | None = None
    services: tuple[Service, ...] = ()
    """The configured services, with names resolved."""
    facts: host.Facts | None = None
    options: host.Options = field(default_factory=host.Options)
    records: tuple[Record, ...] = ()
    """Of all instances of this network namespace, including dead ones."""
    standing: frozenset[int] = frozenset()
    """The instances with chains or sets on this host, as far as this process may look."""
    running: Running | None = None
    client: Address | None = None
    """A client's address, if the operator has named one."""
    privileged: bool = True

    @property
    def owner(self) -> int | None:
        """The pid of the running instance."""
        return self.running.record.pid if self.running else None

    @property
    def disturbed(self) -> bool:
        """Whether the rules of an instance that is gone take packets of its backends."""
        dead = any(not record.alive for record in self.records)
        return dead or not self.standing <= {record.instance for record in self.records}

    @property
    def families(self) -> list[int]:
        """The address families of the services."""
        return sorted({vip.address.version for one in self.services for vip in one.vips})

    def check_of(self, service: Service) -> HealthCheck | None:
        """How the backends of a service are checked."""
        configured = self.config.services if self.config else ()
        return next((one.health for one in configured if one.name == service.name), None)


def find_subject(
    path: Path | None,
    instance: int | None,
    client: Address | None,
    default: Path | None = None,
) -> tuple[Subject, list[Finding]]:
    """Collect everything the checks need; what can't be collected is a finding.

    `path` is the configuration; by default the running instance's, then the file `default`, then
    the one that `up` finds. ConfigError if several instances run and none is chosen.
    """
    findings: list[Finding] = []
    records = tuple(Journal().records())
    running = _running(records, instance, findings)
    config = _config(path, running, default, findings)
    options = host.Options()
    services: tuple[Service, ...] = ()
    facts = None
    if config is not None:
        try:
            found = with_names(look_up(names(config)), {}, partial(find_services, config))
            services = found.services
            findings += (
                warning(f"backend {backend} of service '{service}' is absent: {reason}")
                for (service, backend), reason in absent(found.places).items()
            )
            queue = running.record.instance if running is not None else config.queue
            if queue is None:
                queue = host.free_queue(config.workers, services)
            options = host.Options(
                queue=queue,
                workers=config.workers,
                fail_open=config.fail_open,
                assign=config.assign if running is None else running.host.assign,
                prefix4=remembered_prefix(services, 4),
                prefix6=remembered_prefix(services, 6),
            )
            facts = host.survey(services)
        except FeatherlbError as problem:
            findings += map(refusal, _sentences(problem))
    privileged = not host.missing_capabilities()
    return (
        Subject(
            config=config,
            services=services,
            facts=facts,
            options=options,
            records=records,
            standing=_standing() if privileged else frozenset(),
            running=running,
            client=client,
            privileged=privileged,
        ),
        findings,
    )


def _standing() -> frozenset[int]:
    found = set(ipset.instances())
    for family in iptables.COMMANDS:
        found |= iptables.instances(family)
    return frozenset(found)


def ask_for_stats(instance: int) -> schema.Stats:
    """The instance's packet counters; HostError if it doesn't answer."""
    return connect(instance).get("/v1/stats", schema.Stats)


def _running(
    records: Sequence[Record], instance: int | None, findings: list[Finding]
) -> Running | None:
    alive = {record.instance: record for record in records if record.alive}
    if instance is None and len(alive) > 1:
        names = ", ".join(map(str, alive))
        raise ConfigError([f"several instances run here: choose one with --instance ({names})"])
    if instance is not None and instance not in alive:
        raise ConfigError([f"there is no instance {instance} here"])
    if not alive:
        return None
    record = alive[instance] if instance is not None else next(iter(alive.values()))
    try:
        return _ask(record)
    except HostError as problem:
        reason = str(problem)
        if isinstance(problem.__cause__, TimeoutError):
            reason = f"no response within {PATIENCE:g} s; restart it"
        findings.append(
            error(f"instance {record.instance} (pid {record.pid}) doesn't answer: {reason}")
        )
        return None


def _ask(record: Record) -> Running:
    client = connect(record.instance, PATIENCE)
    return Running(
        record=record,
        status=client.get("/v1/status", schema.Status),
        services=client.get("/v1/services", schema.Services),
        stats=client.get("/v1/stats", schema.Stats),
        host=client.get("/v1/host", schema.Host),
        config=client.ask("GET", "/v1/config"),
        network=kernel_state.network_counters(),
        moment=time.monotonic(),
    )


def _config(
    path: Path | None, running: Running | None, default: Path | None, findings: list[Finding]
) -> Config | None:
    try:
        plugins.load_entry_points()
        if path is None and running is not None:
            return parse(running.config, "the running configuration")
        path = path or default or find_config()
        if path is None:
            return None
        config = load(path)
        load_code(config, {})
    except ConfigError as problem:
        findings += [error(fault) for fault in problem.faults]
        return None
    return config


def _sentences(problem: FeatherlbError) -> list[Exception]:
    if isinstance(problem, ConfigError):
        return [ConfigError([fault]) for fault in problem.faults]
    return [problem]
