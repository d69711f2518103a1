"""Watches what this instance has set up on the host, and decides when to restore it.

Other programs change rules, sets, settings and addresses: a firewall that reloads, a network
manager, an operator. The kernel announces changes of addresses and of nf_tables' rules; for the
rest a glance every few seconds is enough. What looks different is compared with the plan in full
(`host.deviations`), and everything is, once a minute.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from featherlb import host
from featherlb.control.events import Events
from featherlb.model.counted import counted
from featherlb.model.errors import HostError
from featherlb.system import nft_monitor, rtnetlink

DEBOUNCE = 0.02
"""Seconds to wait for more changes after the first: they come in swarms."""
GLANCE_INTERVAL = 2.0
"""Seconds between two glances."""
FULL_INTERVAL = 60.0
"""Seconds between two comparisons in full of what gave no reason for one."""
REST, LONGEST_REST = 10, 2.0
"""After a comparison, the next one waits for so many times the processor time of that, and so many
seconds at most: where others change their rules all the time, comparing takes little of it."""
CALM = 60.0
"""Seconds without a restoration after which the next one doesn't wait."""
PAUSES = (1.0, 16.0)
"""Seconds that a restoration waits after the one before: at first, and after doubling at most. Two
programs that undo each other's work must not keep a processor busy."""


