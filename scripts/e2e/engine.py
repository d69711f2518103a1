"""Runs Docker: the `docker` command, and either generation of compose.

A failing command raises EngineError with its last lines of output.
"""

import fcntl
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path(tempfile.gettempdir(), "featherlb-e2e.lock")
TIMEOUT = 60
"""Seconds to wait for a container."""


class EngineError(Exception):
    """A Docker command failed; says which, and why."""


def obstacle() -> str | None:
    """Why containers can't run on this host, and the fix; None if they can."""
    if not shutil.which("docker"):
        return "no `docker` command is installed: apt-get install docker.io docker-compose"
    ended = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if ended.returncode:
        return "no Docker engine answers: start one, with `systemctl start docker` or `dockerd`"
    if _compose_command() is None:
        return "neither `docker compose` nor `docker-compose` is installed"
    return None


def docker(*arguments: str) -> str:
    """Run `docker ARGUMENTS`; returns its output."""
    return _run(["docker", *arguments], os.environ)


def versions() -> dict[str, str]:
    """Versions of the engine, compose and the image's featherlb."""
    command = _compose_command() or ()
    return {
        "engine": docker("version", "--format", "{{.Server.Version}}").strip(),
        "compose": _run([*command, "version", "--short"], os.environ).strip(),
        "featherlb": docker("run", "--rm", "featherlb", "--version").strip(),
    }


def wait_for(condition: Callable[[], bool], what: str, timeout: float = TIMEOUT) -> None:
    """Poll until the condition holds; EngineError on timeout."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise EngineError(f"timed out after {timeout:.0f} s waiting for {what}")
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Container:
    """One container, by its id."""

    id: str

    def exec(self, *command: str) -> str:
        """Run a program in it; returns its output."""
        return docker("exec", self.id, *command)

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        """Start a program in it."""
        return subprocess.Popen(
            ["docker", "exec", self.id, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def facts(self) -> Any:
        return json.loads(docker("inspect", self.id))[0]

    @property
    def name(self) -> str:
        return str(self.facts["Config"]["Hostname"])

    @property
    def addresses(self) -> dict[str, str]:
        """IPv4 addresses by network name of the compose file."""
        networks = self.facts["NetworkSettings"]["Networks"].items()
        return {name.rpartition("_")[2]: network["IPAddress"] for name, network in networks}

    @property
    def log(self) -> str:
        """Its output since its last start."""
        since = self.facts["State"]["StartedAt"]
        ended = subprocess.run(
            ["docker", "logs", "--since", since, self.id],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return ended.stdout

    def wait_until_ready(self) -> None:
        """Wait for featherlb's `ready`; EngineError with its log if it ends instead."""

        def ready() -> bool:
            state = self.facts["State"]
            if not state["Running"]:
                raise EngineError(f"featherlb has ended:\n{self.log}")
            return "ready" in self.log.splitlines()

        wait_for(ready, "featherlb's `ready`")


@dataclass(frozen=True, slots=True)
class Project:
    """The containers of a compose file. `environment` fills in its variables."""

    file: Path
    environment: Mapping[str, str]

    def compose(self, *arguments: str) -> str:
        """Run compose on this file; returns its output."""
        command = _compose_command()
        if command is None:
            raise EngineError(str(obstacle()))
        name = ["--project-name", "featherlb-e2e", "--file", str(self.file)]
        return _run([*command, *name, *arguments], {**os.environ, **self.environment})

    def containers(self, service: str) -> list[Container]:
        """The running containers of a service, in the order of their numbers."""
        found = [Container(line) for line in self.compose("ps", "-q", service).split()]
        number = "com.docker.compose.container-number"
        return sorted(found, key=lambda one: int(one.facts["Config"]["Labels"][number]))

    @contextmanager
    def up(self, *arguments: str) -> Iterator[None]:
        """Run its containers inside the block, then remove them and their networks.

        Projects share their addresses, so only one runs at a time; others wait.
        """
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self.compose("up", "--detach", "--no-build", *arguments)
                yield
            finally:
                self.compose("down", "--timeout", "3", "--volumes", "--remove-orphans")


def build(top: Path) -> None:
    """Build the images, and their base images if no registry offers them."""
    places = {"featherlb": top}
    places |= {f"featherlb-{name}": top / "docker" / name for name in ("backend", "client")}
    dockerfiles = [str(place / "Dockerfile") for place in places.values()]
    _run([str(top / "scripts" / "base_images.sh"), *dockerfiles], os.environ)
    for tag, place in places.items():
        docker("build", "--quiet", "--tag", tag, str(place))


@functools.cache
def _compose_command() -> tuple[str, ...] | None:
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]):
            ended = subprocess.run([*command, "version"], capture_output=True)
            if ended.returncode == 0:
                return command
    return None


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        words = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-10:]
        raise EngineError(f"{' '.join(command[:4])} … failed: " + "\n".join(words))
    return ended.stdout
