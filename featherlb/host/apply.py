"""One instance's state on the host: set up, replaced while it runs, and reverted; and the stale
state of dead instances.

All resources are in the journal before one is set up, so nothing is lost if this process is killed
in between. Not for a running asyncio loop (pyroute2's synchronous calls refuse that): call from a
thread there.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from ipaddress import ip_address

from featherlb.datapaths.host_side import Replies
from featherlb.host import deviations
from featherlb.host.deviations import ALL_KINDS, Deviation, Kind
from featherlb.host.orphans import Served, delete_flows, read_vips
from featherlb.host.plan import HostPlan
from featherlb.host.resources import (
    Assignment,
    Chains,
    Programs,
    Resource,
    Rules,
    Sets,
    Setting,
    changes,
    encode,
    newest_first,
)
from featherlb.host.survey import place, require_privileges
from featherlb.model import Address
from featherlb.model.counted import counted
from featherlb.model.errors import HostError
from featherlb.model.reason import Reason
from featherlb.system import (
    arp,
    flow_file,
    ipset,
    iptables,
    journal,
    nft_chains,
    programs,
    rtnetlink,
    state_file,
    sysctl,
)
from featherlb.system.ruleset import Ruleset

log = logging.getLogger("featherlb")

_LOST = (
    "and what it says can't be reverted: chains and sets are removed nevertheless; look at sysctls"
    " and addresses yourself"
)
"""What it means that a record is set aside."""

Keep = Callable[[journal.Record, list[Served]], bool]


class Host:
    """One instance's state on the host. As a context manager it reverts that on leaving."""

    def __init__(self, log: journal.Journal | None = None) -> None:
        self._journal = log or journal.Journal()
        self._plan: HostPlan | None = None
        self._resources: list[Resource] = []
        """In the order in which they were set up."""
        self._rules: dict[int, list[tuple[str, str]]] = {}
        """By address family, the rules as the kernel listed them once they were applied."""
        self._altered = False
        """Others have changed sets since the plan was set up."""
        self._changes = 0
        """How often the host was changed to a plan."""
        self._programs = False
        """Programs were set up: workers have their maps open, so they stay to the end."""
        self._refused: Counter[tuple[str, Reason]] = Counter()
        """What rules that are gone have refused."""

    def apply(self, plan: HostPlan) -> None:
        """Set up what the plan needs. HostError if the host refuses; nothing is left then.

        Adopts what a dead instance of the same number left.
        """
        stale = None
        with self._journal.locked():
            for record in self._journal.records():
                if record.instance == plan.instance and not record.alive:
                    self._resources = changes(record)
                    stale = record
            if place(self._journal) != (plan.order, plan.earlier):
                raise HostError(
                    "another instance of featherlb has started or stopped at the same moment;"
                    " try again"
                )
            try:
                self._change_to(plan)
            except BaseException:
                self._revert(self._resources)
                raise
            if stale is not None:
                delete_flows(stale.vips, stale.claims[Replies.TRACKED], vip_rows(plan))

    def update(self, plan: HostPlan) -> None:
        """Change to another plan of the same instance without a gap in the balancing.

        HostError if the host refuses; the old plan stays in force then.
        """
        if self._plan is None or plan.options != self._plan.options:
            raise ValueError("an update needs an applied plan with the same options")
        with self._journal.locked():
            old = self._plan
            try:
                self._change_to(plan)
            except BaseException:
                self._change_to(old)
                raise

    @property
    def plan(self) -> HostPlan | None:
        """The plan in force."""
        return self._plan

    def revert(self) -> tuple[list[str], list[str]]:
        """Revert everything but what another instance needs: the names of what was reverted, and as
        sentences what could not be and stays in the journal."""
        with self._journal.locked():
            plan = self._plan
            reverted, failures = self._revert(self._resources)
            if plan is not None:
                delete_flows(vip_rows(plan), plan.claims[Replies.TRACKED])
            return reverted, failures

    def hand_off(self, plan: HostPlan) -> None:
        """Change to a plan that stays on the host when this process has gone: the next instance
        adopts it, or `remove_stale` reverts it. HostError as `update`."""
        with self._journal.locked():
            before = self._plan
            self._change_to(plan)
            if before is not None:
                delete_flows(vip_rows(before), before.claims[Replies.TRACKED], vip_rows(plan))

    def deviations(self, kinds: Set[Kind] = ALL_KINDS) -> list[Deviation]:
        """Where the host differs from the plan because somebody else changed it. During an update
        the answer means nothing."""
        plan = self._plan
        found = list(deviations.find(plan, self._rules, kinds)) if plan else []
        self._altered = self._altered or any(one.kind is Kind.SETS for one in found)
        return found

    def refused(self) -> Counter[tuple[str, Reason]]:
        """How many packets the rules have refused since the instance started, by service and
        reason; without those of rules that others have replaced. HostError if the host doesn't
        say."""
        plan = self._plan
        return self._refused + _refused(plan) if plan else Counter()

    @property
    def away(self) -> dict[Address, bool]:
        """The VIPs that others give to this host, if the instance doesn't assign them, with whether
        they were no addresses of it when the plan was made."""
        plan = self._plan
        if plan is None or plan.options.assign:
            return {}
        vips = sorted({vip.address for _, vip in plan.vips if not vip.wildcard}, key=str)
        return {vip: vip in plan.foreign for vip in vips}

    def moved(self) -> bool:
        """Whether one of those has come or gone since."""
        return self._plan is not None and deviations.moved(self._plan)

    def glance(self) -> dict[Kind, object]:
        """Something that differs after most changes, cheaper than `deviations`; and after each
        change of our own, so that its outcome is compared."""
        plan, changes = self._plan, self._changes
        if plan is None:
            return {}
        return {kind: (changes, look) for kind, look in deviations.glance(plan).items()}

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.revert()

    def _change_to(self, plan: HostPlan) -> None:
        """Set up what the plan needs and the host lacks, then revert what it doesn't need."""
        before, self._plan = self._plan, plan
        refused: Counter[tuple[str, Reason]] = Counter()
        if before is not None:
            with suppress(HostError):
                refused = _refused(before)
        wanted = list(self._wanted(plan))
        names = {resource.name for resource in wanted}
        standing = {resource.name for resource in self._resources}
        later = {
            record.instance
            for record in self._journal.records()
            if record.alive and record.order > plan.order
        }
        # The programs of a dead instance may have had other workers.
        missing = [
            one
            for one in wanted
            if one.name not in standing
            or (isinstance(one, Programs) and one not in self._resources)
        ]
        if missing:
            set_up = {resource.name for resource in missing}
            self._resources = [one for one in self._resources if one.name not in set_up]
            self._resources += missing
            self._write()
        # A long list of networks takes seconds to write.
        lists: dict[str, ipset.Networks] = {}
        if before is not None and not self._altered:
            lists = {one.name: one for one in before.sets if isinstance(one, ipset.Networks)}
        fresh: dict[str, list[Address]] = {}
        with rtnetlink.asked_once():
            for resource in wanted:
                if not isinstance(resource, Assignment):
                    _set_up(resource, plan, later, lists)
                elif rtnetlink.add_address(ip_address(resource.address), resource.interface):
                    fresh.setdefault(resource.interface, []).append(ip_address(resource.address))
        self._altered = False
        self._refused += refused
        for interface, addresses in fresh.items():
            try:
                arp.announce(interface, addresses)
            except HostError as error:
                # They find out when they ask for it.
                log.warning("VIPs on %s were not announced: %s", interface, error)
        self._revert([resource for resource in self._resources if resource.name not in names])
        if plan.sets:
            ipset.remove(plan.instance, keep=frozenset(wanted.name for wanted in plan.sets))
        known = before.rules if before is not None else {}
        self._rules = {
            family: self._rules[family]
            if family in self._rules and known.get(family) == ruleset
            else _list_rules(plan.instance, family, ruleset, later)
            for family, ruleset in plan.rules.items()
        }
        self._changes += 1

    def _wanted(self, plan: HostPlan) -> Iterator[Resource]:
        claimed = {
            resource.name: resource
            for record in self._journal.records()
            for resource in changes(record)
        }
        for key, value in plan.settings:
            now = sysctl.read(key)
            if now is None:
                continue
            setting = Setting(key, value, ((key, now), *sysctl.changed_along(key)))
            # Only the first instance to change it knows the value before; if none did, the host
            # may have the right one already.
            if (first := claimed.get(setting.name)) is not None:
                yield first
            elif now != value:
                yield setting
        if plan.sets:
            yield Sets(plan.instance)
        if iptables.flavour() == "nft":
            yield from self._chains(plan, claimed)
        self._programs = self._programs or plan.programs
        if self._programs:
            yield Programs(plan.instance, plan.options.workers, plan.options.hash_seed)
        for family in plan.rules:
            yield Rules(plan.instance, family)
        for address, interface in plan.addresses:
            yield Assignment(str(address), interface)

    def _chains(self, plan: HostPlan, claimed: Mapping[str, Resource]) -> Iterator[Resource]:
        """What iptables makes of its own for the plan's rules."""
        for family, ruleset in plan.rules.items():
            for table in ruleset:
                there, chains = nft_chains.standing(family, table)
                missing = tuple(set(nft_chains.BUILT_IN[table]) - chains)
                made = Chains(family, table, tuple(sorted(missing)), not there)
                # As with settings: only the first instance knows what was there before.
                if (first := claimed.get(made.name)) is not None:
                    yield first
                elif missing:
                    yield made

    def _revert(self, resources: Iterable[Resource]) -> tuple[list[str], list[str]]:
        """Revert these, the last one first, except those that another instance needs; the answer
        is that of `revert`."""
        if self._plan is None:
            return [], []
        shared = {
            resource.name
            for record in self._journal.records()
            if record.instance != self._plan.instance
            for resource in changes(record)
        }
        failures = []
        reverted = []
        gone = set()
        with rtnetlink.asked_once():
            for resource in newest_first(list(resources)):
                try:
                    if resource.name not in shared:
                        resource.revert()
                        reverted.append(resource.name)
                    gone.add(resource.name)
                except HostError as error:
                    failures.append(str(error))
        self._resources = [one for one in self._resources if one.name not in gone]
        self._write()
        return reverted, failures

    def _write(self) -> None:
        assert self._plan is not None
        if not self._resources:
            self._journal.remove(self._plan.instance)
            return
        pid = os.getpid()
        started = journal.start_time(pid)
        assert started is not None
        self._journal.write(
            journal.Record(
                instance=self._plan.instance,
                workers=self._plan.options.workers,
                pid=pid,
                started=started,
                vips=vip_rows(self._plan),
                sources=tuple(sorted(self._plan.sources)),
                claims={
                    handling.value: tuple(sorted(backends))
                    for handling, backends in self._plan.claims.items()
                },
                order=self._plan.order,
                earlier=self._plan.earlier,
                offloads=self._plan.offloads,
                changes=tuple(map(encode, self._resources)),
            )
        )


