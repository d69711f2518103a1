"""`featherlb stats`: packet counters."""

from featherlb.api import schema
from featherlb.cli.asking import new_table, print_table, shows


@shows("/v1/stats", schema.Stats, "featherlb stats")
def stats(answer: schema.Stats) -> None:
    """Show packet counters by outcome, over all workers."""
    table = new_table("", ">")
    table.show_header = False
    rows: list[tuple[str, int]] = [("packets received", answer.received)]
    for name in ("translated", "passed", "dropped"):
        rows.append((f"  {name}", getattr(answer, name)))
    rows += [(f"    {name}", count) for name, count in answer.reasons.items() if count]
    rows.append(("martians, dropped by the host's rules", answer.martians))
    rows.append(("flows", answer.flows))
    rows += [(f"  {name}", count) for name, count in answer.flows_by_class.items() if count]
    rows.append(("flows evicted", answer.evicted))
    rows.append(("refused, without a copy of the SYN", answer.unkept_syns))
    rows += [
        (f"scheduler errors of {name}", count) for name, count in answer.scheduler_errors.items()
    ]
    for queue in answer.queues:
        rows += [
            (f"worker {queue.worker}: waiting in the queue", queue.waiting),
            ("  dropped by the kernel: queue full", queue.queue_dropped),
            ("  dropped by the kernel: socket full", queue.socket_dropped),
            ("  dropped by the kernel: no memory for the verdict", queue.verdict_refused),
            ("  could not be sent", queue.unsent),
        ]
        if queue.frames.received:
            rows += [
                ("  frames", queue.frames.received),
                ("    dropped by the kernel: socket full", queue.frames.dropped),
                ("    could not be sent", queue.frames.unsent),
                ("    next hop did not answer", queue.frames.unresolved),
                ("    waiting for their next hop", queue.frames.held),
            ]
        if queue.program.given:
            rows += [
                ("  flows that the program in the kernel carries", queue.program.flows),
                ("    given to it", queue.program.given),
                ("    without room there", queue.program.unplaced),
            ]
    for name, count in rows:
        table.add_row(name, f"{count:,}")
    print_table(table)
