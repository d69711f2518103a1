"""The `featherlb` command as a user starts it: in the balancer's namespace, by its name; and its
runtime API."""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlencode

from featherlb import COMPILED
from featherlb.host import remove_saved_flows
from featherlb.lab import Node

PROGRAM = str(Path(sys.executable).with_name("featherlb"))
START_TIMEOUT = 60
STOP_TIMEOUT = 40


def run(node: Node, *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `featherlb ARGUMENTS` to its end."""
    return subprocess.run(
        node.command([PROGRAM, *arguments]),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=START_TIMEOUT,
    )


class _Api(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("featherlb")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(START_TIMEOUT)
        self.sock.connect(self._path)


def api(
    node: Node, path: str, body: object = None, *, method: str = "", instance: int | None = None
) -> Any:
    """What the runtime API of the node's only instance, or of the one with this number, answers to
    GET /v1/PATH, or to POST if there is a `body`. What the commands print as JSON
    (`test_commands_show_what_the_api_answers`), without the start of a program."""
    table = node.call(Path("/proc/thread-self/net/unix").read_text)
    sockets = {line.split()[-1] for line in table.splitlines() if line.endswith(".sock")}
    name = ".sock" if instance is None else f"/{instance}.sock"
    (found,) = (one for one in sockets if one.startswith("/run/featherlb/") and one.endswith(name))
    connection = _Api(found)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method or ("GET" if body is None else "POST"), f"/v1/{path}", text)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)
    finally:
        connection.close()


def change(node: Node, action: str, service: str, backend: str, **more: object) -> None:
    """What `featherlb backend ACTION SERVICE BACKEND` does."""
    wanted = {"action": action, "service": service, "backend": backend, **more}
    api(node, "changes", wanted)


def reload(node: Node, **how: bool) -> list[str]:
    """What `featherlb reload` does; the differences that it prints."""
    differences: list[str] = api(node, "reload", how)["differences"]
    return differences


def worker_pids(node: Node) -> list[int]:
    """The processes of its workers, and not what the supervisor runs for a moment."""
    return [worker["pid"] for worker in api(node, "status")["workers"]]


def flows(node: Node, instance: int | None = None, **which: str) -> list[dict[str, Any]]:
    """What `featherlb flows` shows, with these of its filters."""
    query = urlencode({"limit": 10000, **which})
    answer = api(node, f"flows?{query}", instance=instance)
    found: list[dict[str, Any]] = answer["flows"]
    while answer["next"] is not None:
        answer = api(node, f"flows?{query}&cursor={answer['next']}", instance=instance)
        found += answer["flows"]
    return found


def kill(node: Node, instance: int | None = None, **which: str) -> int:
    """What `featherlb flows --kill` does, with these of its filters; how many it has ended."""
    path = f"flows?{urlencode(which)}"
    count: int = api(node, path, method="DELETE", instance=instance)["count"]
    return count


def _command_line(pid: str) -> str:
    """Of a process; empty if it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class Featherlb:
    """A running `featherlb up`; a context manager, see the `featherlb` fixture."""

    running: ClassVar[list["Featherlb"]] = []
    """Those whose block is being executed."""

    def __init__(
        self,
        node: Node,
        arguments: Sequence[str],
        directory: Path,
        program: Sequence[str] = (PROGRAM,),
    ) -> None:
        """`program` may put another program in front that executes featherlb."""
        self.node = node
        self.arguments = arguments
        self.program = program
        self.directory = directory
        self.forgets = True
        """Whether the next instance has nothing of its flows: tests share labs."""
        self._killed = False

    def __enter__(self) -> Self:
        # A file, because a pipe that nobody reads would block a talkative program.
        self._log = tempfile.TemporaryFile("w+")
        self.process = self.node.popen(
            [*self.program, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=self.directory,
        )
        self._lines: Queue[str | None] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.running.append(self)
        try:
            while (line := self._lines.get(timeout=START_TIMEOUT)) != "ready\n":
                assert line is not None, f"featherlb ended without `ready`:\n{self.log}"
            assert self.compiled is COMPILED, "not the form of the packet path that is tested"
        except (AssertionError, Empty):
            self.kill()
            self._end()
            raise
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    @property
    def title(self) -> str:
        return f"log of featherlb {' '.join(self.arguments)}"

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        # pread leaves the offset alone, which the program shares.
        return os.pread(self._log.fileno(), 1 << 24, 0).decode()

    @property
    def compiled(self) -> bool:
        """Whether its processes, workers included, have loaded the compiled packet path."""
        children: list[str] = []
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            # A thread may end while it is looked at.
            with suppress(OSError):
                children += (task / "children").read_text().split()
        # Others are scripts of health checks, which come and go.
        workers = [pid for pid in children if "featherlb.worker" in _command_line(pid)]
        assert workers
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in (self.pid, *workers)]
        (form,) = {"/featherlb/core/" in one for one in maps}
        return form

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """kill -9, as an operator or the kernel would."""
        self._killed = True
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if not self._killed:
                assert self.stop() == 0
                assert "Traceback" not in self.log
            if self.forgets:
                self.node.call(remove_saved_flows)
        finally:
            self._end()

    def _end(self) -> None:
        self.running.remove(self)
        print(f"--- {self.title}\n{self.log}---")
        self._log.close()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
