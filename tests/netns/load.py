"""Load on the VIP while a test does something else: netns/load.py on the lab's client."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from featherlb.lab import Lab, load
from featherlb.lab.namespaces import VIP
from tests.netns.traffic import wait_for

PAUSE = "0.02"
"""Seconds between a worker's requests: enough of them to meet every change, and some of the
processor left for what the test does."""


class Load:
    """Requests over `kept` open connections and by `short` workers that connect for each one,
    from `__enter__` (which waits for the first answers) to `stop`."""

    def __init__(self, lab: Lab, kept: int, short: int) -> None:
        self._lab = lab
        self._arguments = [VIP, "80", str(kept), str(short), PAUSE]
        self.latest: dict[str, Any] = {"requests": 0}

    def __enter__(self) -> Self:
        script = str(Path(load.__file__))
        self._process = self._lab.client.popen(
            [sys.executable, "-I", "-S", script, *self._arguments], stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self.latest["requests"] > 0, "the first answer")
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.latest = json.loads(line)

    def wait_for_more(self) -> None:
        """Until there are further answers."""
        before = self.latest["requests"]
        wait_for(lambda: self.latest["requests"] > before, "another answer")

    def stop(self) -> dict[str, Any]:
        """End it; its last report (see netns/load.py)."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        return self.latest

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        assert self._process.stdout is not None
        self._process.stdout.close()
