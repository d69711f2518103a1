"""`python -m scripts.trials.faults`: what clients lose by one fault at a time.

Each fault is made while clients of all kinds are served on every datapath, lasts some seconds, and
is lifted as an operator would do it. Counted are open connections that break, new ones that fail,
datagrams without an answer, and the longest time for which clients of a datapath waited. Prints a
table; the exit code is 1 if something is lost that need not be.
"""

import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import click

from featherlb.lab.namespaces import NAMESPACE_DIRECTORY, VIP
from featherlb.model import Datapath
from featherlb.system import flow_file
from featherlb.system.journal import Journal
from scripts.bench.facts import gather
from scripts.bench.report import table
from scripts.trials.disturbances import Excuse, flood, nothing, this_host_answers
from scripts.trials.stage import PROGRAM, Clients, Event, Seen, Stage, is_alive, stage, wait_for

LONG, EVERY = 4, 0.2
BEFORE, HOLD = 3.0, 3.0
RECOVERY = 90.0
"""Seconds within which everything has to be served again."""
AGES = 7200.0
"""Seconds by which a clock is put forward: longer than saved flows are kept."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`making` is in force until it is lifted. `excuse` says what may be lost, and `reason` why
    that can't be helped."""

    name: str
    making: Callable[[Stage], Iterator[None]]
    excuse: Excuse = nothing
    reason: str = ""
    full: bool = False
    """It fills the directory of state."""
    apart: bool = False
    """Each datapath has an instance of its own: what `offload` leaves behind keeps a VIP on this
    host, which then resets the connections of the others."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What the clients of a datapath lost."""

    open: int
    broken: int
    tried: int
    failed: int
    lost: int
    gap: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one fault, by datapath; `faults` are losses without an excuse, and what went wrong."""

    fault: Fault
    losses: dict[Datapath, Loss]
    faults: list[str]


def kill_worker(stage: Stage) -> Iterator[None]:
    os.kill(stage.instance.workers()[0], signal.SIGKILL)
    yield


def stop_worker(stage: Stage) -> Iterator[None]:
    dead = stage.instance.workers()[0]
    os.kill(dead, signal.SIGSTOP)
    yield
    wait_for(lambda: not is_alive(dead), "the worker is replaced", 60)


def kill_supervisor(stage: Stage) -> Iterator[None]:
    stage.instance.kill()
    yield
    stage.instance.start()


def stop_supervisor(stage: Stage) -> Iterator[None]:
    os.kill(stage.instance.pid, signal.SIGSTOP)
    yield
    os.kill(stage.instance.pid, signal.SIGCONT)


def kill_everything(stage: Stage) -> Iterator[None]:
    for pid in (*stage.instance.workers(), stage.instance.pid):
        os.kill(pid, signal.SIGKILL)
    stage.instance.kill()
    yield
    stage.instance.start()


def restart(stage: Stage) -> Iterator[None]:
    yield
    stage.instance.stop(signal.SIGUSR2)
    stage.instance.start()


def stop_and_start(stage: Stage) -> Iterator[None]:
    yield
    stage.instance.stop()
    stage.instance.start()


def restart_later(stage: Stage) -> Iterator[None]:
    """The clock is put forward in between."""
    yield
    stage.instance.stop(signal.SIGUSR2)
    then = time.time() - AGES
    for path in flow_file.find(stage.lab.balancer.call(Journal).directory):
        os.utime(path, (then, then))
    stage.instance.start()


def no_memory(stage: Stage) -> Iterator[None]:
    """Processes get no more address space, and many flows are opened."""
    pids = (stage.instance.pid, *stage.instance.workers())
    before = {
        pid: resource.prlimit(pid, resource.RLIMIT_AS, (_kilobytes(pid, "VmSize") << 10, -1))
        for pid in pids
    }
    flood(stage)
    yield
    _lift(resource.RLIMIT_AS, before)
    if not stage.instance.running:
        # As the service manager does with what has failed.
        stage.instance.start()


def killed_for_memory(stage: Stage) -> Iterator[None]:
    """A control group with next to nothing: the kernel kills the worker."""
    worker = stage.instance.workers()[0]
    group = Path("/sys/fs/cgroup/memory", stage.lab.run_id)
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("65536")
        (group / "cgroup.procs").write_text(str(worker))
        # Its pages count here from when it uses others: its successor is not in the group.
        flood(stage)
        yield
        wait_for(lambda: not is_alive(worker), "the worker is killed")
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "an empty group")
        group.rmdir()


def no_descriptors(stage: Stage) -> Iterator[None]:
    """No process can open anything."""
    pids = (stage.instance.pid, *stage.instance.workers())
    before = {}
    for pid in pids:
        used = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, hard))
        before[pid] = soft, hard
    os.kill(stage.instance.pid, signal.SIGHUP)
    yield
    _lift(resource.RLIMIT_NOFILE, before)


def _lift(limit: int, before: Mapping[int, tuple[int, int]]) -> None:
    """Give processes the limits back that they had, unless they have ended."""
    for pid, limits in before.items():
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, limit, limits)


def full_disk(stage: Stage) -> Iterator[None]:
    """/run is full: a worker dies, and the configuration is reloaded."""
    directory = stage.lab.balancer.call(Journal).directory
    _fill(directory)
    os.kill(stage.instance.workers()[0], signal.SIGKILL)
    stage.configure([0, 1])
    stage.lab.balancer.run([PROGRAM, "reload"], check=False)
    yield
    _empty(directory)
    stage.configure([0, 1, 2])
    stage.lab.balancer.run([PROGRAM, "reload"])


def restart_with_full_disk(stage: Stage) -> Iterator[None]:
    directory = stage.lab.balancer.call(Journal).directory
    _fill(directory)
    yield
    stage.instance.stop(signal.SIGUSR2)
    _empty(directory)
    stage.instance.start()


@contextmanager
def little_room(stage: Stage) -> Iterator[None]:
    """The instance's directory of state has room for little."""
    directory = stage.lab.balancer.call(Journal).directory
    directory.mkdir(parents=True, exist_ok=True)
    small = ["-t", "tmpfs", "-o", "size=512k,mode=700", "none"]
    subprocess.run(["mount", *small, directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def _fill(directory: Path) -> None:
    with (directory / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _empty(directory: Path) -> None:
    (directory / "filling").unlink()


def conntrack_full(stage: Stage) -> Iterator[None]:
    """Other connections take all places of the table, and can't be evicted."""
    room = int(stage.lab.balancer.sysctl("net.netfilter.nf_conntrack_max"))
    with tempfile.NamedTemporaryFile("w") as file:
        for number in range(room):
            third, port = divmod(number, 60000)
            file.write(
                f"-I -p tcp -s 172.16.0.1 -d 172.16.{third}.2 --sport {port + 1} --dport 9"
                " --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 600\n"
            )
        file.flush()
        stage.lab.balancer.run(["conntrack", "-R", file.name], check=False)
    yield
    stage.lab.balancer.run(["conntrack", "-D", "--orig-src", "172.16.0.1"], check=False)


def link_down(link: str) -> Callable[[Stage], Iterator[None]]:
    """Of the balancer: its cable is pulled out."""

    def making(stage: Stage) -> Iterator[None]:
        net = stage.lab.balancer.namespace.removesuffix("lb") + "net"
        port = ["ip", "-n", net, "link", "set", f"lb-{link}"]
        subprocess.run([*port, "down"], check=True)
        yield
        subprocess.run([*port, "up"], check=True)

    return making


def remove_vip(stage: Stage) -> Iterator[None]:
    shown = stage.lab.balancer.run(["ip", "-o", "address", "show", "to", VIP]).stdout
    found = re.search(r"\d: (\S+) +inet (\S+)", shown)
    assert found
    stage.lab.balancer.run(["ip", "address", "delete", found[2], "dev", found[1]])
    yield


def flush_iptables(stage: Stage) -> Iterator[None]:
    for family in ("iptables", "ip6tables"):
        for of in ("raw", "mangle"):
            stage.lab.balancer.run([family, "-t", of, "-F"])
    yield


def flush_ruleset(stage: Stage) -> Iterator[None]:
    stage.lab.balancer.run(["nft", "flush", "ruleset"])
    yield


def move_neighbour(stage: Stage) -> Iterator[None]:
    """A backend's addresses are at another MAC address, and it tells nobody."""
    backend = stage.lab.backends[0]
    address = backend.run(["cat", "/sys/class/net/eth0/address"]).stdout.strip()
    other = "02" + address[2:-2] + f"{int(address[-2:], 16) ^ 1:02x}"
    backend.run(["ip", "link", "set", "eth0", "address", other])
    yield


def delete_namespace(stage: Stage) -> Iterator[None]:
    """Its name: it lives on in the processes."""
    name = stage.lab.balancer.namespace
    subprocess.run(["ip", "netns", "delete", name], check=True)
    assert not (NAMESPACE_DIRECTORY / name).exists()
    yield
    subprocess.run(["ip", "netns", "attach", name, str(stage.instance.pid)], check=True)


def _kilobytes(pid: int, key: str) -> int:
    found = re.search(rf"(?m)^{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def queued(stage: Stage, event: Event) -> bool:
    """Connections of the datapaths that keep them in processes, and of those that begin."""
    return event.kind != "corrupt" and not event.service.startswith(Datapath.OFFLOAD)


def of_offload(stage: Stage, event: Event) -> bool:
    """New connections that connection tracking must have."""
    return event.kind == "failed" and event.service.startswith(Datapath.OFFLOAD)


def anything(stage: Stage, event: Event) -> bool:
    """But no wrong bytes."""
    return event.kind != "corrupt"


ALL: Sequence[Fault] = (
    Fault("worker killed (kill -9)", kill_worker),
    Fault("worker stopped (SIGSTOP)", stop_worker),
    Fault("worker killed by the kernel for memory", killed_for_memory),
    Fault("supervisor killed, started again", kill_supervisor),
    Fault("supervisor stopped (SIGSTOP)", stop_supervisor),
    Fault("all processes killed at once, started again", kill_everything, queued,
          "flows are in the memory of the processes"),
    Fault("upgrade in place (SIGUSR2 and start)", restart),
    Fault("the same, and the clock put forward 2 hours meanwhile", restart_later),
    Fault("stop (SIGTERM) and start", stop_and_start, anything,
          "in between the host is as it was, and resets what reaches its addresses", apart=True),
    Fault("no memory for any process, flood of SYNs", no_memory),
    Fault("no descriptors for any process, reload", no_descriptors),
    Fault("/run full, a worker killed, reload", full_disk, full=True),
    Fault("/run full, restart", restart_with_full_disk, queued,
          "there is no room to save flows", full=True),
    Fault("connection tracking table full", conntrack_full, of_offload,
          "the kernel has no entry to give"),
    Fault("link to the clients down", link_down("front")),
    Fault("link to the backends down", link_down("back"), of_offload,
          "the kernel tells new clients that the host can't be reached, as a router does"),
    Fault("VIP removed", remove_vip),
    Fault("rules flushed (iptables -F)", flush_iptables, this_host_answers,
          "until they are restored, the host answers for an address that it has"),
    Fault("rules flushed (nft flush ruleset)", flush_ruleset, anything,
          "likewise; and without a chain of nat the kernel translates nothing"),
    Fault("neighbour moved without a word", move_neighbour),
    Fault("network namespace deleted (its name)", delete_namespace),
)  # fmt: skip


def run(ready: Stage, fault: Fault) -> tuple[dict[Datapath, Loss], list[str]]:
    """Start an instance, make a fault under load, and stop it; what was lost, and losses that the
    fault is no excuse for."""
    faults: list[str] = []
    with little_room(ready) if fault.full else nullcontext():
        ready.instance.start()
        with ready.clients(LONG, EVERY) as clients:
            time.sleep(BEFORE)
            wait_until_served(ready, clients)
            making = fault.making(ready)
            next(making)
            time.sleep(HOLD)
            try:
                next(making, None)
                seen = wait_until_served(ready, clients)
            except RuntimeError as error:
                faults.append(str(error))
                seen = clients.take()
        ready.instance.stop()
    # Those that still waited for an answer have had their time.
    seen.events += clients.take().events
    lost = Counter(
        f"{event.service}: {event.kind}: {event.why}"
        for event in seen.events
        if not fault.excuse(ready, event)
    )
    faults += [f"{text} ({count} times)" for text, count in lost.items()]
    return losses(ready, seen), faults


def wait_until_served(ready: Stage, clients: Clients) -> Seen:
    """Until every service has answered within a second twice in a row; what was seen meanwhile.
    RuntimeError if that takes too long."""
    total = Seen()
    calm = 0

    def served() -> bool:
        nonlocal calm
        time.sleep(1)
        seen = clients.take()
        for name, gap in seen.gap.items():
            total.gap[name] = max(total.gap.get(name, 0), gap)
        total.opened += seen.opened
        total.answers += seen.answers
        total.lost += seen.lost
        total.events += seen.events
        all_of_them = all(seen.answers[one.name] for one in ready.targets)
        calm = calm + 1 if all_of_them and max(seen.gap.values()) < 1.5 else 0
        return calm == 2

    wait_for(served, "all services answer", RECOVERY)
    return total


def losses(ready: Stage, seen: Seen) -> dict[Datapath, Loss]:
    """By datapath."""
    found = {}
    for datapath in dict.fromkeys(one.datapath for one in ready.targets):
        names = {one.name for one in ready.targets if one.datapath is datapath}
        streams = {one.name for one in ready.targets if one.name in names and one.protocol == "tcp"}
        events = [event.kind for event in seen.events if event.service in names]
        failed = events.count("failed")
        found[datapath] = Loss(
            open=LONG * len(streams),
            broken=events.count("broken"),
            tried=sum(seen.opened[name] for name in streams) + failed,
            failed=failed,
            lost=sum(seen.lost[name] for name in names),
            gap=max(seen.gap.get(name, 0.0) for name in names),
        )
    return found


def describe(outcomes: Sequence[Outcome], command: str) -> str:
    """A table in Markdown."""
    facts = gather(command.split())
    datapaths = list(outcomes[0].losses)
    parts = [
        f"{facts['date']}, {facts['cores']} cores ({facts['processor']}), Linux {facts['kernel']},"
        f" commit {facts['commit']}, load average {facts['load_before']:.0f}: `{command}`"
    ]
    rows = []
    for outcome in outcomes:
        cells = []
        for datapath in datapaths:
            loss = outcome.losses[datapath]
            cells.append(f"{loss.broken} / {loss.failed} / {loss.lost} / {loss.gap:.1f} s")
        rows.append([outcome.fault.name, *cells, outcome.fault.reason])
    parts.append(table(["fault", *datapaths, "why"], rows))
    wrong = [f"- {one.fault.name}: {text}" for one in outcomes for text in one.faults]
    parts.append("\n".join(["Faults:", "", *wrong]) if wrong else "Nothing else was lost.")
    return "\n\n".join(parts) + "\n"


@click.command()
@click.option("--only", multiple=True, help="Faults with this in their names.")
@click.option("--output", default="faults", show_default=True, help="Writes OUTPUT.md, OUTPUT.log.")
def main(only: tuple[str, ...], output: str) -> None:
    """Measure what clients lose by one fault at a time. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("creating network namespaces requires root")
    chosen = [one for one in ALL if not only or any(part in one.name for part in only)]
    if not chosen:
        raise click.UsageError("no fault has such a name")
    outcomes = []
    log = ""
    with tempfile.TemporaryDirectory(prefix="featherlb-faults-") as directory:
        for fault in chosen:
            outcome = Outcome(fault, {}, [])
            for datapath in Datapath if fault.apart else (None,):
                with stage(Path(directory), datapath) as ready:
                    if ready.targets:
                        losses, faults = run(ready, fault)
                        outcome.losses.update(losses)
                        outcome.faults.extend(faults)
                        log += ready.instance.log
            outcomes.append(outcome)
            click.echo(describe([outcome], "make faults"), err=True)
        Path(f"{output}.log").write_text(log)
    text = describe(outcomes, "make faults")
    Path(f"{output}.md").write_text(text)
    click.echo(text)
    raise SystemExit(any(one.faults for one in outcomes))


if __name__ == "__main__":
    main(prog_name="python -m scripts.trials.faults")
