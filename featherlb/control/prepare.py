"""From a configuration to services that this host can run, checked before anything changes.

All of it is blocking: not for a running asyncio loop.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from featherlb import host
from featherlb.config import AUTO, Config, Places
from featherlb.config.faults import Fault, refuse
from featherlb.config.resolve import build, place
from featherlb.config.types import NetworkFile
from featherlb.model import Address, Service
from featherlb.model.errors import ConfigError, FeatherlbError
from featherlb.model.shard import remembered_prefix
from featherlb.model.user_code import UserCode
from featherlb.system import flow_file, plugins, rtnetlink, state_file, trust
from featherlb.system.journal import Journal

log = logging.getLogger("featherlb")


Answers = Mapping[str, Sequence[Address]]
"""The addresses of host names; none for one that can't be resolved."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a configuration comes to on this host, by these answers."""

    services: tuple[Service, ...]
    places: Places
    answers: Answers
    refused: Mapping[str, str] = field(default_factory=dict)
    """The names whose addresses are others than the latest, which can't be used, with the reason.
    """


def find_services(config: Config, answers: Answers, current: Sequence[Service] = ()) -> Found:
    """The services with names resolved and datapaths picked.

    `current` services keep the datapath that was picked for them, if it still works.
    """

    def look_up(name: str) -> Sequence[Address]:
        return answers.get(name, ())

    automatic = {service.name for service in config.services if service.datapath == AUTO}
    picked = {service.name: service.datapath for service in current}
    places = place(config, look_up)
    services = host.prepare(build(config, places, look_up))
    # What other nodes are to know of flows, workers tell them.
    by_workers = config.cluster is not None
    chosen = host.pick(services, automatic, picked, config.queue, by_workers=by_workers)
    return Found(tuple(chosen), places, answers)


def check(services: Sequence[Service], options: host.Options) -> None:
    """HostError if a running instance can't serve these services on this host."""
    host.check(services, options, host.survey(services))


def advise(services: Sequence[Service], options: host.Options) -> list[str]:
    """What may not be as intended with these services on this host, and what keeps clients away for
    now, as sentences."""
    found = [*host.advice(services), *_forgetful(services, options)]
    if not options.assign:
        found += host.advise(services, options, host.survey(services))
    return found


def distrust(config: Config) -> Iterator[str]:
    """Which code and scripts others than root may change, as sentences: root runs them. And
    which lists of clients, which root obeys."""
    for service in config.services:
        for listed in (*service.allow, *service.deny):
            if isinstance(listed, NetworkFile) and (reason := trust.fault(Path(listed.path))):
                yield (
                    f"service '{service.name}': {listed} says who may connect, and {reason}: give"
                    " it to root, with mode 0644 or less"
                )
        for reference, (_, origin) in service.user_code.items():
            path = Path(reference.rpartition(":")[0])
            if reason := trust.fault(path):
                yield (
                    f"{origin}: root runs {path}, and {reason}: give it to root,"
                    " with mode 0755 or less"
                )
        check = service.health
        if check is not None and check.command and check.user in (None, "root"):
            program, *arguments = check.command
            programs = [shutil.which(program) or program]
            # What an interpreter is given to run.
            programs += [one for one in arguments if one.endswith((".sh", ".py", ".pl", ".rb"))]
            for path in map(Path, programs):
                if reason := trust.fault(path):
                    yield (
                        f"service '{service.name}': root runs {path}, and {reason}: give it to"
                        " root, or set `user:` for the check"
                    )


def _forgetful(services: Sequence[Service], options: host.Options) -> Iterator[str]:
    """Services whose clients this instance doesn't keep at one worker, as it has started without
    them."""
    for service in services if options.workers > 1 else ():
        for family, prefix in ((4, options.prefix4), (6, options.prefix6)):
            wanted = remembered_prefix([service], family)
            if wanted and not 0 < prefix <= wanted:
                limited = bool(service.admission.prefixes)
                does = "knows" if limited else "remembers"
                yield (
                    f"until the next start, each of the {options.workers} workers {does} the"
                    f" clients of service '{service.name}' on its own, and a client may meet any of"
                    f" them, as there was no such {'limit' if limited else 'persistence'} when this"
                    " instance started"
                    + (": each worker has its part of the limits" if limited else "")
                )