def vip_rows(plan: HostPlan) -> tuple[journal.VipRow, ...]:
    """The plan's VIPs as the journal has them."""
    return tuple(
        (str(protocol), str(vip.address), vip.first_port, vip.last_port)
        for protocol, vip in plan.vips
    )


def remove_stale(
    log: journal.Journal | None = None, *, keep: Keep = lambda _record, _vips: False
) -> list[str]:
    """Revert what dead instances left; a line for each thing removed.

    `keep` gets the record of a dead instance and the VIPs that live ones serve, and says whether
    its state stays.

    Removes chains and sets of featherlb's that no record knows, too. HostError at the end if
    something could not be reverted: its record stays, so that this can be called again.
    """
    require_privileges()
    log = log or journal.Journal()
    with log.locked():
        return _remove_stale(log, keep)


def _remove_stale(log: journal.Journal, keep: Keep) -> list[str]:
    removed: list[str] = []
    failures: list[str] = []
    unknown: set[int] = set()
    """Instances of whose changes some are not known."""
    records = log.records()
    alive = [record for record in records if record.alive]
    vips = [vip for record in alive for vip in read_vips(record.vips)]
    staying = [record for record in records if record in alive or keep(record, vips)]
    needed = {resource.name for record in staying for resource in changes(record)}
    served = [vip for record in staying for vip in record.vips]
    for record in records:
        if record in staying:
            continue
        failed = []
        for resource in newest_first(changes(record)):
            if resource.name in needed:
                continue
            try:
                resource.revert()
                # Empty chains change nothing, and somebody else may use them now.
                if not isinstance(resource, Chains):
                    removed.append(f"{resource.name}, left by pid {record.pid}")
            except HostError as error:
                failed.append(str(error))
        # Last: without the rules, nothing opens new ones.
        if count := delete_flows(record.vips, record.claims[Replies.TRACKED], served):
            removed.append(
                f"{counted(count, 'connection tracking entry', 'connection tracking entries')}"
                f" of flows, left by pid {record.pid}"
            )
        if len(changes(record)) < len(record.changes):
            unknown.add(record.instance)
            log.set_aside(record.instance, "it has changes that this version doesn't know", _LOST)
        elif not failed:
            log.remove(record.instance)
        failures += failed
    known = {record.instance for record in records} - unknown | _set_aside_damaged(log)
    unrecorded: list[Resource] = [
        Rules(instance, family)
        for family in iptables.COMMANDS
        for instance in sorted(iptables.instances(family) - known)
    ]
    unrecorded += [Sets(instance) for instance in sorted(ipset.instances() - known)]
    unrecorded += [Programs(instance, 0, 0) for instance in sorted(programs.instances() - known)]
    for resource in unrecorded:
        try:
            resource.revert()
            removed.append(f"{resource.name}, of an instance without a record")
        except HostError as error:
            failures.append(str(error))
    if failures:
        raise HostError("; ".join(failures))
    return removed


