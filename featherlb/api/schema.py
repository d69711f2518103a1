"""What the runtime API takes and gives, as pydantic models; docs/api.md is kept in step.

Durations and ages are seconds, addresses text such as `10.0.1.2:8080`, times ISO 8601 in UTC.
"""

from contextlib import suppress
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from featherlb.config import values
from featherlb.control.overrides import Action
from featherlb.model import Health, Role
from featherlb.model.errors import ConfigError


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


Duration = Annotated[float, BeforeValidator(duration)]
"""Seconds, or text such as `10m`."""


class Question(BaseModel):
    """Base of what clients send: unknown keys are faults."""

    # Built when it is first used: a process uses few of them.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True, validate_by_name=True)


class Answer(BaseModel):
    """Base of what the server sends."""

    model_config = ConfigDict(defer_build=True, frozen=True)


_Model = TypeVar("_Model", bound=BaseModel)


def read(model: type[_Model], data: object) -> _Model:
    """The data as a model; ConfigError says what is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError([_one_line(fault) for fault in error.errors()]) from None


class Fault(Answer):
    """Any answer with a status of 400 or more."""

    error: str = Field(description="One sentence, or several lines with a fault each.")


class Worker(Answer):
    number: int
    pid: int
    flows: int
    received: int = Field(description="Packets since it started.")
    waiting: int = Field(description="Packets that wait in its queue now.")


class Status(Answer):
    instance: int = Field(description="The number of its first queue, which names it on this host.")
    version: str
    pid: int
    started: str
    uptime: float
    services: int
    datapaths: dict[str, int] = Field(description="How many services have which datapath.")
    backends: int
    flows: int
    capacity: int = Field(description="Flows that fit, of all workers.")
    changes: int = Field(description="Run-time changes in force.")
    reloads: int
    reloads_refused: int
    last_reload: str = Field(description="Empty if there was none.")
    reload_error: str = Field(description="Why the last reload was refused; empty if it was not.")
    panic: list[str] = Field(description="Services whose backends' health is ignored.")
    worker_restarts: int
    workers: list[Worker]


class Backend(Answer):
    backend: str = Field(description="As in the configuration.")
    address: str = Field(description="One of the addresses that it stands for.")
    state: Health | Literal["drained", "leaving"] = Field(
        description="`down` by its health checks, `ejected` because connections to it failed;"
        " `leaving` has left the pool and still has flows."
    )
    failure: str = Field(
        description="Why its last health check failed, or why it is ejected; else empty."
    )
    role: Role = Field(description="When it gets new flows.")
    weight: int = Field(description="As configured or changed.")
    effective_weight: float = Field(
        description="0 if it isn't used; less than the weight while it starts slowly."
    )
    max_connections: int | None = Field(description="Open flows at a time; null is any number.")
    active: int = Field(description="Open flows, half-open ones included.")
    flows: int = Field(description="Flows since it joined.")
    packets_forward: int
    bytes_forward: int
    packets_reply: int
    bytes_reply: int
    resets: int = Field(description="Connections that it reset.")
    refused: int = Field(description="Connections that it refused with a RST.")
    syn_timeouts: int = Field(description="Connections that it never answered.")
    syn_retries: int = Field(description="Connections whose client had to send the SYN again.")


class Service(Answer):
    name: str
    protocol: str
    vips: list[str]
    scheduler: str
    nat: str
    datapath: str = Field(description="The one that is in use, also where it was to be picked.")
    panic: bool = Field(description="Too few backends are well, so all are used.")
    backends: list[Backend]


class Services(Answer):
    services: list[Service]


class FlowQuery(Question):
    service: str | None = None
    client: str | None = Field(None, description="An address or a network, `10.0.0.0/8`.")
    backend: str | None = Field(None, description="`IP:PORT`.")
    state: str | None = Field(None, description="The name of a state, such as `established`.")
    older: Duration | None = Field(None, description="At least this old.")

    @property
    def is_empty(self) -> bool:
        return not self.model_dump(exclude_none=True)


class FlowsQuery(FlowQuery):
    limit: int = Field(1000, ge=1, le=10000, description="Flows in one answer.")
    cursor: str = Field(
        "0:1", pattern=r"^\d{1,3}:\d{1,10}$", description="`next` of the last answer."
    )


class Flow(Answer):
    service: str
    protocol: str
    state: str
    client: str
    vip: str
    backend: str
    source: str = Field(description="What the backend sees.")
    age: float
    idle: float = Field(description="Since its last packet.")
    bytes_forward: int
    bytes_reply: int


class Flows(Answer):
    flows: list[Flow]
    next: str | None = Field(description="Ask with this cursor for more; null at the end.")


class Ended(Answer):
    count: int


class ClientShare(Answer):
    client: str
    flows: int


class Clients(Answer):
    clients: list[ClientShare]
    sampled: int = Field(description="Flows that were looked at.")
    flows: int = Field(description="Flows that there are.")


class ChangeRequest(Question):
    action: Action
    service: str = Field(description="Its name or one of its VIPs.")
    backend: str = Field(description="`HOST:PORT`, as in the configuration.")
    weight: Annotated[int, BeforeValidator(values.weight)] | None = Field(
        None, description="For `weight` and `add` (there 1 if left out)."
    )
    role: Annotated[Role, BeforeValidator(values.role)] | None = Field(
        None, description="For `add`, `primary` if left out."
    )
    max_connections: Annotated[int, BeforeValidator(values.max_connections)] | None = Field(
        None, description="For `add`: open flows at a time."
    )
    duration: Duration | None = Field(
        None,
        validation_alias="for",
        serialization_alias="for",
        description="The change reverts by itself after this time.",
    )
    deadline: Duration | None = Field(
        None, description="For `drain`: what flows are left after this time are reset."
    )


class Change(Answer):
    number: int
    action: Action
    service: str
    backend: str
    weight: int | None
    role: Role
    max_connections: int | None
    remaining: float | None = Field(description="Until it reverts; null if it stays.")
    deadline: float | None = Field(description="Until its flows are reset; null if they aren't.")


class Changes(Answer):
    changes: list[Change]


class ReloadRequest(Question):
    discard: bool = Field(False, description="Drop all run-time changes.")
    dry_run: bool = Field(False, description="Only say what would change.")


class Host(Answer):
    assign: bool = Field(description="False if it was started with `--no-assign`.")
    deviations: list[str] = Field(
        description="What somebody else has changed of what it needs; a reload puts it right."
    )


class Reloaded(Answer):
    differences: list[str]


class Event(Answer):
    kind: str
    message: str
    time: str
    missed: int = Field(description="Events before this one that were lost: the client is slow.")
    details: dict[str, str | int]


class Frames(Answer):
    """Of the raw datapath."""

    received: int
    dropped: int = Field(description="Dropped by the kernel: the socket was full.")
    unsent: int = Field(description="No link was there to leave by, or the kernel refused them.")
    unresolved: int = Field(description="Their next hop's MAC address did not become known.")
    held: int = Field(description="Waiting for it now.")


class Queue(Answer):
    worker: int
    received: int
    truncated: int
    queue_dropped: int = Field(description="Dropped by the kernel: the queue was full.")
    socket_dropped: int = Field(description="Dropped by the kernel: the socket was full.")
    waiting: int
    unsent: int = Field(description="Packets of featherlb's own that the kernel refused to send.")
    frames: Frames


class Stats(Answer):
    received: int = Field(description="translated + passed + dropped.")
    translated: int
    passed: int
    dropped: int
    reasons: dict[str, int] = Field(description="What became of packets; adds up to `received`.")
    flows: int
    flows_by_class: dict[str, int] = Field(description="Adds up to `flows`.")
    evicted: int = Field(description="Flows given up because the table was full.")
    scheduler_errors: dict[str, int] = Field(description="By service, of users' schedulers.")
    queues: list[Queue]
