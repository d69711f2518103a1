"""What the log says of the state in force."""

import asyncio
import logging
from collections.abc import Mapping

from featherlb import host
from featherlb.config import advise
from featherlb.config.resolve import absent
from featherlb.control.events import Events
from featherlb.control.prepare import advise as advise_here
from featherlb.control.transition import State

log = logging.getLogger("featherlb")


class Notices:
    """Remembers what the log has, so that it doesn't repeat it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._absent: Mapping[tuple[str, str], str] = {}
        """Why backends are absent, by service and backend."""
        self._refused: Mapping[str, str] = {}
        """Why the addresses of names are not used."""

    def tell_of_absent(self, state: State) -> None:
        """Say which backends are absent, which ones are no longer, and which addresses of names are
        not used."""
        now = absent(state.places)
        for (service, backend), reason in now.items():
            if self._absent.get((service, backend)) != reason:
                self._events.emit(
                    "backend-absent",
                    f"{service}: backend {backend} is absent: {reason}",
                    logging.WARNING,
                    service=service,
                    backend=backend,
                    reason=reason,
                )
        for service, backend in self._absent.keys() - now.keys():
            self._events.emit(
                "backend-present",
                f"{service}: backend {backend} is absent no longer",
                service=service,
                backend=backend,
            )
        self._absent = now
        for name, reason in state.refused.items():
            if self._refused.get(name) != reason:
                text = f"the latest addresses of '{name}' can't be used: {reason}"
                self._events.emit("name-refused", text, logging.WARNING, name=name, reason=reason)
        self._refused = state.refused

    async def announce(self, state: State, options: host.Options) -> None:
        """Say what is served, and what may not be as intended with it."""
        for fault in advise(state.config):
            log.warning("%s: %s", fault.origin, fault.text)
        for line in await asyncio.to_thread(advise_here, state.services, options):
            log.warning("%s", line)
        for service in state.services:
            log.info(
                "%s: %s on %s, %s, %s, %s to %s",
                service.name,
                service.protocol,
                ", ".join(map(str, service.vips)),
                service.scheduler,
                service.nat,
                service.datapath,
                ", ".join(map(str, service.backends)) or "no backend",
            )
            if not service.backends:
                log.warning(
                    "%s has no backend and refuses connections: add one with --backend IP:PORT,"
                    " in the configuration file, or with `featherlb backend add`",
                    service.name,
                )