class BackOff:
    """When to restore the host next. Sans-IO; times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self.due = float("-inf")
        """Not earlier than this."""
        self._pause = 0.0
        self._last = float("-inf")

    def restored(self, now: float) -> None:
        """It was restored, or that was tried."""
        calm = now - self._last > CALM
        self._pause = PAUSES[0] if calm else min(2 * self._pause, PAUSES[1])
        self._last = now
        self.due = now + self._pause


@dataclass(frozen=True, slots=True)
class HostView:
    """How the host is, compared with what the instance needs."""

    restoring: bool = True
    """What others change is restored."""
    deviations: tuple[str, ...] = ()
    """What others have changed and nobody has restored, as sentences."""
    restored: Mapping[str, int] = field(default_factory=dict)
    """How often something was restored, by kind (`host.Kind`)."""
    last: str = ""
    """When that was last, ISO 8601 in UTC; empty if never."""
    repairs: str = ""
    """What was restored then."""


class HostWatch:
    """What is known of the host. Answers of `suspects` are compared in full; `note` takes what was
    found, `restored` or `failed` what came of it."""

    def __init__(self, events: Events, glance: Callable[[], Mapping[host.Kind, object]]) -> None:
        """`glance` blocks, see `Host.glance`."""
        self._events = events
        self._glance = glance
        self._back_off = {kind: BackOff() for kind in host.Kind}
        self._standing: dict[host.Kind, tuple[host.Deviation, ...]] = {}
        """What differs, as far as it was compared."""
        self._right: dict[host.Kind, object] = {}
        """What the glance showed when nothing differed."""
        self._seen: Mapping[host.Kind, object] = {}
        """What it showed last."""
        self._announced: set[host.Kind] = set()
        """What the kernel has announced changes of since then."""
        self._latest = ""
        """Who has made the last one, if the kernel said so."""
        self._author = ""
        """Who has made those that are being compared."""
        self._wake = asyncio.Event()
        self._full = float("-inf")
        """When everything is compared next."""
        self._restored: Counter[host.Kind] = Counter()
        self._last = ""
        self._repairs = ""
        self._error = ""
        """Why the host can't be restored; empty if it can."""
        self._holding = False
        """The rules are not adapted to VIPs that have come or gone, and the log says so."""
        self._contested = float("-inf")
        """Until when the log has it that something keeps changing this host."""

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of changes until this ends. HostError if the kernel announces none."""
        loop = asyncio.get_running_loop()
        with (
            closing(rtnetlink.Monitor(rtnetlink.RTMGRP_ADDRESSES)) as addresses,
            closing(nft_monitor.Monitor()) as rules,
        ):
            loop.add_reader(addresses.fileno(), self._read_addresses, addresses)
            loop.add_reader(rules.fileno(), self._read_rules, rules)
            # What has changed before is found by comparing everything.
            self._full = float("-inf")
            try:
                yield
            finally:
                loop.remove_reader(addresses.fileno())
                loop.remove_reader(rules.fileno())

    async def suspects(self) -> frozenset[host.Kind]:
        """Wait until something may have changed, and say of which kinds."""
        while True:
            now = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next_look(now) - now):
                    await self._wake.wait()
                await asyncio.sleep(DEBOUNCE)
            self._wake.clear()
            self._seen = await asyncio.to_thread(self._glance)
            kinds = {*self._announced, *self._standing}
            self._author = self._latest if host.Kind.RULES in self._announced else ""
            self._announced.clear()
            kinds.update(kind for kind, look in self._seen.items() if look != self._right.get(kind))
            if time.monotonic() >= self._full:
                self._full = time.monotonic() + FULL_INTERVAL
                kinds.update(host.ALL_KINDS)
            if kinds:
                return frozenset(kinds)

    def note(
        self, kinds: Set[host.Kind], found: Sequence[host.Deviation], *, restoring: bool
    ) -> bool:
        """All that differs of these kinds. Whether to restore it now, if that is wanted at all."""
        before = {one.text for each in self._standing.values() for one in each}
        for kind in kinds:
            self._standing.pop(kind, None)
            if differing := tuple(one for one in found if one.kind is kind):
                self._standing[kind] = differing
            elif kind in self._seen:
                self._right[kind] = self._seen[kind]
        now = time.monotonic()
        ours = {one.kind for one in found if one.ours and restoring}
        due = min((self._back_off[kind].due for kind in ours), default=None)
        if due is not None and due <= now:
            return True
        if {one.text for one in found} - before:
            self._report(found, None if due is None else due - now)
        elif before and not self._standing:
            self._holding = False
            self._events.emit("host-right", "this host is as it should be again")
        return False

    def restored(self, found: Sequence[host.Deviation]) -> None:
        """These were restored."""
        self._tried(found)
        ours = [one for one in found if one.ours]
        self._restored.update({one.kind for one in ours})
        self._last = datetime.now(UTC).isoformat(timespec="seconds")
        self._repairs = ", ".join(host.repairs(ours))
        self._error = ""
        for kind, differing in list(self._standing.items()):
            del self._standing[kind]
            if others := tuple(one for one in differing if not one.ours):
                self._standing[kind] = others
        self._events.emit(
            "host-restored",
            f"this host was changed{self._by(ours)}: {self._repairs}",
            logging.WARNING,
        )

    def hold_vips(self) -> None:
        """The rules are not adapted to VIPs that have come or gone."""
        if not self._holding:
            self._events.emit(
                "vips-not-followed",
                "VIPs have become addresses of this host, or are no longer, but the rules are not"
                " adapted: others have changed them, and `restore` is false; `featherlb reload`"
                " restores and adapts them",
                logging.WARNING,
            )
        self._holding = True

    def failed(self, error: HostError) -> None:
        """It could not be compared, or not restored."""
        standing = [one for each in self._standing.values() for one in each]
        self._tried(standing)
        if str(error) != self._error:
            self._error = str(error)
            text = f"what others change on this host can't be restored now: {error}"
            self._events.emit("host-not-restored", text, logging.ERROR)

    def view(self, *, restoring: bool) -> HostView:
        """What is known now."""
        return HostView(
            restoring=restoring,
            deviations=tuple(one.text for each in self._standing.values() for one in each),
            restored={kind.value: self._restored[kind] for kind in host.Kind},
            last=self._last,
            repairs=self._repairs,
        )

    def _report(self, found: Sequence[host.Deviation], wait: float | None) -> None:
        more = len(found) - 1
        text = f"this host was changed{self._by(found)}: {found[0].text}"
        if more:
            text += f", and {counted(more, 'more difference')}"
        if wait is None and any(one.repair for one in found):
            text += "; `featherlb reload` restores it"
        elif wait is not None:
            # Each restoration is reported, too.
            contested, self._contested = self._contested, time.monotonic() + CALM
            if time.monotonic() < contested:
                return
            text += f"; something keeps changing it, so it is restored in {math.ceil(wait)} s"
        self._events.emit("host-changed", text, logging.WARNING)

    def _tried(self, found: Sequence[host.Deviation]) -> None:
        for kind in {one.kind for one in found}:
            self._back_off[kind].restored(time.monotonic())

    def _by(self, found: Sequence[host.Deviation]) -> str:
        changed = any(one.kind is host.Kind.RULES for one in found)
        return f" by {self._author}" if changed and self._author else ""

    def _next_look(self, now: float) -> float:
        waiting = [due for kind in self._standing if (due := self._back_off[kind].due) > now]
        return min(now + GLANCE_INTERVAL, self._full, *waiting)

    def _read_addresses(self, monitor: rtnetlink.Monitor) -> None:
        with suppress(OverflowError):
            monitor.read()
        self._announced.add(host.Kind.ADDRESSES)
        self._wake.set()

    def _read_rules(self, monitor: nft_monitor.Monitor) -> None:
        try:
            author = monitor.read()
        except OverflowError:
            author = ""
        if author is not None:
            self._latest = author
            self._announced.add(host.Kind.RULES)
            self._wake.set()
