"""`featherlb chaos`: injects faults into a running instance."""

from typing import Any

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    DURATION,
    PERCENT,
    duration_option,
    instance_option,
    new_table,
    output_option,
    print_answer,
    print_table,
    short_time,
    shows,
)
from featherlb.cli.help import Commands, WholeNumber, completion, examples
from featherlb.model.fault import FaultKind


@click.group(
    cls=Commands,
    epilog=examples("featherlb chaos add web --share 10% --delay 80ms --for 5m"),
)
def chaos() -> None:
    """Inject faults into some of the flows, to see how clients bear them.

    A fault stands for a bad link to a backend. It befalls flows that open while it is in force, and
    ends by itself. The datapath offload can't have any.
    """


@chaos.command(
    epilog=examples(
        "featherlb chaos add web --share 10% --delay 80ms --for 5m",
        "featherlb chaos add web --backend 10.0.1.2:8080 --drop 2% --seed 7",
    )
)
@click.argument("service", shell_complete=completion("services"))
@click.option(
    "--backend",
    metavar="BACKEND",
    shell_complete=completion("backends"),
    help="Only flows to this backend.",
)
@click.option(
    "--share",
    type=PERCENT,
    default="100%",
    show_default=True,
    metavar="PERCENT",
    help="Share of the new flows.",
)
@click.option(
    "--delay", type=DURATION, metavar="TIME", help="The backend's packets arrive this much later."
)
@click.option(
    "--drop",
    type=PERCENT,
    is_flag=False,
    flag_value=100,
    metavar="[PERCENT]",
    help="Packets are lost, in both directions: all, or a share.",
)
@click.option("--reset", is_flag=True, help="Reset connections with their first data.")
@click.option(
    "--reorder", is_flag=True, help="A quarter of the backend's packets is overtaken by others."
)
@duration_option(default="1m", show_default=True, help="End after TIME, 1h at most.")
@click.option(
    "--seed",
    type=WholeNumber(0, 2**32 - 1),
    metavar="N",
    help="Choose the same flows and packets as another time.",
)
@instance_option
@output_option
def add(
    service: str,
    delay: float | None,
    drop: float | None,
    reset: bool,
    reorder: bool,
    instance: int | None,
    output: str,
    **options: Any,
) -> None:
    """Inject a fault into new flows of a SERVICE: one of --delay, --drop, --reset, --reorder."""
    given = {
        FaultKind.DELAY: delay is not None,
        FaultKind.DROP: drop is not None,
        FaultKind.RESET: reset,
        FaultKind.REORDER: reorder,
    }
    kinds = [kind for kind, is_given in given.items() if is_given]
    if len(kinds) != 1:
        raise click.UsageError("choose one of --delay TIME, --drop, --reset and --reorder")
    wanted = {"kind": kinds[0], "service": service, "delay": delay, "loss": drop, **options}
    request = schema.read(
        schema.FaultRequest, {key: one for key, one in wanted.items() if one is not None}
    )
    answer = connect(instance).post("/v1/faults", request, schema.Injected)
    print_answer(
        answer,
        output,
        f"fault {answer.number}: {answer.description}, for {short_time(answer.remaining)},"
        f" seed {answer.seed}",
    )


@shows("/v1/faults", schema.InjectedFaults, "featherlb chaos list")
def list_(answer: schema.InjectedFaults) -> None:
    """Show the faults in force."""
    table = new_table(">number", "fault", ">ends in", ">seed", ">flows", ">packets")
    for one in answer.faults:
        table.add_row(
            str(one.number),
            one.description,
            short_time(max(0, one.remaining)),
            str(one.seed),
            str(one.flows),
            str(one.packets),
        )
    print_table(table)


chaos.add_command(list_, "list")


@chaos.command(epilog=examples("featherlb chaos remove 1"))
@click.argument("number", type=WholeNumber(min=1), shell_complete=completion("faults"))
@instance_option
@output_option
def remove(number: int, instance: int | None, output: str) -> None:
    """End the fault with this NUMBER (see `list`) now."""
    answer = connect(instance).delete(f"/v1/faults/{number}", schema.Injected)
    line = f"ended: {answer.description} ({answer.flows} flows, {answer.packets} packets)"
    print_answer(answer, output, line)
