"""Notifies systemd of the service's state (sd_notify(3)). Without NOTIFY_SOCKET, that is without
systemd, every call does nothing.
"""

import os
import socket
from collections.abc import Mapping


class Notifier:
    """The way to the service manager that started this process."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._path = environment.get("NOTIFY_SOCKET", "")
        watchdog = environment.get("WATCHDOG_USEC", "")
        self.watchdog_interval = int(watchdog) / 2e6 if watchdog.isdecimal() else None
        """Seconds between signs of life, half of what systemd allows; None if it asks for none."""

    def ready(self) -> None:
        """Packets are being balanced."""
        self._notify("READY=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def alive(self) -> None:
        """The watchdog need not act."""
        self._notify("WATCHDOG=1")

    def _notify(self, state: str) -> None:
        if not self._path:
            return
        # An @ stands for the zero byte of an abstract address (unix(7)).
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                # A manager that doesn't read must not hold up the supervisor.
                sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)
            except OSError:
                # It will act by itself if it misses the sign of life.
                return
