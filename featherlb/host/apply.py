"""One instance's changes to the host: made, replaced while running, undone; and what others left.

Each change is in the journal before it is made, so nothing is lost when this process is killed in
between. Not for a running asyncio loop (pyroute2's synchronous calls refuse that): call from a
thread there.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from ipaddress import ip_address
from types import TracebackType

from featherlb.host.orphans import Served, give_up, read_vips
from featherlb.host.plan import HostPlan
from featherlb.host.resources import Assignment, Change, Rules, Sets, Setting, decode, encode
from featherlb.host.survey import place, require_privileges
from featherlb.model.errors import HostError
from featherlb.system import arp, flow_file, ipset, iptables, journal, network, sysctl

Spare = Callable[[journal.Record, list[Served]], bool]


class Host:
    """What one instance has changed. As a context manager it undoes that on leaving."""

    def __init__(self, log: journal.Journal | None = None) -> None:
        self._journal = log or journal.Journal()
        self._plan: HostPlan | None = None
        self._changes: list[Change] = []
        self._rules: dict[int, list[str]] = {}
        """By address family, the rules as they stood when they had been made."""

    def apply(self, plan: HostPlan) -> None:
        """Make the plan's changes. HostError if the host refuses one; nothing is left then.

        What a dead instance of the same number has left is taken over.
        """
        left = None
        with self._journal.locked():
            for record in self._journal.records():
                if record.instance == plan.instance and not record.alive:
                    self._changes = [decode(data) for data in record.changes]
                    left = record
            if place(self._journal) != (plan.order, plan.earlier):
                raise HostError(
                    "another instance of featherlb has started or stopped at the same moment;"
                    " try again"
                )
            try:
                self._move_to(plan)
            except BaseException:
                self._undo(self._changes)
                raise
            if left is not None:
                give_up(left.vips, left.carried, vip_rows(plan))

    def update(self, plan: HostPlan) -> None:
        """Go over to another plan of the same instance without a gap in the balancing.

        HostError if the host refuses a change; the old plan is in force then.
        """
        if self._plan is None or plan.options != self._plan.options:
            raise ValueError("an update needs an applied plan with the same options")
        with self._journal.locked():
            old = self._plan
            try:
                self._move_to(plan)
            except BaseException:
                self._move_to(old)
                raise

    @property
    def plan(self) -> HostPlan | None:
        """What is in force."""
        return self._plan

    def undo(self) -> list[str]:
        """Undo everything; what could not be undone, as sentences, and stays in the journal."""
        with self._journal.locked():
            plan = self._plan
            failures = self._undo(self._changes)
            if plan is not None:
                give_up(vip_rows(plan), plan.carried)
            return failures

    def rest(self, plan: HostPlan) -> None:
        """Go over to a plan that stays on the host when this process has gone: the next instance
        takes it over, or `remove_leftovers` undoes it. HostError as `update`."""
        with self._journal.locked():
            before = self._plan
            self._move_to(plan)
            if before is not None:
                give_up(vip_rows(before), before.carried, vip_rows(plan))

    def deviations(self) -> list[str]:
        """What somebody else has changed of what the plan demands, as sentences."""
        plan = self._plan
        if plan is None:
            return []
        found = []
        for family, before in self._rules.items():
            command = iptables.COMMANDS[family]
            now = iptables.own(family, plan.instance)
            found += [f"the {command} rule `{rule}` is gone" for rule in before if rule not in now]
            found += [
                f"the {command} rule `{rule}` is not featherlb's"
                for rule in now
                if rule not in before
            ]
        for wanted in plan.sets:
            if ipset.entries(wanted.name) != set(wanted.entries):
                found.append(f"the ipset {wanted.name} is gone or has other entries")
        for key, value in plan.settings:
            if (now_set := sysctl.read(key)) not in (None, value):
                found.append(f"{sysctl.dotted(key)} is {now_set} and has to be {value}")
        if plan.addresses:
            here = {own.address.ip for own in network.addresses()}
            found += [
                f"the VIP {address} is no address of this host any more"
                for address, _ in plan.addresses
                if address not in here
            ]
        return found

    def __enter__(self) -> "Host":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _move_to(self, plan: HostPlan) -> None:
        """Make what the plan needs and doesn't stand yet, then undo what it doesn't need."""
        self._plan = plan
        wanted = list(self._wanted(plan))
        resources = {change.resource for change in wanted}
        standing = {change.resource for change in self._changes}
        later = {
            record.instance
            for record in self._journal.records()
            if record.alive and record.order > plan.order
        }
        for change in wanted:
            if change.resource not in standing:
                self._changes.append(change)
                self._write()
            _make(change, plan, later)
        self._undo([change for change in self._changes if change.resource not in resources])
        if plan.sets:
            ipset.remove(plan.instance, keep=frozenset(wanted.name for wanted in plan.sets))
        self._rules = {family: iptables.own(family, plan.instance) for family in plan.rules}

    def _wanted(self, plan: HostPlan) -> Iterator[Change]:
        claimed = {
            change.resource: change
            for record in self._journal.records()
            for change in map(decode, record.changes)
        }
        for key, value in plan.settings:
            now = sysctl.read(key)
            if now is None:
                continue
            setting = Setting(key, value, ((key, now), *sysctl.changed_along(key)))
            # Who changed it first knows how it was before; if nobody did, it may be right as is.
            if (first := claimed.get(setting.resource)) is not None:
                yield first
            elif now != value:
                yield setting
        if plan.sets:
            yield Sets(plan.instance)
        for family in plan.rules:
            yield Rules(plan.instance, family)
        for address, interface in plan.addresses:
            yield Assignment(str(address), interface)

    def _undo(self, changes: Iterable[Change]) -> list[str]:
        """Undo these changes, the last one first, but for those that another instance needs."""
        if self._plan is None:
            return []
        others = {
            change.resource
            for record in self._journal.records()
            if record.instance != self._plan.instance
            for change in map(decode, record.changes)
        }
        failures = []
        for change in reversed(list(changes)):
            try:
                if change.resource not in others:
                    change.undo()
                self._changes.remove(change)
            except HostError as error:
                failures.append(str(error))
        self._write()
        return failures

    def _write(self) -> None:
        assert self._plan is not None
        if not self._changes:
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
                raw=tuple(sorted(self._plan.raw)),
                queued=tuple(sorted(self._plan.queued)),
                carried=tuple(sorted(self._plan.carried)),
                untracked=tuple(sorted(self._plan.untracked)),
                order=self._plan.order,
                earlier=self._plan.earlier,
                carries=self._plan.carries,
                changes=tuple(map(encode, self._changes)),
            )
        )


def vip_rows(plan: HostPlan) -> tuple[journal.VipRow, ...]:
    """The plan's VIPs as the journal has them."""
    return tuple(
        (str(protocol), str(vip.address), vip.first_port, vip.last_port)
        for protocol, vip in plan.vips
    )