def _set_aside_damaged(records: journal.Journal) -> set[int]:
    """Set aside the records that can't be read; the instances that run nevertheless, whose records
    are for another version."""
    running = set()
    for one in records.damaged():
        if one.used and one.instance is not None:
            running.add(one.instance)
            log.warning(
                "%s can't be used: %s; its instance runs, so it stays", one.path, one.reason
            )
        else:
            state_file.set_aside(one.path, one.reason, _LOST)
    return running


def seed_of_programs(instance: int, workers: int) -> int | None:
    """The seed by which programs that a dead instance of this number left share out their flows;
    None if there are none, or if it had another number of workers."""
    for record in journal.Journal().records():
        if record.instance == instance and not record.alive:
            for resource in changes(record):
                if isinstance(resource, Programs) and resource.workers == workers:
                    return resource.seed
    return None


def remove_saved_flows() -> list[str]:
    """Remove the flow files that ended instances saved; a line for each."""
    removed = []
    for path in flow_file.find_all(journal.Journal().directory):
        path.unlink(missing_ok=True)
        removed.append(f"saved flows ({path})")
    return removed


def _refused(plan: HostPlan) -> Counter[tuple[str, Reason]]:
    """How many packets these rules have refused so far, by service and reason."""
    found: Counter[tuple[str, Reason]] = Counter()
    for family in {one.family for one in plan.refusing}:
        ours = [one for one in plan.refusing if one.family == family]
        counts = iptables.packets(family, "raw", {one.chain for one in ours})
        for one in ours:
            # Somebody else may have flushed its chain.
            for count in counts[one.chain][one.position : one.position + 1]:
                found[one.service, one.reason] += count
    return found


