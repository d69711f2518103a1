"""The command line: click commands; an error becomes one line and an exit code.

Exit codes: 0 fine, 1 runtime failure, 2 usage or configuration.
"""

import gc
import importlib
import os
import sys
from collections.abc import Sequence

import click

from featherlb import COMPILED, __version__
from featherlb.cli.help import Commands, examples
from featherlb.model.errors import FeatherlbError
from featherlb.system import trust

_COMMANDS = {
    "up": "Balance traffic until stopped.",
    "down": "Clean up after a dead instance.",
    "check": "Validate a configuration file.",
    "simulate": "Simulate how a scheduler spreads new flows.",
    "replay": "Replay a capture through the packet path.",
    "doctor": "Find what would stop traffic on this host.",
    "status": "Show instance status.",
    "backends": "Show services and their backends.",
    "flows": "Show or end tracked connections.",
    "explain": "Explain where a client's packets go, and why.",
    "capture": "Capture packets with what became of each.",
    "recorder": "Show the last decisions, also after a crash.",
    "stats": "Show packet counters by outcome.",
    "backend": "Add, remove, drain or reweight a backend.",
    "limit": "Change who may open how many connections.",
    "chaos": "Inject faults into some flows.",
    "cluster": "Show and leave a cluster of nodes, make its keys.",
    "reload": "Reload the configuration.",
    "plan": "Show what a reload to another configuration would do.",
    "save": "Print the running configuration.",
    "log-level": "Change what a running instance logs.",
    "top": "Watch services, backends and clients live.",
    "monitor": "Print events as they happen.",
    "demo": "Run a demonstration in network namespaces.",
}


class _Commands(Commands):
    """Imports a command's module on its first use, so that `--version` imports none."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # Imported modules stay. The collector would scan them again and again meanwhile, for a
        # seventh of the time, and at every collection of a running instance.
        gc.disable()
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"featherlb.cli.{name}")
        gc.freeze()
        gc.enable()
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "featherlb up --vip 10.0.0.10:80 --backend 10.0.1.2:8080 --backend 10.0.1.3:8080",
        "featherlb COMMAND --help",
    ),
)
@click.version_option(
    f"{__version__} (packet path: {'compiled' if COMPILED else 'interpreted'})",
    prog_name="featherlb",
    message="%(prog)s %(version)s",
)
def cli() -> None:
    """A layer-4 NAT load balancer whose packet processor is written in Python."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The `featherlb` command, with the process's arguments if there are no others."""
    if os.geteuid() == 0 and "PATH" in os.environ:
        # Only what root alone may change is run as root.
        os.environ["PATH"] = trust.search_path(os.environ["PATH"])
    if "_FEATHERLB_COMPLETE" in os.environ:
        importlib.import_module("featherlb.cli.completion")
    try:
        cli(arguments)
    except FeatherlbError as error:
        for line in str(error).splitlines():
            click.echo(f"featherlb: {line}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        from featherlb.system.failure import explain, log_traceback

        click.echo(f"featherlb: internal error: {explain(error)}; this is a bug", err=True)
        log_traceback(error)
        sys.exit(1)
