"""What the log says of the state in force."""

import asyncio
import logging
import os
from collections.abc import Mapping

from featherlb import host
from featherlb.config import advise
from featherlb.config.resolve import absent
from featherlb.control.events import Events
from featherlb.control.prepare import advise as advise_here
from featherlb.control.prepare import distrust
from featherlb.control.transition import State
from featherlb.model import Service

log = logging.getLogger("featherlb")


class Notices:
    """Remembers what the log has, so that it doesn't repeat it."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._absent: Mapping[tuple[str, str], str] = {}
        """Why backends are absent, by service and backend."""
        self._refused: Mapping[str, str] = {}
        """Why the addresses of names are not used."""
        self._lines: Mapping[str, int] = {}
        """What was announced last, each line with its level."""

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
        """Say what is served, and what may not be as intended with it, as far as that has changed
        since the last time."""
        lines = {f"{one.origin}: {one.text}": logging.WARNING for one in advise(state.config)}
        distrusted = distrust(state.config) if os.geteuid() == 0 else ()
        for text in (*distrusted, *await asyncio.to_thread(advise_here, state.services, options)):
            lines[text] = logging.WARNING
        for service in state.services:
            lines[describe(service)] = logging.INFO
            if not service.backends:
                text = (
                    f"{service.name} has no backend and refuses connections: add one with --backend"
                    " IP:PORT, in the configuration file, or with `featherlb backend add`"
                )
                lines[text] = logging.WARNING
        before, self._lines = self._lines, lines
        for text, level in lines.items():
            if text not in before:
                log.log(level, "%s", text)


def describe(service: Service) -> str:
    """A service in one line."""
    vips = ", ".join(map(str, service.vips))
    backends = ", ".join(map(str, service.backends)) or "no backend"
    return (
        f"{service.name}: {service.protocol} on {vips}, {service.scheduler}, {service.nat},"
        f" {service.datapath} to {backends}"
    )
