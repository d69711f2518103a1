"""Requests and responses of the runtime API as pydantic models; docs/api.md documents them.

Durations and ages are seconds, addresses text such as `10.0.1.2:8080`, times ISO 8601 in UTC.
"""

from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import from_json

from featherlb.config import values
from featherlb.control.log_level import LogLevel
from featherlb.control.overrides import Action
from featherlb.core.flows.tcp_state import State
from featherlb.model import Health, PeerState, Refusal, Role
from featherlb.model.errors import ConfigError
from featherlb.model.fault import FaultKind
from featherlb.model.label import label

FLOW_STATES = tuple(map(label, State))


def _one_line(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"])) or "the request"
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {reason}"


def duration(value: object) -> float:
    """Seconds; in a query and on the command line numbers are text as well."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return values.duration(value)


def percent(value: object) -> float:
    """Per cent: a number, or text such as `10%`."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value.removesuffix("%"))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
        raise ValueError(f"{values.quote(str(value))} is no share (expected 0.001% to 100%)")
    return float(value)


Percent = Annotated[float, BeforeValidator(percent)]
"""More than 0, up to 100; or text such as `10%`."""
Duration = Annotated[float, BeforeValidator(duration)]
"""Seconds, or text such as `10m`."""


class Question(BaseModel):
    """Base of requests: unknown keys are faults."""

    # Built when it is first used: a process uses few of them.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, validate_by_name=True)


class Answer(BaseModel):
    """Base of responses."""

    model_config = ConfigDict(defer_build=True, frozen=True)


_Model = TypeVar("_Model", bound=BaseModel)


def parse(text: bytes) -> object:
    """JSON as data. ValueError if it isn't JSON, has half of a surrogate pair, or is larger or
    deeper than any request."""
    return from_json(text)


def read(model: type[_Model], data: object) -> _Model:
    """Parse the data; ConfigError names every fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_one_line(fault) for fault in error.errors()]) from None


class Fault(Answer):
    """The response with a status of 400 or above."""

    error: str = Field(description="One sentence, or one fault per line.")


class Worker(Answer):
    number: int
    pid: int
    state: Literal["working", "silent", "starting"] = Field(
        description="`silent`: it does not answer; unless it does within 20 s, it is replaced."
        " `starting`: it has died, and its successor is starting."
    )
    flows: int | None = Field(description="null unless it answers, as are the next two.")
    received: int | None = Field(description="Packets since the worker started.")
    waiting: int | None = Field(description="Packets waiting in its queue.")


class Task(Answer):
    """The background tasks of one name."""

    name: str
    restarts: int
    failing: bool = Field(
        description="Failed five times in a row, without running for a minute since; or hangs."
    )
    last_error: str = Field(
        description="Its last failure: type, message and place, or where it hangs; empty if none."
    )
    last_failure: str = Field(description="Time of the last failure; empty if none.")


class HostState(Answer):
    """What others have changed of what the instance needs on the host, as of the last check, which
    is at most a minute old."""

    restoring: bool = Field(description="False with `restore: false`: changes are only reported.")
    deviations: list[str] = Field(description="What is changed and not restored.")
    restored: dict[str, int] = Field(
        description="How often `rules`, `sets`, `settings`, `addresses` and `programs` were"
        " restored."
    )
    last_restored: str = Field(description="Time of the last restoration; empty if none.")
    repairs: str = Field(description="What was restored then.")


class SynCookies(Answer):
    """How SYNs are answered during a flood. Packets that workers answer are in the statistics, with
    the reason `syn-cookie`."""

    flooded: bool = Field(description="Some worker sees a SYN flood.")
    answering: Literal["nobody", "workers", "kernel"]
    answered: int = Field(description="SYNs that the kernel has answered.")
    missing: str = Field(description="Why the kernel can't answer SYNs; empty if it can.")


class Readiness(Answer):
    """Whether routers may send traffic here."""

    ready: bool
    obstacles: list[str] = Field(description="Why not, as sentences.")


class Peer(Answer):
    address: str
    node: str = Field(description="Its name; empty until it has answered once.")
    state: PeerState = Field(
        description="`connecting`: not tried yet; `refused`: it can't be synchronised with."
    )
    trouble: str = Field(description="Why it is not synchronised; empty if it is.")
    heard: bool = Field(description="Its own announcements arrive.")
    copied: bool = Field(description="It has sent all its flows since it was connected.")
    ready: bool = Field(description="It may get traffic, as far as its peers are concerned.")
    same: bool = Field(description="It serves the same as this node.")
    queued: int = Field(description="Bytes of announcements that wait for it.")
    dropped: int = Field(description="How often there were too many, and all flows were sent.")


class Cluster(Answer):
    node: str
    ready: bool
    obstacles: list[str] = Field(description="As in [Readiness](#readiness).")
    leaving: bool = Field(description="After `featherlb cluster leave`.")
    peers: list[Peer]
    flows: dict[str, int] = Field(
        description="Counts since the workers started: replicas of other nodes' flows that were"
        " `entered`, flows `taken_over` from others and `yielded` to others, `conflicts` (two nodes"
        " had different backends for one flow), and `unmatched` (no such service or backend here,"
        " or no room)."
    )
    refused: dict[str, int] = Field(description="Connections of nodes that were refused, by cause.")


class ClusterRequest(Question):
    leaving: bool = Field(description="True: no longer be ready; false: be ready again.")


class Status(Answer):
    instance: int = Field(description="Number of its first queue, and its name on this host.")
    version: str
    pid: int
    started: str
    uptime: float
    services: int
    datapaths: dict[str, int] = Field(description="Number of services per datapath.")
    opened_by: dict[str, str] = Field(
        description="By service of the datapath `ebpf`: who opens flows, as in its service."
    )
    backends: int
    labels: dict[str, int] = Field(description="Number of backends per label, such as `zone=a`.")
    absent: int = Field(description="Backends whose names have no address that can be used.")
    flows: int
    capacity: int = Field(description="Size of the flow tables of all workers.")
    hash_key: str = Field(
        description="Where the key of the hash schedulers is: `configuration`, a file, or"
        " `this run` if it could not be kept."
    )
    log_level: LogLevel
    log_level_remaining: float | None = Field(
        description="Time until the previous level returns; null: permanent."
    )
    changes: int = Field(description="Run-time changes in force.")
    trials: list["Change"] = Field(
        description="Those of them that put a canary on trial, or followed from a failed trial."
    )
    faults: list["Injected"] = Field(description="Injected faults in force.")
    code_off: list[str] = Field(description="Users' code that is switched off for a while.")
    reloads: int
    reloads_refused: int
    last_reload: str = Field(description="Time of the last reload; empty if none.")
    reload_error: str = Field(description="Why the last reload was refused; empty if it succeeded.")
    panic: list[str] = Field(description="Services in panic: backend health is ignored.")
    refused: dict[str, dict[str, int]] = Field(
        description="By service, packets of clients that may not open a flow, as in"
        " [Service](#service); services without such packets are left out."
    )
    worker_restarts: int
    workers: list[Worker]
    tasks: list[Task]
    host: HostState
    syn_cookies: SynCookies
    cluster: Cluster | None = Field(description="Null without other nodes.")
    watchdog_fed: bool = Field(
        description="False while a task that packets depend on is failing: the systemd watchdog"
        " then restarts featherlb."
    )


class Backend(Answer):
    backend: str = Field(description="As in the configuration.")
    address: str = Field(
        description="The address, or one of those that the name resolves to; empty if `absent`."
    )
    state: Health | Literal["absent", "drained", "leaving"] = Field(
        description="`down`: by health checks; `ejected`: by passive health; `drained`: by `drain`;"
        " `leaving`: removed from the pool, with flows left; `absent`: its name has no address that"
        " can be used."
    )
    failure: str = Field(
        description="Why the last health check failed, or why it is ejected or absent; otherwise"
        " empty."
    )
    role: Role = Field(description="When the backend gets new flows.")
    weight: int = Field(description="As configured or changed at run time.")
    canary: float = Field(
        description="On trial: share of the service's new flows, in per cent, in place of the"
        " weight's; else 0."
    )
    effective_weight: float = Field(
        description="0 if not in use; below `weight` during slow start."
    )
    max_connections: int | None = Field(description="Limit of open flows; null: none.")
    labels: dict[str, str] = Field(description='As configured, such as `{"zone": "a"}`.')
    active: int = Field(description="Open flows, including half-open ones.")
    flows: int = Field(description="Flows since the backend joined.")
    packets_forward: int
    bytes_forward: int
    packets_reply: int
    bytes_reply: int
    resets: int = Field(description="Connections that the backend reset.")
    refused: int = Field(
        description="Connections that the backend refused, or that did not reach it."
    )
    syn_timeouts: int = Field(description="Connections that the backend never answered.")
    syn_retries: int = Field(description="Connections whose client retransmitted the SYN.")
    doubtful: int = Field(description="TCP segments that changed nothing, as they may be forged.")
    moved_refused: int = Field(
        description="Flows that went to another backend because this one refused them."
    )
    moved_silent: int = Field(
        description="Flows that went to another backend because this one did not answer in time."
    )
    ports: int = Field(description="Source ports towards it in `full` mode; otherwise 0.")
    ports_in_use: int = Field(description="Those of them that flows hold.")
    ports_reclaimed: int = Field(
        description="Half-open flows that lost their source port to another one."
    )
    retransmits_forward: int = Field(
        description="TCP segments from clients whose data came again, or late."
    )
    retransmits_reply: int = Field(description="The same from the backend.")
    latency: float | None = Field(
        description="Smoothed time in seconds that the backend takes to answer the first packet of"
        " a flow: a SYN with a SYN-ACK, a datagram with another; null: not measured."
    )
    answers: dict[str, int] = Field(
        description="Answers by the time that they took, in seconds: up to this one, and more than"
        " the one before. Empty: not measured."
    )


class Service(Answer):
    name: str
    protocol: str
    vips: list[str]
    scheduler: str
    nat: str
    datapath: str = Field(
        description="The datapath in use; with `auto`, the one picked. Empty while the names of its"
        " VIPs have no address."
    )
    opened_by: str = Field(
        description="Datapath `ebpf`: who opens flows, `program` or `worker`; with the latter, why."
        " Empty with others."
    )
    panic: bool = Field(description="Too few backends are healthy, so all are used.")
    conditions: list[str] = Field(
        description="Who may open how many flows, as text: `deny 10.9.0.0/16`, `max-new 50/s`."
    )
    refused: dict[str, int] = Field(
        description="Packets of clients that may not open a flow, by reason: `not-allowed`,"
        " `max-flows`, `max-new`; empty if everybody may."
    )
    faults: list["Injected"] = Field(description="Injected faults of its flows.")
    backends: list[Backend]


class Services(Answer):
    services: list[Service]


class FlowQuery(Question):
    service: str | None = None
    client: str | None = Field(None, description="An address or a network, such as `10.0.0.0/8`.")
    backend: str | None = Field(
        None, description="`IP:PORT`, `IP:LOW-HIGH`, or `IP` for all ports of a host."
    )
    state: str | None = Field(None, description=f"One of {', '.join(FLOW_STATES)}.")
    older: Duration | None = Field(None, description="Minimum age.")

    @property
    def is_empty(self) -> bool:
        return not self.model_dump(exclude_none=True)


class FlowsQuery(FlowQuery):
    limit: int = Field(1000, ge=1, le=10000, description="Flows per page.")
    cursor: str = Field(
        "0:1", pattern=r"^\d{1,3}:\d{1,10}$", description="`next` of the previous page."
    )


class RecorderQuery(Question):
    client: str | None = Field(None, description="An address or a network, such as `10.0.0.0/8`.")
    backend: str | None = Field(
        None, description="`IP:PORT`, `IP:LOW-HIGH`, or `IP` for all ports of a host."
    )
    limit: int = Field(1000, ge=1, le=1_000_000, description="The last ones only.")


class SaveRecording(Question):
    pass


class Record(Answer):
    """A record of a worker's flight recorder."""

    time: float = Field(description="Seconds since the epoch.")
    worker: int
    kind: str = Field(
        description="Of a flow: `opened`, `changed`, `moved`, `ended`, `expired`, `evicted`; of a"
        " packet: `refused`; of a backend: `joined`, `left`, `down`, `up`, `weighed`; `started`: a"
        " worker."
    )
    detail: str = Field(
        description="The flow's state, or the reason for the refusal; `refused` or `silent` for"
        " `moved`."
    )
    protocol: str
    client: str | None
    vip: str | None = Field(description="For backends, the first one of their service.")
    backend: str | None
    weight: int | None = Field(description="Of a backend.")


class Recording(Answer):
    records: list[Record] = Field(description="The oldest first.")
    saved: list[str] = Field(description="Files of this instance, the oldest first.")


class SavedRecording(Answer):
    path: str = Field(description="The file.")


class Tried(Answer):
    """A backend that a flow has left."""

    backend: str
    reason: str = Field(description="`refused` or `silent`.")


class Flow(Answer):
    service: str
    protocol: str
    state: str
    client: str
    vip: str
    backend: str
    source: str = Field(description="The client as the backend sees it.")
    age: float
    idle: float = Field(description="Since its last packet.")
    bytes_forward: int
    bytes_reply: int
    tried: list[Tried] = Field(description="The backends that it has left, the first one first.")


class Flows(Answer):
    flows: list[Flow]
    next: str | None = Field(description="Cursor of the next page; null at the end.")


class Ended(Answer):
    count: int


class ExplainQuery(Question):
    client: str = Field(description="`ADDRESS` or `ADDRESS:PORT`.")
    vip: str = Field(
        description="Name of the service, or a VIP: `ADDRESS`, `ADDRESS:PORT`, `ADDRESS:PORT/udp`."
    )


class Candidate(Answer):
    """A backend as the scheduler of the client's worker sees it."""

    backend: str = Field(description="As in the configuration.")
    address: str
    role: Role
    state: str = Field(description="As in [Backend](#backend).")
    failure: str = Field(description="As in [Backend](#backend).")
    weight: int = Field(description="As configured or changed at run time.")
    effective_weight: int = Field(description="What the scheduler gets: 0 if not in use.")
    active: int = Field(description="Open flows of this worker.")
    max_connections: int | None = Field(description="This worker's part of the limit; null: none.")
    progress: float = Field(description="Part of its share that it takes: below 1 in slow start.")


class Binding(Answer):
    """A client's entry in the persistence table."""

    backend: str
    remaining: float = Field(description="Seconds until it expires.")


class HookAction(Answer):
    """A hook that does something to the flow's packets."""

    direction: str = Field(description="`forward` or `reply`.")
    hook: str = Field(description="Netfilter hook; `WIRE`: frame; `conntrack`: the kernel.")
    action: str = Field(description="`rewrite`, `open`, or `drop` (the kernel's copy of a frame).")


class MetRule(Answer):
    """A rule of the instance that the opening packet meets."""

    table: str
    hook: str
    chain: str
    rule: str


class Explanation(Answer):
    """What happens to a client's packet to a VIP, and why."""

    service: str
    protocol: str
    client: str
    port_assumed: bool = Field(description="The query names no port, so one was assumed.")
    vip: str
    scheduler: str
    nat: str
    datapath: str
    panic: bool = Field(description="Too few backends are healthy, so all are used.")
    worker: int = Field(description="The worker that has the client's flows from this port.")
    workers: int
    flow: Flow | None = Field(description="The open flow of this port; null: none.")
    reopens: bool = Field(
        description="The flow is closing: a packet that opens a connection is scheduled anew."
    )
    flows: list[Flow] = Field(description="Without a port: flows of the client, at most 20.")
    outcome: str = Field(
        description="The reason under which the first packet of a new flow would be counted:"
        " `forward`, or why it would be dropped."
    )
    backend: str | None = Field(description="Where a new flow would go; null: nowhere.")
    target: str | None = Field(
        description="The address and port there: a backend may have several ports."
    )
    reasons: list[str] = Field(description="Why, in the order of the decisions.")
    binding: Binding | None = Field(description="Persistence; null: the client is not bound.")
    candidates: list[Candidate]
    hooks: list[HookAction]
    rules: list[MetRule]


class ClientShare(Answer):
    client: str
    flows: int
    half_open: int = Field(description="Those of them whose handshake isn't complete.")


class RefusedClient(Answer):
    """A client that may not open what it tries to open."""

    client: str
    service: str
    packets: int = Field(
        description="Refused by workers in the last one or two minutes; of many clients, those with"
        " the most, and a little too low."
    )


class Clients(Answer):
    clients: list[ClientShare]
    refused: list[RefusedClient]
    sampled: int = Field(description="Flows in the sample.")
    flows: int = Field(description="Flows in total.")


class ChangeRequest(Question):
    action: Action
    service: str = Field(description="Name of the service, or one of its VIPs.")
    backend: str = Field(description="`HOST:PORT`, as in the configuration.")
    weight: Annotated[int, BeforeValidator(values.weight)] | None = Field(
        None, description="For `weight`, and for `add` (default 1)."
    )
    role: Annotated[Role, BeforeValidator(values.role)] | None = Field(
        None, description="For `add` (default `primary`)."
    )
    max_connections: Annotated[int, BeforeValidator(values.max_connections)] | None = Field(
        None, description="For `add`: limit of open flows."
    )
    labels: Annotated[dict[str, str], PlainValidator(values.labels)] | None = Field(
        None, description="For `add`: what else is to be known about the backend."
    )
    duration: Duration | None = Field(
        None,
        validation_alias="for",
        serialization_alias="for",
        description="Revert the change automatically after this time; with `canary`, how long the"
        " backend is on trial.",
    )
    canary: Percent | None = Field(
        None,
        description="For `add`: the backend is on trial, and gets this share of the service's new"
        " flows.",
    )
    abort_if: str | None = Field(
        None,
        description="With `canary`: when the trial fails (default `failures > 2 * others + 0.05`).",
    )
    deadline: Duration | None = Field(
        None, description="For `drain`: reset the flows that remain after this time."
    )


class LimitRequest(Question):
    action: Literal[Action.ALLOW, Action.DENY, Action.MAX_FLOWS, Action.MAX_NEW]
    service: str = Field(description="Name of the service, or one of its VIPs.")
    networks: list[str] | None = Field(
        None, description="For `allow` and `deny`: networks to add to the list."
    )
    limit: Annotated[int, BeforeValidator(values.max_connections)] | None = Field(
        None, description="For `max-flows`."
    )
    rate: str | None = Field(None, description="For `max-new`, such as `50/s`.")
    burst: Annotated[int, BeforeValidator(values.burst)] | None = Field(
        None, description="For `max-new`."
    )
    prefix: Annotated[int, BeforeValidator(values.prefix)] | None = Field(
        None, description="For a limit: the prefix length of its networks; 0 for the service."
    )
    refusal: Annotated[Refusal, BeforeValidator(values.refusal)] | None = Field(
        None, description="For a limit: `drop` (default) or `reset`."
    )
    off: bool | None = Field(None, description="For a limit: remove the one with this prefix.")
    duration: Duration | None = Field(
        None,
        validation_alias="for",
        serialization_alias="for",
        description="Revert the change automatically after this time.",
    )


class Measured(Answer):
    """A metric of a trial; null: nothing was counted yet."""

    metric: str
    canary: float | None
    others: float | None = Field(description="The service's other backends.")


class Canary(Answer):
    """The trial of a backend."""

    share: float = Field(description="Of the service's new flows, in per cent.")
    remaining: float
    abort_if: str
    flows: int = Field(description="That the canary has got; it is judged from 20 on.")
    metrics: list[Measured] = Field(
        description="Since the trial began: per new flow, and `latency` in seconds."
    )


class Change(Answer):
    number: int | None = Field(
        description="For `revert`; null if it isn't in force: it ended others, or nothing had to"
        " change."
    )
    action: Action
    service: str
    backend: str = Field(description="Empty if the change is about clients.")
    clients: str = Field(description="What changes for clients, as text; empty for a backend.")
    weight: int | None
    role: Role
    max_connections: int | None
    labels: dict[str, str]
    remaining: float | None = Field(description="Time until it reverts; null: permanent.")
    deadline: float | None = Field(description="Time until remaining flows are reset; null: never.")
    canary: Canary | None = Field(description="The backend's trial; null: it isn't on trial.")
    reason: str = Field(
        description="Why featherlb made the change itself: a canary has failed; empty: somebody"
        " asked for it."
    )


class Made(Change):
    """A change that was just made."""

    replaces: list[int] = Field(description="Numbers of the earlier changes that it ended.")


class Changes(Answer):
    changes: list[Change]


class FaultRequest(Question):
    kind: Annotated[FaultKind, BeforeValidator(values.fault_kind)]
    service: str = Field(description="Name of the service, or one of its VIPs.")
    backend: str | None = Field(
        None, description="`HOST:PORT`, as in the configuration: only flows to this one."
    )
    share: Percent = Field(100, description="Of the new flows, in per cent, or `10%`.")
    delay: Duration | None = Field(None, description="For `delay`: 60 s at most.")
    loss: Percent | None = Field(
        None, description="For `drop`: of a flow's packets, in per cent (default 100)."
    )
    duration: Duration = Field(
        60,
        validation_alias="for",
        serialization_alias="for",
        description="The fault ends after this time, 1 h at most.",
    )
    seed: int | None = Field(
        None, ge=0, lt=2**32, description="Which flows are chosen; null: others each time."
    )


class Injected(Answer):
    """A fault in force."""

    number: int
    description: str = Field(description="Text such as `delay of 80 ms for 10 % of ...`.")
    kind: FaultKind
    service: str
    backends: list[str] = Field(description="Only flows to these addresses; empty: all.")
    share: float = Field(description="Of the new flows, in per cent.")
    delay: float = Field(description="Of `delay`.")
    loss: float = Field(description="Of `drop`: of a flow's packets, in per cent.")
    seed: int
    remaining: float = Field(description="Time until it ends.")
    flows: int = Field(description="Flows that it has chosen.")
    packets: int = Field(description="Packets that it has held, lost, or reset a flow with.")


class InjectedFaults(Answer):
    faults: list[Injected]


class LogLevelRequest(Question):
    level: LogLevel
    duration: Duration | None = Field(
        None,
        validation_alias="for",
        serialization_alias="for",
        description="Return to the previous level after this time.",
    )


class LogLevelChange(Answer):
    level: LogLevel
    remaining: float | None = Field(
        description="Time until the previous level returns; null: permanent."
    )


class ReloadRequest(Question):
    discard: bool = Field(False, description="Drop all run-time changes.")
    dry_run: bool = Field(False, description="Only report what would change.")


class Host(Answer):
    assign: bool = Field(description="False with `assign: false`.")
    deviations: list[str] = Field(
        description="What others have changed on the host; a reload restores it."
    )


class Reloaded(Answer):
    differences: list[str]


class PlanRequest(Question):
    config: str = Field(description="The text of a configuration file (YAML).")
    path: str = Field(
        description="Its absolute path: faults name it, and paths of custom schedulers start there."
    )


class PlannedService(Answer):
    """What would become of a service's open flows, and of their clients."""

    name: str
    flows: dict[str, int] = Field(
        description="Open flows by outcome: `stay`, `drain` (the backend gets no new"
        " ones), `move` (to another datapath), `drop`, `reset`."
    )
    slots: float | None = Field(
        description="Part of the hash slots that would change backend; null: no hash slots, or"
        " others."
    )
    least: float | None = Field(description="The smallest part that could follow the weights.")
    clients: int = Field(description="Clients with open flows.")
    moved: int | None = Field(
        description="Those of them whose next flow from the same port would have another backend;"
        " null: it may have any."
    )


class Planned(Answer):
    """What a reload to a configuration would do."""

    differences: list[str] = Field(description="As in [Reloaded](#reloaded).")
    refused: list[str] = Field(
        description="Why the reload would be refused; empty if it would not."
    )
    services: list[PlannedService] = Field(description="Empty if it would be refused.")
    sampled: int = Field(description="Flows in the sample.")
    flows: int = Field(description="Flows in total.")
    host: list[str] = Field(
        description="What would change on the host, as shell commands:"
        " `-` is removed, `+` is added."
    )


class Event(Answer):
    kind: str
    message: str
    time: str
    missed: int = Field(description="Events lost before this one: the client reads too slowly.")
    details: dict[str, str | int]


class CaptureQuery(Question):
    service: str | None = None
    client: str | None = Field(None, description="An address or a network, such as `10.0.0.0/8`.")
    backend: str | None = Field(
        None, description="`IP:PORT`, `IP:LOW-HIGH`, or `IP` for all ports of a host."
    )
    protocol: Literal["tcp", "udp"] | None = None
    length: int = Field(65535, ge=64, le=65535, description="Bytes of each packet, at most.")


class CapturedPacket(Answer):
    """A packet on one side of the balancer. `data` is empty, and nothing else means anything but
    `missed`, where there was none for a while."""

    time: float = Field(description="Seconds since the epoch.")
    side: Literal["clients", "backends"]
    leaving: bool = Field(description="False: as it arrived; true: as it left.")
    length: int = Field(description="Of the packet, in bytes; `data` has the first ones.")
    data: str = Field(description="From the IP header on, in base64.")
    comment: str = Field(description="What became of it, and why.")
    missed: int = Field(description="Packets before it that were too many to be captured.")


class Frames(Answer):
    """Frames of the `raw` datapath."""

    received: int
    dropped: int = Field(description="Dropped by the kernel: socket full.")
    unsent: int = Field(description="No outgoing link, or refused by the kernel.")
    unresolved: int = Field(description="No MAC address for the next hop.")
    held: int = Field(description="Waiting for the next hop's MAC address.")


class CarriedFlows(Answer):
    """Flows of the `ebpf` datapath."""

    flows: int = Field(description="That the program in the kernel carries now.")
    given: int = Field(description="That it was given by the worker.")
    unplaced: int = Field(description="That stayed with the worker, as the program had no room.")


class Queue(Answer):
    worker: int
    received: int
    truncated: int
    queue_dropped: int = Field(description="Dropped by the kernel: queue full.")
    socket_dropped: int = Field(description="Dropped by the kernel: socket full.")
    verdict_refused: int = Field(
        description="Dropped: the kernel had no memory for their verdicts."
    )
    waiting: int
    unsent: int = Field(
        description="Generated packets (RST, ICMP) that the kernel refused to send."
    )
    frames: Frames
    program: CarriedFlows


class Stats(Answer):
    received: int = Field(description="translated + passed + dropped.")
    translated: int
    passed: int
    dropped: int
    reasons: dict[str, int] = Field(description="Packets by reason; the sum is `received`.")
    martians: int = Field(
        description="Packets that rules dropped before workers saw them, as no client can have sent"
        " them: from addresses of this host, or of nobody to whom it has a route."
    )
    flows: int
    flows_by_class: dict[str, int] = Field(description="The sum is `flows`.")
    evicted: int = Field(description="Flows evicted because the table was full.")
    unkept_syns: int = Field(
        description="Refusals that a client got because the copy of its SYN was overwritten, or too"
        " long to keep."
    )
    scheduler_errors: dict[str, int] = Field(description="Errors of custom schedulers, by service.")
    queues: list[Queue]