def with_names(
    answers: Answers,
    before: Answers,
    attempt: Callable[[Answers], Found],
    refused: Mapping[str, str] | None = None,
) -> Found:
    """The result of an attempt with these answers. If it fails, without those that are to blame:
    such a name keeps the addresses of `before`. FeatherlbError if names are not to blame.

    `refused` has names that were to blame before.
    """
    reasons = {name: text for name, text in (refused or {}).items() if name in answers}
    try:
        return _explained(attempt(answers), reasons)
    except FeatherlbError:
        news = [name for name, found in answers.items() if found != before.get(name, ())]
        if not news:
            raise
    accepted = {**answers, **{name: before.get(name, ()) for name in news}}
    result = attempt(accepted)
    groups = [news]
    while groups:
        group = groups.pop()
        trial = accepted | {name: answers[name] for name in group}
        try:
            result = attempt(trial)
        except FeatherlbError as error:
            if len(group) == 1:
                reasons[group[0]] = str(error)
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        else:
            accepted = trial
    return _explained(result, reasons)


def _explained(found: Found, refused: Mapping[str, str]) -> Found:
    """With the reason at the backends that are absent because of it."""
    places = {
        service: [
            replace(one, problem=refused.get(str(one.backend.host), one.problem))
            if one.address is None
            else one
            for one in ours
        ]
        for service, ours in found.places.items()
    }
    return replace(found, places=places, refused=refused)


def prepare(config: Config, answers: Answers) -> tuple[Found, host.HostPlan]:
    """What a new instance serves and what it changes on the host; HostError and ConfigError if it
    can't run."""
    plans: list[host.HostPlan] = []

    def attempt(answers: Answers) -> Found:
        found = find_services(config, answers)
        plans.append(_plan(config, found.services))
        return found

    with rtnetlink.asked_once():
        return with_names(answers, {}, attempt), plans[-1]


def _plan(config: Config, services: Sequence[Service]) -> host.HostPlan:
    options = host.Options(
        queue=host.free_queue(config.workers, services) if config.queue is None else config.queue,
        workers=config.workers,
        fail_open=config.fail_open,
        assign=config.assign,
        prefix4=remembered_prefix(services, 4),
        prefix6=remembered_prefix(services, 6),
    )
    # The ports of saved flows, and so their packets' queues, were given to workers by this seed.
    for path in flow_file.find(Journal().directory, options.queue):
        if reason := flow_file.fault(path):
            state_file.set_aside(path, reason, "and its flows are not restored")
            continue
        if flow_file.is_of_another_version(path):
            log.warning("%s: another version of featherlb saved these flows: not restored", path)
        shard = flow_file.read_shard(path)
        if shard is not None and shard.workers == options.workers:
            options = replace(options, hash_seed=shard.seed)
    seed = host.seed_of_programs(options.queue, options.workers)
    if seed is not None:
        options = replace(options, hash_seed=seed)
    facts = host.survey(services)
    host.check(services, options, facts)
    return host.build(services, options, facts)


def load_code(config: Config, loaded: Mapping[str, UserCode]) -> dict[str, UserCode]:
    """All users' code in a configuration, by reference.

    What isn't the code that was `loaded` is run here first; ConfigError with every fault.
    """
    code: dict[str, UserCode] = {}
    wrong: dict[str, str] = {}
    faults = []
    for service in config.services:
        for reference, (kind, origin) in service.user_code.items():
            if reference not in code and reference not in wrong:
                try:
                    found = UserCode(kind, plugins.read(reference))
                    if loaded.get(reference) != found:
                        plugins.load(reference, found)
                    code[reference] = found
                except ConfigError as error:
                    wrong[reference] = str(error)
            if reference in wrong:
                faults.append(Fault(origin, wrong[reference]))
    refuse(faults)
    return code
