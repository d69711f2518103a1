"""What background tasks do in a round: they take in what has changed around an instance. When, see
`background`."""

from collections.abc import Collection

from featherlb import host
from featherlb.config import Config
from featherlb.config.resolve import names
from featherlb.control.events import Events
from featherlb.control.prepare import Answers
from featherlb.control.serving import Overrides, Serving
from featherlb.control.transition import EndFlows, host_part
from featherlb.model import Endpoint, OnBackendDown, Protocol
from featherlb.model.errors import HostError


class Upkeep:
    """Keeps what is served in step with backends, names and the host."""

    def __init__(self, serving: Serving, events: Events) -> None:
        self._serving = serving
        self._events = events
        self._tried: Answers = {}
        """The addresses of names that were to be served last."""

    async def apply_health(self) -> None:
        """Send no new flows to backends that are down, and treat their old ones as configured.
        FeatherlbError if that fails."""
        health = self._serving.health
        changes, health.changes = health.changes, set()
        try:
            await self._serving.reweigh(changes)
        except BaseException:
            health.changes |= changes
            raise
        while health.fallen:
            await self._end_flows_of_fallen(*health.fallen[0])
            del health.fallen[0]

    async def observe_outcomes(self) -> None:
        """Judge backends by the outcome of clients' connections. Workers that hang are killed."""
        serving = self._serving
        state, settled = serving.state, not serving.applying
        outcomes = await serving.data.workers.outcomes(serving.health.watched)
        # While services change it isn't certain which ones the counts belong to.
        if serving.state is state and settled and not serving.applying:
            serving.health.observe(state.services, [one.by_service for one in outcomes])
            await serving.data.cookies.observe(outcomes, state.services)
            await serving.data.refused_clients.observe(outcomes, state.services)

    async def release_departed(self) -> None:
        """Remove from the host what departed backends needed whose last flow has ended. HostError
        if the host refuses."""
        for name, endpoint in await self._serving.release_departed():
            self._events.emit(
                "backend-left",
                f"{name}: {endpoint} has left: its last flow ended",
                service=name,
                backend=str(endpoint),
            )

    def unresolved(self) -> list[str]:
        """The host names without an address."""
        return [name for name, found in self._serving.state.names.items() if not found]

    async def refresh_names(self, wanted: Collection[str] | None = None) -> None:
        """Look up these host names, or all, and serve their addresses if they have changed.
        FeatherlbError if that fails."""
        serving = self._serving
        await serving.resolver.refresh(names(serving.state.running) if wanted is None else wanted)
        await self.apply_names(again=wanted is None)

    async def apply_names(self, *, again: bool = False) -> None:
        """Serve the addresses of names if they have changed, and `again` those that could not be
        used before. FeatherlbError if that fails."""
        serving = self._serving
        answers = serving.resolver.answers(names(serving.state.running))
        if answers == serving.state.names or (answers == self._tried and not again):
            return
        async with serving.one_at_a_time():
            before = serving.state
            self._tried = answers
            await serving.serve(before.config, _same, moved=True)
            if host_part(serving.state.services) != host_part(before.services):
                self._events.emit("names-changed", "backend names resolve to new addresses")
                await serving.announce()

    async def keep_host(self, suspects: frozenset[host.Kind]) -> None:
        """Restore what others have changed on the host, if that is configured, and follow VIPs that
        others give to it; only what is one of the `suspects`."""
        serving, data = self._serving, self._serving.data
        watch = data.watch
        try:
            found = await data.deviations(suspects)
            moved = host.Kind.ADDRESSES in suspects and await data.vips_moved()
            if not found and not moved:
                watch.note(suspects, found, restoring=serving.state.config.restore)
                return
            async with serving.one_at_a_time():
                # The first look may have met a change of our own.
                found = await data.deviations(suspects)
                if watch.note(suspects, found, restoring=serving.state.config.restore):
                    await data.restore(found)
                    watch.restored(found)
                if moved:
                    await self._follow_vips()
        except HostError as error:
            if not serving.stopping:
                watch.failed(error)

    async def _follow_vips(self) -> None:
        """Adapt the rules to VIPs that have come or gone, which replaces all of them: what others
        have changed is restored along with it, so this waits where that isn't wanted."""
        data = self._serving.data
        found = await data.deviations()
        if any(one.ours for one in found) and not self._serving.state.config.restore:
            data.watch.hold_vips()
            return
        await data.follow_vips()
        if restored := [one for one in found if one.ours and one.repair]:
            data.watch.restored(restored)

    async def _end_flows_of_fallen(self, name: str, endpoint: Endpoint) -> None:
        running = self._serving.state.running
        service = next((one for one in running.services if one.name == name), None)
        if service is None:
            return
        policy = service.on_backend_down
        # A UDP client would wait in vain, and loses nothing with another backend.
        if policy is not OnBackendDown.KEEP or service.protocol is Protocol.UDP:
            ending = EndFlows(name, endpoint, policy is OnBackendDown.RESET)
            await self._serving.data.execute(ending)


def _same(config: Config, overrides: Overrides) -> Overrides:
    return overrides
