"""`featherlb status`: the state of the instance."""

from featherlb.api import schema
from featherlb.cli.asking import new_table, print_table, short_time, shows
from featherlb.cli.backend import shown_trial
from featherlb.model.counted import counted


@shows("/v1/status", schema.Status, "featherlb status", "featherlb status -o json")
def status(answer: schema.Status) -> None:
    """Show instance status."""
    table = new_table("", "")
    table.show_header = False
    rows = {
        "instance": f"{answer.instance}, pid {answer.pid}, version {answer.version}",
        "running for": short_time(answer.uptime),
        "services": f"{answer.services} with {counted(answer.backends, 'backend')}",
        "datapaths": ", ".join(f"{count} {name}" for name, count in answer.datapaths.items()),
        "flows": f"{answer.flows:,} of {answer.capacity:,}",
        "hash key": answer.hash_key,
        "log level": str(answer.log_level),
        "run-time changes": str(answer.changes),
        "reloads": f"{answer.reloads} done, {answer.reloads_refused} refused",
    }
    if answer.opened_by:
        by_program = [name for name, by in answer.opened_by.items() if by == "program"]
        left = {name: by for name, by in answer.opened_by.items() if by != "program"}
        parts = [f"the program ({', '.join(by_program)})"] if by_program else []
        rows["flows opened by"] = "; ".join([*parts, *(f"{by}: {one}" for one, by in left.items())])
    if answer.labels:
        found = ", ".join(f"{count} with {name}" for name, count in answer.labels.items())
        rows["services"] += f" ({found})"
    if answer.absent:
        rows["services"] += f", {answer.absent} absent"
    if answer.log_level_remaining is not None:
        rows["log level"] += f", reverts in {short_time(max(0, answer.log_level_remaining))}"
    if answer.last_reload:
        outcome = f"refused: {answer.reload_error}" if answer.reload_error else "done"
        rows["last reload"] = f"{answer.last_reload} {outcome}"
    for one in answer.trials:
        what = f"{one.action} {one.service} {one.backend}"
        rows[f"change {one.number}"] = f"{what}: {shown_trial(one)}"
    for fault in answer.faults:
        ending = f"ends in {short_time(max(0, fault.remaining))}"
        rows[f"injected fault {fault.number}"] = f"{fault.description}, {ending}"
    if answer.code_off:
        rows["switched off"] = f"{', '.join(answer.code_off)}: fails, or is slow (see the log)"
    if answer.panic:
        rows["panic"] = f"{', '.join(answer.panic)}: too few backends are healthy, all are used"
    for name, reasons in answer.refused.items():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items() if count)
        rows[f"refused by {name}"] = f"{counts} (packets that would have opened a flow)"
    for worker in answer.workers:
        rows[f"worker {worker.number}"] = f"pid {worker.pid}, {worker_text(worker)}"
    if answer.worker_restarts:
        rows["worker restarts"] = str(answer.worker_restarts)
    for task in answer.tasks:
        if task.restarts or task.failing:
            state = (
                "keeps failing" if task.failing else f"restarted {counted(task.restarts, 'time')}"
            )
            rows[f"task {task.name}"] = f"{state}, last error: {task.last_error}"
    host = answer.host
    if host.deviations:
        count = len(host.deviations)
        differences = counted(count, "difference")
        rows["host"] = f"changed by others, {differences}: {host.deviations[0]}"
    if host.last_restored:
        rows["host restored"] = f"last {host.last_restored}: {host.repairs}"
    cookies = answer.syn_cookies
    if cookies.answering == "kernel":
        rows["SYN cookies"] = f"the kernel answers SYNs, {cookies.answered:,} so far"
    elif cookies.answering == "workers":
        rows["SYN cookies"] = f"workers answer SYNs: {cookies.missing}"
    elif cookies.missing:
        rows["SYN cookies"] = f"workers would answer SYNs: {cookies.missing}"
    if cookies.flooded:
        rows["SYN flood"] = "many connections are half-open"
    if answer.cluster:
        peers = answer.cluster.peers
        good = sum(peer.state == "synchronised" for peer in peers)
        rows["cluster"] = f"node {answer.cluster.node}, {good} of {counted(len(peers), 'peer')}"
        rows["cluster"] += " synchronised"
        if answer.cluster.obstacles:
            rows["not ready"] = "; ".join(answer.cluster.obstacles)
    if not answer.watchdog_fed:
        rows["systemd watchdog"] = "no longer fed, because a task keeps failing or hangs"
    for label, value in rows.items():
        table.add_row(label, value)
    print_table(table)


def worker_text(worker: schema.Worker) -> str:
    """How a worker is."""
    if worker.state == "silent":
        return "does not answer"
    if worker.flows is None or worker.received is None:
        return "has died, and its successor is starting"
    flows, packets = counted(worker.flows, "flow"), counted(worker.received, "packet")
    return f"{flows}, {packets}, {worker.waiting} waiting"
