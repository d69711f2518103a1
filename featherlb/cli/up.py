"""`featherlb up`: balances traffic until stopped."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import click

from featherlb.cli.help import WholeNumber, Word, completion, examples
from featherlb.cli.log_format import set_up
from featherlb.config import AUTO, Config, absolute_reference, find_config, from_command_line
from featherlb.config.resolve import absent
from featherlb.config.resolve import names as host_names
from featherlb.control.log_level import LogLevel
from featherlb.control.prepare import load_code, prepare
from featherlb.control.reload import Settings
from featherlb.control.resolver import look_up
from featherlb.core.pools.schedulers import names
from featherlb.daemon import Supervisor
from featherlb.model import Datapath, Driver, NatMode
from featherlb.system import first_process, plugins

log = logging.getLogger("featherlb")


@click.command(
    epilog=examples(
        "featherlb up --vip 10.0.0.10:80 --backend 10.0.1.2:8080 --backend 10.0.1.3:8080@2",
        "featherlb up --config lb.yaml --dry-run",
    )
)
@click.option(
    "--vip",
    "vips",
    multiple=True,
    metavar="IP:PORT[/tcp|/udp]",
    help="Where clients connect; repeatable. Selects or creates a service. PORT may be a range or"
    " *, for all.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="IP:PORT[@WEIGHT]",
    help="A server behind the VIP; repeatable. Behind a range of ports also IP or IP:LOW-HIGH.",
)
@click.option(
    "--scheduler",
    metavar="NAME",
    shell_complete=completion("schedulers"),
    help=f"Scheduling algorithm: {', '.join(names())}, or FILE.py:NAME.",
)
@click.option(
    "--nat",
    type=Word(NatMode),
    help="dnat keeps the client's address; full replaces it with the balancer's.",
)
@click.option(
    "--datapath",
    type=Word([*Datapath, AUTO]),
    help="How packets reach featherlb (default: nfqueue); auto picks the fastest that works.",
)
@click.option(
    "--driver",
    type=Word(Driver),
    help="Queue driver of the nfqueue datapath.",
)
@click.option(
    "--workers", type=WholeNumber(1, 256), metavar="N", help="Number of worker processes."
)
@click.option(
    "--fail-open",
    is_flag=True,
    help="Pass packets untranslated while featherlb can't handle them (default: drop).",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="FEATHERLB_CONFIG",
    metavar="FILE",
    help="Configuration file. Default: $FEATHERLB_CONFIG, ./featherlb.yaml, then"
    " /etc/featherlb/featherlb.yaml.",
)
@click.option("--no-assign", is_flag=True, help="Don't assign VIPs to this host.")
@click.option(
    "--no-restore", is_flag=True, help="Only report what others change of featherlb's on this host."
)
@click.option("--dry-run", is_flag=True, help="Print the rules and changes; make none.")
@click.option(
    "--log-format",
    type=Word(["text", "json"]),
    default="text",
    show_default=True,
    help="Human-readable text, or JSON Lines.",
)
@click.option(
    "--log-level",
    type=Word(LogLevel),
    default="info",
    show_default=True,
    help="Minimum level; debug logs each new flow. `featherlb log-level` changes it later.",
)
def up(
    vips: tuple[str, ...],
    backends: tuple[str, ...],
    scheduler: str | None,
    nat: str | None,
    datapath: str | None,
    driver: str | None,
    workers: int | None,
    fail_open: bool,
    config_path: Path | None,
    no_assign: bool,
    no_restore: bool,
    dry_run: bool,
    log_format: str,
    log_level: str,
) -> None:
    """Balance traffic to the VIPs until SIGINT or SIGTERM; SIGHUP reloads the configuration.

    Runs in the foreground and prints `ready` once it balances traffic. On exit it undoes its
    changes to this host. After SIGUSR2 it leaves them, and its flows, to the next start: for a
    restart that breaks no connection.
    """

    first_process.leave_it()
    picked = scheduler and absolute_reference(scheduler, Path.cwd())
    path = config_path or find_config()

    def read_config() -> Config:
        plugins.load_entry_points()
        base = None
        if path:
            # A start without a file needs no YAML.
            from featherlb.config.file import load

            base = load(path)
        return merge(base)

    def merge(base: Config | None) -> Config:
        config = from_command_line(vips, backends, picked, nat, datapath, base)
        if driver:
            config = replace(config, driver=Driver(driver))
        if workers:
            config = replace(config, workers=workers)
        if fail_open:
            config = replace(config, fail_open=True)
        if no_assign:
            config = replace(config, assign=False)
        if no_restore:
            config = replace(config, restore=False)
        return config

    set_up(log_format, LogLevel(log_level))
    if dry_run:
        config = read_config()
        load_code(config, {})
        found, plan = prepare(config, look_up(host_names(config)))
        for (name, backend), reason in absent(found.places).items():
            click.echo(f"# service {name}: backend {backend} is absent: {reason}")
        for service in found.services:
            click.echo(f"# service {service.name}: datapath {service.datapath}")
        for line in plan.describe():
            click.echo(line)
        return
    if path:
        log.info("configuration file: %s", path.absolute())
    settings = Settings(load=read_config, merge=merge)
    asyncio.run(Supervisor(settings).run(lambda: click.echo("ready")))
