"""The settings of a run, in one place."""

from dataclasses import dataclass
from pathlib import Path

from scripts.e2e.promises import PROMISES

TOP = Path(__file__).parents[2]
RUNS = TOP / "tests" / "e2e" / "runs"
COMPOSE_FILES = {"full": TOP / "docker-compose.yml", "dnat": TOP / "docker-compose.dnat.yml"}
"""By NAT mode: `full` has everything on one network, `dnat` two networks."""
DAY_FILE = TOP / "docker-compose.day.yml"
DAY_CONFIG = TOP / "docker" / "config" / "day" / "featherlb.yaml"
VIP = "10.213.0.200"
PORT = 8080
"""Where the backends listen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of `python -m scripts.e2e` change them."""

    seconds: int = 10
    """Duration of the load for each scheduler."""
    threads: int = 12
    """wrk threads of all clients together, as are the connections."""
    connections: int = 400
    clients: int = 4
    """Containers that generate the load, each with its own address."""
    weights: tuple[int, ...] = (1, 2, 3)
    """Weights of the backends, one per backend."""
    nat: tuple[str, ...] = tuple(COMPOSE_FILES)
    datapath: str = "nfqueue"
    schedulers: tuple[str, ...] = tuple(PROMISES)
    timeout: int = 10
    """Seconds after which a request without a response counts as failed."""

    @property
    def threads_each(self) -> int:
        return max(1, self.threads // self.clients)

    @property
    def connections_each(self) -> int:
        """Connections that each client opens: wrk gives the same number to each thread."""
        return max(1, self.connections // self.clients // self.threads_each) * self.threads_each