def remove_leftovers(
    log: journal.Journal | None = None, *, spare: Spare = lambda _record, _vips: False
) -> list[str]:
    """Undo what instances have left that are no longer alive; a line for each thing removed.

    What dead ones have left stays that are to be spared, in view of what VIPs the others serve.

    Chains and sets of featherlb's that no record knows are removed as well. HostError at the
    end if something could not be undone: its record stays, so that this can be called again.
    """
    require_privileges()
    log = log or journal.Journal()
    with log.locked():
        return _remove_leftovers(log, spare)


def _remove_leftovers(log: journal.Journal, spare: Spare) -> list[str]:
    removed: list[str] = []
    failures: list[str] = []
    records = log.records()
    alive = [record for record in records if record.alive]
    vips = [vip for record in alive for vip in read_vips(record.vips)]
    staying = [record for record in records if record in alive or spare(record, vips)]
    needed = {change.resource for record in staying for change in map(decode, record.changes)}
    served = [vip for record in staying for vip in record.vips]
    for record in records:
        if record in staying:
            continue
        failed = []
        for data in reversed(record.changes):
            change = decode(data)
            if change.resource in needed:
                continue
            try:
                change.undo()
                removed.append(f"{change.resource}, left by pid {record.pid}")
            except HostError as error:
                failed.append(str(error))
        # Last: without the rules, nothing makes new ones.
        if count := give_up(record.vips, record.carried, served):
            removed.append(
                f"{count} connection tracking {'entry' if count == 1 else 'entries'}"
                f" of flows, left by pid {record.pid}"
            )
        if not failed:
            log.remove(record.instance)
        failures += failed
    known = {record.instance for record in records}
    strays: list[Change] = [
        Rules(instance, family)
        for family in iptables.COMMANDS
        for instance in sorted(iptables.instances(family) - known)
    ]
    strays += [Sets(instance) for instance in sorted(ipset.instances() - known)]
    for change in strays:
        try:
            change.undo()
            removed.append(f"{change.resource}, of an instance without a record")
        except HostError as error:
            failures.append(str(error))
    if failures:
        raise HostError("; ".join(failures))
    return removed


def forget_flows() -> list[str]:
    """Remove what instances have saved that ended; a line for each."""
    removed = []
    for path in flow_file.find(journal.Journal().directory):
        path.unlink(missing_ok=True)
        removed.append(f"saved flows ({path})")
    return removed


def _make(change: Change, plan: HostPlan, later: Collection[int]) -> None:
    """Bring the change about, with regard to the instances that have started `later`; one that
    stands already is brought up to date."""
    match change:
        case Setting(key, value):
            if sysctl.read(key) != value:
                sysctl.write(key, value)
        case Sets():
            for wanted in plan.sets:
                ipset.replace(wanted, plan.instance)
        case Rules(instance, family):
            iptables.replace(family, instance, plan.rules[family], later)
        case Assignment(address, interface):
            if network.add_address(ip_address(address), interface):
                arp.announce(interface, [ip_address(address)])
