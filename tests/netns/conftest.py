"""What the kernel tests share: a lab, and the installed `featherlb` command running in it."""

import fcntl
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from featherlb.lab import Lab
from featherlb.lab.servers import HttpServer
from featherlb.system import bpffs, programs
from tests.netns.command import Featherlb

DRIVERS = {
    "netlink": ("--driver", "netlink"),
    "netfilterqueue": ("--driver", "netfilterqueue"),
    "raw": ("--datapath", "raw"),
    "offload": ("--datapath", "offload"),
}
"""What the tests of the data path run with: both queue drivers, and the other datapaths."""
SEEING = ("netlink", "netfilterqueue", "raw")
"""For what can only be done where every packet passes featherlb."""
QUEUEING = ("netlink", "netfilterqueue")
"""Those of the datapath nfqueue."""

EBPF = {"ebpf": ("--datapath", "ebpf")}
"""A datapath that is the datapath nfqueue but for packets of open flows: only tests of those run
with it. With NETLINK_IS_EBPF=1 in the environment, it takes the place of the queue driver netlink
in all tests, which then run with this driver alone."""
if NETLINK_IS_EBPF := os.environ.get("NETLINK_IS_EBPF") == "1":
    DRIVERS["netlink"] = EBPF["ebpf"]

ONE_DRIVER = pytest.mark.parametrize("driver", ["netlink"], indirect=True)
"""For what the queue driver has no part in: `pytestmark = ONE_DRIVER`."""

WATCHED_OR_ASKED = pytest.mark.parametrize("driver", ["netlink", "offload"], indirect=True)
"""For what follows from the states of connections, which featherlb sees for itself or asks for."""
QUEUED = pytest.mark.parametrize("driver", QUEUEING, indirect=True)
"""For what only the datapath nfqueue can do."""
SERVED = pytest.mark.usefixtures("web_servers")
"""For modules whose tests ask the backends over HTTP: `pytestmark = SERVED`."""


def all_pairs(
    drivers: Iterable[str] = tuple(DRIVERS), **values: Sequence[object]
) -> pytest.MarkDecorator:
    """Run over so many combinations that any two values, of the drivers' or of these parameters',
    meet in one: the next to nothing that only three at once could break is left out."""

    def pairs(case: tuple[object, ...]) -> set[tuple[object, ...]]:
        return set(itertools.combinations(enumerate(case), 2))

    every = list(itertools.product(drivers, *values.values()))
    missing = set().union(*map(pairs, every))
    chosen = []
    while missing:
        chosen.append(max(every, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return _over(chosen, values)


def in_turn(
    drivers: Iterable[str] = tuple(DRIVERS), **values: Sequence[object]
) -> pytest.MarkDecorator:
    """Run once per driver, with one combination after the other of these parameters' values: for
    what the drivers' own code has little part in. Every combination must have had its turn."""
    turns = list(itertools.product(*values.values()))
    cases = [(driver, *turn) for driver, turn in zip(drivers, itertools.cycle(turns), strict=False)]
    assert len(cases) >= len(turns)
    return _over(cases, values)


def _over(cases: Sequence[object], values: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("driver", *values),
        cases,
        indirect=["driver"],
        ids=lambda value: getattr(value, "name", None),
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.kernel)
    if config.getoption("--one-of-each") or NETLINK_IS_EBPF:
        left_out = set(ours) - (with_netlink(ours) if NETLINK_IS_EBPF else one_of_each(ours))
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def with_netlink(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """The cases that run with the queue driver netlink."""
    return {
        item
        for item in items
        if isinstance(item, pytest.Function)
        and hasattr(item, "callspec")
        and item.callspec.params.get("driver") == "netlink"
    }


def one_of_each(items: Iterable[pytest.Item]) -> set[pytest.Item]:
    """One case of each test function that packets pass. Where several functions have the same
    choice of drivers, each driver has its turn, and likewise their other parameters.

    Goes by names alone, so that all processes of a run choose the same, in whatever order.
    """
    functions: dict[tuple[Path, str], list[pytest.Function]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        assert isinstance(item, pytest.Function)
        if item.get_closest_marker("no_packets") is None:
            functions.setdefault((item.path, item.originalname), []).append(item)
    chosen: set[pytest.Item] = set()
    often: Counter[object] = Counter()
    for cases in functions.values():
        chosen.add(_next_case(cases, often))
    return chosen


def _next_case(cases: Sequence[pytest.Function], often: Counter[object]) -> pytest.Function:
    """The case whose driver, then whose combination, and then whose other parameters have been
    chosen least `often` so far, which this counts."""
    parameters = [
        {name: str(value) for name, value in case.callspec.params.items()}
        if hasattr(case, "callspec")
        else {}
        for case in cases
    ]
    choice = {name: frozenset(one[name] for one in parameters) for name in parameters[0]}

    def counted(number: int) -> list[object]:
        values = parameters[number]
        single = [(choice[name], name, values[name]) for name in sorted(values)]
        single.sort(key=lambda one: one[1] != "driver")
        return [*single[:1], tuple(single), *single[1:]]

    number = min(range(len(cases)), key=lambda number: [often[one] for one in counted(number)])
    often.update(counted(number))
    return cases[number]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A two-armed lab with two clients and three backends."""
    with Lab(clients=2, backends=3) as lab:
        yield lab


@pytest.fixture
def web_servers(lab: Lab) -> Iterator[None]:
    """HTTP servers on port 8080 of the lab's backends, for as long as the test runs."""
    with ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield


def use_iptables(flavour: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have iptables of this flavour (`legacy` or `nft`) found by the plain names, by whatever a
    test starts, as update-alternatives arranges it."""
    for family in ("iptables", "ip6tables"):
        for name in (family, f"{family}-save", f"{family}-restore"):
            target = shutil.which(name.replace(family, f"{family}-{flavour}"))
            assert target
            (directory / name).symlink_to(target)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for running in Featherlb.running:
            report.sections.append((running.title, running.log))
    return report


@pytest.fixture(params=DRIVERS, scope="session")
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["dnat", "full"], scope="module")
def nat(request: pytest.FixtureRequest) -> str:
    """The NAT mode of a module's instance."""
    mode: str = request.param
    return mode


@pytest.fixture(scope="session", autouse=NETLINK_IS_EBPF)
def shared_bpffs() -> None:
    """A BPF file system that all commands see: one that `ip netns exec` mounts ends with it."""
    Path("/run/featherlb").mkdir(exist_ok=True)
    descriptor = os.open("/run/featherlb", os.O_RDONLY | os.O_DIRECTORY)
    try:
        # Several processes run tests, and each would mount one over the other's.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        bpffs.mount(programs.ROOT)
    finally:
        os.close(descriptor)


class Up(Protocol):
    def __call__(self, lab: Lab, *arguments: str) -> AbstractContextManager[Featherlb]: ...


@pytest.fixture(scope="session")
def featherlb(driver: str, tmp_path_factory: pytest.TempPathFactory) -> Up:
    """`with featherlb(lab, "--vip", ...) as running:` runs `featherlb up` on the lab's balancer.

    It has printed `ready` when the block begins. When the block ends it is stopped by SIGTERM,
    must exit with 0. Its log is shown where a test fails.
    """
    directory = tmp_path_factory.mktemp("featherlb")

    def up(lab: Lab, *arguments: str) -> AbstractContextManager[Featherlb]:
        return Featherlb(lab.balancer, ("up", *(DRIVERS | EBPF)[driver], *arguments), directory)

    return up
