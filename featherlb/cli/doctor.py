"""`featherlb doctor`: finds what would stop or slow traffic on this host, and how to fix it."""

import json
import os
from ipaddress import ip_address
from pathlib import Path

import click

from featherlb.cli.asking import instance_option, output_option
from featherlb.cli.help import examples
from featherlb.doctor import CHECKS, Finding, Report, Severity, examine, find_subject

_COLOURS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@click.command(epilog=examples("featherlb doctor", "featherlb doctor --client 10.0.0.7"))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Configuration file. Default: the running instance's, or the file that `up` would read.",
)
@click.option(
    "--client",
    metavar="ADDRESS",
    help="A client's address: check that replies to it pass through this host.",
)
@instance_option
@output_option
@click.pass_context
def doctor(
    context: click.Context,
    config_path: Path | None,
    client: str | None,
    instance: int | None,
    output: str,
) -> None:
    """Find what would stop or slow traffic on this host, and the command that fixes it.

    Inspects the host, the configuration and the running instance, if there is one, and opens a
    connection to each backend and each VIP. Changes nothing. Exits with 1 if something stops
    traffic.
    """
    try:
        address = ip_address(client) if client else None
    except ValueError:
        text = f"'{client}' is not an IP address"
        raise click.BadParameter(text, param_hint="--client") from None
    default = os.environ.get("FEATHERLB_CONFIG")
    subject, findings = find_subject(
        config_path, instance, address, Path(default) if default else None
    )
    examined = examine(subject)
    first = tuple(("configuration", finding) for finding in findings)
    report = Report((*first, *examined.findings), examined.skipped)
    if output == "json":
        click.echo(json.dumps(_as_data(report), indent=2))
    else:
        for _, finding in report.findings:
            _print(finding)
        _print_summary(report)
    if report.count(Severity.ERROR):
        context.exit(1)


def _print(finding: Finding) -> None:
    label = click.style(f"{finding.severity:<8}", fg=_COLOURS[finding.severity], bold=True)
    click.echo(f"{label} {finding.message}")
    if finding.command:
        place = f"on {finding.place}: " if finding.place else ""
        click.echo(f"         {place}$ {finding.command}")


def _print_summary(report: Report) -> None:
    counts = [(report.count(severity), str(severity)) for severity in Severity]
    found = ", ".join(f"{n} {name}{'s' * (n != 1)}" for n, name in counts)
    click.echo(f"{len(CHECKS) - len(report.skipped)} checks: {found}")
    reasons: dict[str, list[str]] = {}
    for name, reason in report.skipped:
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        click.echo(f"not checked, {reason}: {', '.join(names)}")


def _as_data(report: Report) -> dict[str, object]:
    skipped = dict(report.skipped)
    return {
        "findings": [
            {
                "check": name,
                "severity": str(finding.severity),
                "message": finding.message,
                "command": finding.command,
                "place": finding.place,
            }
            for name, finding in report.findings
        ],
        "checked": [check.name for check in CHECKS if check.name not in skipped],
        "skipped": skipped,
    }
