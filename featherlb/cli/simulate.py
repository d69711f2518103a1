"""`featherlb simulate CONFIG`: how schedulers spread new flows over a pool, without a kernel."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from ipaddress import ip_network
from pathlib import Path

import click

from featherlb.cli.asking import DURATION, new_table, output_option, print_table
from featherlb.cli.help import WholeNumber, completion, examples
from featherlb.config import Config, ServiceConfig, absolute_reference, values
from featherlb.config.file import load
from featherlb.config.resolve import names as host_names
from featherlb.control.overrides import find_service
from featherlb.control.resolver import look_up
from featherlb.core.pools.schedulers import (
    canonical_name,
    goes_by_latency,
    is_file_reference,
    names,
)
from featherlb.insight import plot
from featherlb.insight.simulate import LATENCY, Load, Simulation, Trial
from featherlb.insight.simulate import simulate as run
from featherlb.model import Network, Role
from featherlb.model.errors import ConfigError
from featherlb.model.user_code import CodeKind, UserCode
from featherlb.system import plugins

CLIENTS = {4: "10.0.0.0/16", 6: "fd00::/112"}
"""The default networks."""
EVERY = "all"
BAR = 20
"""Columns of the longest bar."""


class RateType(click.ParamType[float]):
    """Flows per second, from `500` or `500/s`."""

    name = "rate"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            rate = float(str(value).removesuffix("/s"))
        except ValueError:
            rate = 0.0
        if not 0 < rate < 1e9:
            self.fail(f"'{value}' is not a rate such as 500/s", param, ctx)
        return rate


class LatencyType(click.ParamType[tuple[str, float]]):
    """A backend and seconds, from `10.0.1.2:80=30ms`."""

    name = "latency"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if isinstance(value, tuple):
            return value
        backend, _, text = str(value).rpartition("=")
        try:
            return backend, values.duration(text)
        except ValueError:
            self.fail(f"'{value}' is not a backend and a time such as 10.0.1.2:80=30ms", param, ctx)


@click.command(
    epilog=examples(
        "featherlb simulate lb.yaml --change 'remove 10.0.1.2:80'",
        "featherlb simulate lb.yaml --scheduler maglev --scheduler ./mine.py:pick --plot mine.svg",
    )
)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--service", metavar="NAME", help="The service, if the file has several.")
@click.option(
    "--scheduler",
    "schedulers",
    multiple=True,
    metavar="NAME",
    shell_complete=completion("schedulers"),
    help="A scheduler by name, or ./FILE.py:NAME; repeat it to compare, or use `all`. Default:"
    " the service's own.",
)
@click.option(
    "--clients",
    metavar="NETWORK",
    help=f"Where clients come from. Default: {CLIENTS[4]}, or {CLIENTS[6]} for an IPv6 VIP.",
)
@click.option(
    "--flows",
    type=WholeNumber(1, 10_000_000),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Number of new flows.",
)
@click.option(
    "--rate",
    type=RateType(),
    default="1000/s",
    show_default=True,
    metavar="RATE",
    help="New flows per second, for limits and persistence.",
)
@click.option(
    "--duration",
    type=DURATION,
    default="10s",
    show_default=True,
    metavar="TIME",
    help="How long a flow stays open on average.",
)
@click.option(
    "--latency",
    "latencies",
    type=LatencyType(),
    multiple=True,
    metavar="BACKEND=TIME",
    help="How long a backend takes to answer, for schedulers that go by it; repeatable. Others"
    f" answer within {1000 * LATENCY:g} ms.",
)
@click.option(
    "--change",
    "changes",
    multiple=True,
    metavar="CHANGE",
    help="A change of the pool: 'add BACKEND [WEIGHT]', 'remove BACKEND', 'drain BACKEND' or"
    " 'weight BACKEND WEIGHT'; repeatable. Default: one backend leaves, one joins, one doubles its"
    " weight.",
)
@click.option(
    "--seed",
    type=WholeNumber(min=0),
    metavar="N",
    default=1,
    show_default=True,
    help="Seed of the generated flows: the same seed gives the same flows.",
)
@click.option(
    "--plot",
    "picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also draw it, as .svg or .png.",
)
@output_option
def simulate(
    config: Path,
    service: str | None,
    schedulers: tuple[str, ...],
    clients: str | None,
    flows: int,
    rate: float,
    duration: float,
    latencies: tuple[tuple[str, float], ...],
    changes: tuple[str, ...],
    seed: int,
    picture: Path | None,
    output: str,
) -> None:
    """Simulate how a service of CONFIG spreads new flows, with one or several schedulers.

    Shows what each backend gets against its weight, how many flows and clients change backend when
    the pool changes, and what a pick costs. Runs the real pools, schedulers, persistence and
    limits; needs neither root nor the network. All backends count as healthy.
    """
    if picture is not None:
        plot.require(picture)
    plugins.load_entry_points()
    read = load(config)
    chosen = _choose(read, service)
    wanted = _load_schedulers(schedulers or (chosen.scheduler,))
    host = chosen.vips[0].host
    network = _network(clients or CLIENTS[4 if isinstance(host, str) else host.version])
    answers = look_up(host_names(read))
    result = run(
        read,
        chosen.name,
        Load(network, flows, rate, duration, seed, dict(latencies)),
        wanted,
        changes,
        lambda name: answers.get(name, ()),
    )
    if picture is not None:
        plot.draw(picture, result)
    if output == "json":
        click.echo(json.dumps(asdict(result), indent=2, default=str))
    else:
        _show(result)


def _choose(config: Config, name: str | None) -> ServiceConfig:
    if name is not None:
        return find_service(config, name)
    if len(config.services) == 1:
        return config.services[0]
    known = ", ".join(service.name for service in config.services) or "none"
    raise ConfigError([f"choose a service with --service NAME (the file has: {known})"])


def _load_schedulers(wanted: Iterable[str]) -> list[str]:
    """The canonical names, in order; custom schedulers are loaded."""
    found: dict[str, None] = {}
    for name in wanted:
        if name == EVERY:
            found |= dict.fromkeys(names())
            continue
        try:
            found[canonical_name(absolute_reference(name, Path.cwd()))] = None
        except ValueError as error:
            raise ConfigError([str(error)]) from None
    for reference in filter(is_file_reference, found):
        plugins.load(reference, UserCode(CodeKind.SCHEDULER, plugins.read(reference)))
    return list(found)


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError([f"--clients: '{text}' is not a network such as 10.0.0.0/16"]) from None


def _show(result: Simulation) -> None:
    load = result.load
    click.echo(
        f"{result.service}: {result.vip}/{result.protocol},"
        f" {load.flows:,} flows of {result.clients:,} clients in {load.clients},"
        f" {load.rate:,g} per second, open for {load.duration:g} s on average"
    )
    if result.workers > 1:
        click.echo(f"  {result.workers} workers, each with a scheduler and limits of its own")
    if load.latencies or any(goes_by_latency(one.scheduler) for one in result.trials):
        told = [f"{name} {1000 * seconds:g} ms" for name, seconds in load.latencies.items()]
        others = f"{'other ' if told else ''}backends {1000 * LATENCY:g} ms"
        click.echo(f"  time to answer: {', '.join([*told, others])}")
    for name, address in result.stand_ins.items():
        click.echo(f"  {name} has no address here: {address} stands for it")
    for trial in result.trials:
        click.echo()
        _show_shares(trial)
    click.echo()
    _show_moves(result.trials)
    click.echo()
    _show_costs(result.trials)


def _show_shares(trial: Trial) -> None:
    click.echo(_title(trial.scheduler))
    table = new_table("  backend", ">weight", ">flows", ">share", ">wanted", ">off by", "")
    longest = max(one.share for one in trial.shares) or 1.0
    for one in trial.shares:
        name = one.backend if one.role is Role.PRIMARY else f"{one.backend} ({one.role})"
        table.add_row(
            f"  {name}",
            str(one.weight),
            f"{one.flows:,}",
            _percent(one.share),
            _percent(one.wanted),
            "" if one.deviation is None else f"{100 * one.deviation:+.1f} %",
            "█" * round(BAR * one.share / longest),
        )
    print_table(table)
    facts = [f"fairness {trial.fairness:.4f}"]
    if trial.one_backend is not None:
        facts.append(f"{_percent(trial.one_backend)} of returning clients stay on one backend")
    if trial.refused:
        facts.append(
            f"{trial.refused:,} flows refused: no backend had room, or the client may not open more"
        )
    click.echo(f"  {'; '.join(facts)}")
    if trial.errors:
        click.echo(f"  failed {trial.errors:,} times; the first time: {trial.first_error}")


def _show_moves(trials: Sequence[Trial]) -> None:
    click.echo("what gets another backend if all flows come again after a change")
    table = new_table("  change", "scheduler", ">flows", ">clients", ">minimum")
    for moves in zip(*(one.moves for one in trials), strict=True):
        change, least = f"  {moves[0].change}", _percent(moves[0].least)
        for trial, move in zip(trials, moves, strict=True):
            name = _title(trial.scheduler)
            table.add_row(change, name, _percent(move.flows), _percent(move.clients), least)
            change = least = ""
    print_table(table)


def _show_costs(trials: Sequence[Trial]) -> None:
    click.echo("cost of a pick on this machine, and as a multiple of round-robin's")
    table = new_table("  scheduler", ">time", ">cost")
    for one in trials:
        time = f"{one.nanoseconds / 1000:.2f} µs"
        table.add_row(f"  {_title(one.scheduler)}", time, f"{one.cost:.1f}")
    print_table(table)


def _title(scheduler: str) -> str:
    """The name; of a file, without its directory."""
    return scheduler.rpartition("/")[2]


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
