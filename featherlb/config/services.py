"""featherlb's own configuration file: `services` and the other top-level keys."""

from featherlb.config import schema
from featherlb.config.faults import Fault
from featherlb.config.loader import Document, Path
from featherlb.config.types import (
    HOOKS,
    ApiConfig,
    BackendConfig,
    ClusterConfig,
    Config,
    MaxFlowsConfig,
    MaxNewConfig,
    PersistenceConfig,
    RecorderConfig,
    ServiceConfig,
    SourceConfig,
    VipConfig,
    default_name,
)
from featherlb.model import HealthCheck, Label, PassiveCheck, Preference, Redispatch, Timeouts


def read(document: Document, faults: list[Fault]) -> Config:
    """The valid parts of a `services` file; the rest is added to `faults`."""
    file = schema.validate(schema.ServicesFile, document, faults)
    if file is None:
        return Config()
    if file.queue is not None and file.queue + file.workers > 65536:
        last = (
            f"the last of {file.workers} workers would have queue {file.queue + file.workers - 1}"
        )
        faults.append(Fault(document.origin(("queue",)), f"{last} (expected at most 65535)"))
    services = (
        _service(entry, document, ("services", i))
        for i, entry in enumerate(file.services)
        if entry is not schema.DISCARDED
    )
    return Config(
        services=tuple(service for service in services if service),
        queue=file.queue,
        workers=file.workers,
        fail_open=file.fail_open,
        assign=file.assign,
        restore=file.restore,
        driver=file.driver,
        hash_key=file.hash_key,
        max_flows=file.max_flows,
        timeouts=Timeouts(**file.timeouts.model_dump()),
        resolve_interval=file.resolve_interval,
        recorder=RecorderConfig(file.recorder.size, file.recorder.dump_when),
        api=ApiConfig(file.api.listen, file.api.token, tuple(file.api.hosts)) if file.api else None,
        cluster=_cluster(file.cluster, document) if file.cluster else None,
    )


def _cluster(entry: schema.ClusterEntry, document: Document) -> ClusterConfig:
    # The same list may stand in the files of all nodes.
    peers = [one for one in entry.peers if one is not schema.DISCARDED and one != entry.listen]
    return ClusterConfig(
        entry.node,
        entry.listen,
        tuple(peers),
        entry.keys,
        {node: tuple(addresses) for node, addresses in entry.source_addresses.items()},
        document.origin(("cluster",)),
    )


def _service(entry: schema.ServiceEntry, document: Document, path: Path) -> ServiceConfig | None:
    """The service of an entry; None if all its VIPs are faulty."""
    vips = tuple(
        VipConfig(vip.address, vip.first_port, vip.last_port, document.origin((*path, "vip", i)))
        for i, vip in enumerate(entry.vip)
        if vip is not schema.DISCARDED
    )
    if not vips:
        return None
    return ServiceConfig(
        name=entry.name or default_name(vips[0], entry.protocol),
        vips=vips,
        origin=document.origin((*path, "name")),
        protocol=entry.protocol,
        scheduler=entry.scheduler,
        scheduler_origin=document.origin((*path, "scheduler")),
        hash_on=tuple(part for part in entry.hash_on if part is not schema.DISCARDED),
        hash_balance=entry.hash_balance,
        nat=entry.nat,
        datapath=entry.datapath,
        one_packet=entry.one_packet,
        responses=entry.responses,
        mss=entry.mss,
        syn_cookies=entry.syn_cookies,
        sync=entry.sync,
        persistence=_persistence(entry, document, path),
        prefer=Preference(_labels(entry.prefer.labels), entry.prefer.spill_below)
        if entry.prefer
        else None,
        redispatch=Redispatch(
            entry.redispatch.refused, entry.redispatch.silent, entry.redispatch.attempts
        ),
        allow=tuple(one for one in entry.allow if one is not schema.DISCARDED),
        deny=tuple(one for one in entry.deny if one is not schema.DISCARDED),
        deny_action=entry.deny_action,
        max_flows=tuple(
            MaxFlowsConfig(**dict(one)) for one in entry.max_flows if one is not schema.DISCARDED
        ),
        max_new=tuple(
            MaxNewConfig(**dict(one)) for one in entry.max_new if one is not schema.DISCARDED
        ),
        on_backend_down=entry.on_backend_down,
        on_open=entry.on_open,
        on_close=entry.on_close,
        on_backend_change=entry.on_backend_change,
        health=_health(entry.health),
        passive_health=_passive_health(entry.passive_health),
        slow_start=entry.slow_start,
        panic_threshold=entry.panic_threshold,
        source_addresses=tuple(
            SourceConfig(address, document.origin((*path, "source_addresses", i)))
            for i, address in enumerate(entry.source_addresses)
            if address is not schema.DISCARDED
        ),
        backends=tuple(
            BackendConfig(
                *backend.address[:2],
                last_port=backend.address[2],
                origin=document.origin((*path, "backends", i, "address")),
                weight=backend.weight,
                role=backend.role,
                max_connections=backend.max_connections,
                labels=_labels(backend.labels),
            )
            for i, backend in enumerate(entry.backends)
            if backend is not schema.DISCARDED
        ),
        option_origins={
            key: document.origin((*path, key))
            for key in (
                "mss",
                "one_packet",
                "responses",
                "passive_health",
                "slow_start",
                "syn_cookies",
                "datapath",
                "nat",
                "sync",
                "hash_on",
                "hash_balance",
                *HOOKS,
                "prefer",
                "allow",
                "deny_action",
                "max_flows",
                "max_new",
            )
        },
    )


def _persistence(
    entry: schema.ServiceEntry, document: Document, path: Path
) -> PersistenceConfig | None:
    if entry.persistence is None:
        return None
    origin = document.origin((*path, "persistence"))
    return PersistenceConfig(entry.persistence.timeout, entry.persistence.prefix, origin)


def _labels(entry: dict[str, str]) -> tuple[Label, ...]:
    return tuple(Label(*pair) for pair in entry.items())


def _passive_health(entry: schema.PassiveHealthEntry | None) -> PassiveCheck | None:
    return PassiveCheck(**dict(entry)) if entry else None


def _health(entry: schema.HealthEntry | None) -> HealthCheck | None:
    if entry is None:
        return None
    lists = {
        key: tuple(item for item in getattr(entry, key) if item is not schema.DISCARDED)
        for key in ("status", "command")
    }
    return HealthCheck(**dict(entry) | lists)
