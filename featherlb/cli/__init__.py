"""The command line: click commands, and errors turned into one line and an exit code.

Exit codes: 0 fine, 1 runtime failure, 2 usage or configuration.
"""

import gc
import importlib
import sys

import click

from featherlb import COMPILED, __version__
from featherlb.model.errors import FeatherlbError

_COMMANDS = {
    "up": "Balance connections until stopped.",
    "down": "Remove what a dead instance left.",
    "check": "Validate a configuration file.",
    "doctor": "Say what on this host would stop traffic.",
    "status": "Show how the running instance is.",
    "backends": "Show the services and their backends.",
    "flows": "Show the tracked connections, or end them.",
    "stats": "Show what became of the packets.",
    "backend": "Add, remove, drain or weigh a backend.",
    "reload": "Go over to the configuration as it is now.",
    "save": "Print the running configuration.",
    "top": "Watch services, backends and clients live.",
    "monitor": "Print what happens, as it happens.",
    "demo": "Show it all in network namespaces, with load.",
}


class _Commands(click.Group):
    """Imports a command's module when it is called, so that `--version` needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        # What is imported stays. The collector would go through it again and again meanwhile, a
        # seventh of the time, and with every collection of a running instance.
        gc.disable()
        module = importlib.import_module(f"featherlb.cli.{cmd_name}")
        gc.freeze()
        gc.enable()
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    f"{__version__} (packet path: {'compiled' if COMPILED else 'interpreted'})",
    prog_name="featherlb",
    message="%(prog)s %(version)s",
)
def cli() -> None:
    """A layer-4 NAT load balancer whose packet processor is written in Python."""


def main() -> None:
    """The `featherlb` command."""
    try:
        cli()
    except FeatherlbError as error:
        for line in str(error).splitlines():
            click.echo(f"featherlb: {line}", err=True)
        sys.exit(error.exit_code)