def _list_rules(
    instance: int, family: int, ruleset: Ruleset, later: Collection[int]
) -> list[tuple[str, str]]:
    """The rules that have just been applied, as the kernel lists them. If somebody else has changed
    them at the same moment, they are applied again, and HostError if that happens every time: it
    must not be taken for what they should be."""
    size = sum(table.size for table in ruleset.values())
    for _ in range(iptables.TRIES):
        found = iptables.own(family, instance)
        if len(found) == size:
            return found
        iptables.replace(family, instance, ruleset, later)
    raise HostError(
        f"another program keeps changing the rules of {iptables.COMMANDS[family]}; try again"
    )


def _set_up(
    resource: Chains | Programs | Rules | Sets | Setting,
    plan: HostPlan,
    later: Collection[int],
    lists: Mapping[str, ipset.Networks],
) -> None:
    """Set a resource up, or bring it up to date; the rules of instances that started `later` stay
    in front. The sets named in `lists` have that content, if they are there."""
    match resource:
        case Setting(key, value):
            if sysctl.read(key) != value:
                sysctl.write(key, value)
        case Sets():
            standing = ipset.sizes() if lists else {}
            for wanted in plan.sets:
                _put(wanted, lists.get(wanted.name) if wanted.name in standing else None, plan)
        case Programs(instance):
            links = rtnetlink.links().values() if plan.programs else ()
            for refusal in programs.attach(instance, links):
                log.warning("%s", refusal)
        case Rules(instance, family):
            iptables.replace(family, instance, plan.rules[family], later)


def _put(wanted: ipset.AnySet, before: ipset.Networks | None, plan: HostPlan) -> None:
    """Give a set its content; it had that of `before`, if that is known."""
    if before is not None and isinstance(wanted, ipset.Networks):
        if wanted == before:
            return
        if wanted.family == before.family:
            with suppress(HostError):
                ipset.update(before, wanted)
                return
    ipset.put(wanted, plan.instance)
