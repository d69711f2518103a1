"""Writes contrib/man/featherlb.8 from the commands themselves.

    python -m scripts.man            writes it
    python -m scripts.man --check    exits with 1 if it isn't what would be written

The pages of single commands' `--help` and this one can't differ: both are made of the same click
commands.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from featherlb.cli import cli

PAGE = Path(__file__).parent.parent / "contrib" / "man" / "featherlb.8"

_HEAD = r"""
.\" Made by scripts/man.py from the commands; don't edit.
.TH FEATHERLB 8 "" "featherlb" "System administration"
.SH NAME
featherlb \- a layer-4 NAT load balancer
.SH SYNOPSIS
.B featherlb
.I COMMAND
.RI [ OPTION ]...
.SH DESCRIPTION
featherlb balances TCP connections and UDP flows to a virtual IP (VIP) over the backends of a
service.
.B featherlb up
does so in the foreground, and undoes all that it changed on the host when it stops.
The other commands talk to it over a Unix socket, as root and in the same network namespace.
.SH COMMANDS
"""
_TAIL = r"""
.SH EXIT STATUS
.TP
.B 0
Fine.
.TP
.B 1
The machine or the instance refuses; with
.BR doctor ,
something stops traffic.
.TP
.B 2
Usage, or a configuration with faults. Nothing was changed.
.SH FILES
.TP
.I ./featherlb.yaml, /etc/featherlb/featherlb.yaml
The configuration that is read where nothing names one, the first one that exists.
.TP
.I /run/featherlb
What was changed on the host, to be undone, and the sockets of running instances.
.SH ENVIRONMENT
.TP
.B FEATHERLB_PURE
If it is 1, the packet path runs interpreted.
.TP
.BR NOTIFY_SOCKET ", " WATCHDOG_USEC
Set by systemd for services of
.BR Type=notify .
.TP
.B FEATHERLB_CONFIG
The configuration that is read where none is named on the command line.
.SH EXAMPLES
.TP
Two backends behind a VIP, until Ctrl-C:
.B featherlb up --vip 10.0.0.10:80 --scheduler wrr --backend 10.0.1.2:8080 --backend 10.0.1.3:8080@2
.TP
The exact rules and changes, none of them made:
.B featherlb up --config lb.yaml --dry-run
.TP
Nothing gets through:
.B featherlb doctor
.TP
Rest a backend for ten minutes:
.B featherlb backend drain web 10.0.1.2:8080 --for 10m
.TP
End the connections of a network:
.B featherlb flows --client 10.0.0.0/24 --kill
.TP
Completion in bash, for ~/.bashrc:
.B eval \(dq$(_FEATHERLB_COMPLETE=bash_source featherlb)\(dq
.SH SEE ALSO
.BR iptables (8),
.BR ip (8),
.BR systemd.service (5)
.PP
The configuration: docs/config.md. Operation, metrics, the API: docs/operations.md, docs/api.md.
"""


def page() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="featherlb")
    body = "\n".join(line for line in _commands(cli, context) if line)
    return f"{_HEAD.strip()}\n{body}\n{_TAIL.strip()}\n"


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group) and not command.invoke_without_command:
            yield from _commands(command, inner)
            continue
        yield from _command(command, inner)


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_text(f'{context.command_path} {usage}')}"
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        yield f".PP\n{_text(' '.join(paragraph.split()))}"
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and "--help" not in parameter.opts:
            yield f".TP\n.B {_text(record[0])}\n{_text(record[1])}"


def _text(text: str) -> str:
    """As roff reads it: hyphens are to be copied, and no line begins with a dot or a quote."""
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("\b\n", "")
    return re.sub(r"^([.'])", r"\\&\1", text)


def main(arguments: list[str]) -> int:
    wanted = page()
    if arguments == ["--check"]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
