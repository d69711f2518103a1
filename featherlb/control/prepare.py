"""From a configuration to services that this host can run, checked before anything changes.

All of it is blocking: not for a running asyncio loop.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from featherlb import host
from featherlb.config import AUTO, Config, resolve
from featherlb.config.faults import Fault, refuse
from featherlb.config.resolve import Lookup
from featherlb.core.pools.schedulers import is_file_reference
from featherlb.model import Service
from featherlb.model.errors import ConfigError
from featherlb.system import flow_file, plugins
from featherlb.system.journal import Journal

log = logging.getLogger("featherlb")


def find_services(
    config: Config, look_up: Lookup, current: Sequence[Service] = ()
) -> tuple[Service, ...]:
    """The services with names resolved and datapaths picked.

    `current` services keep the datapath that was picked for them, if it still works.
    """
    automatic = {service.name for service in config.services if service.datapath == AUTO}
    picked = {service.name: service.datapath for service in current}
    services = host.prepare(resolve(config, look_up))
    return tuple(host.pick(services, automatic, picked, config.queue))


def check(services: Sequence[Service], options: host.Options) -> None:
    """HostError if a running instance can't serve these services on this host."""
    host.check(services, options, host.survey(services))


def advise(services: Sequence[Service], options: host.Options) -> list[str]:
    """What may not be as intended with these services on this host, and what keeps clients away for
    now, as sentences."""
    found = list(host.advice(services))
    if not options.assign:
        found += host.advise(services, options, host.survey(services))
    return found


def prepare(config: Config, look_up: Lookup) -> tuple[tuple[Service, ...], host.HostPlan]:
    """What a new instance serves and what it changes on the host; HostError and ConfigError if it
    can't run."""
    services = find_services(config, look_up)
    options = host.Options(
        queue=host.free_queue(config.workers, services) if config.queue is None else config.queue,
        workers=config.workers,
        fail_open=config.fail_open,
        assign=config.assign,
    )
    # The ports of saved flows, and so their packets' queues, were given to workers by this seed.
    for path in flow_file.find(Journal().directory, options.queue):
        if flow_file.is_of_another_version(path):
            log.warning("%s: another version of featherlb saved these flows: not restored", path)
        shard = flow_file.read_shard(path)
        if shard is not None and shard.workers == options.workers:
            options = replace(options, hash_seed=shard.seed)
    facts = host.survey(services)
    host.check(services, options, facts)
    return services, host.build(services, options, facts)


def load_schedulers(config: Config, loaded: Mapping[str, bytes]) -> dict[str, bytes]:
    """The code of all users' schedulers in a configuration, by reference.

    What isn't the code that was `loaded` is run here first; ConfigError with every fault.
    """
    code: dict[str, bytes] = {}
    wrong: dict[str, str] = {}
    faults = []
    for service in config.services:
        reference = service.scheduler
        if is_file_reference(reference) and reference not in code and reference not in wrong:
            try:
                text = plugins.read(reference)
                if loaded.get(reference) != text:
                    plugins.load(reference, text)
                code[reference] = text
            except ConfigError as error:
                wrong[reference] = str(error)
        if reference in wrong:
            faults.append(Fault(service.scheduler_origin, wrong[reference]))
    refuse(faults)
    return code
