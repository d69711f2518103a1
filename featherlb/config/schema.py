"""The structure of configuration files, as pydantic models.

A field's type is a reader of `values`; its description is the expected value in faults. Pydantic
walks the structure and collects errors; `_explain` rewrites its messages for operators. `services`
files refuse unknown keys. `routes` files belong to another program and ignore them, as it does.
"""

from dataclasses import replace
from typing import Annotated, Any, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from featherlb.config import values
from featherlb.config.expression import Condition
from featherlb.config.faults import Fault, Origin
from featherlb.config.loader import Document, Path, show_path
from featherlb.config.types import (
    DEFAULT_KEYS,
    Automatic,
    BackendKey,
    Config,
    Host,
    NetworkFile,
)
from featherlb.model import (
    DEFAULT_DATAPATH,
    Address,
    CheckType,
    Datapath,
    Driver,
    Endpoint,
    HashPart,
    Health,
    HealthCheck,
    NatMode,
    Network,
    OnBackendDown,
    PassiveCheck,
    Preference,
    Protocol,
    Rate,
    Redispatch,
    Refusal,
    Role,
    StatusRange,
    Sync,
    SynCookies,
    Timeouts,
    Vip,
)

DISCARDED: Any = object()
"""Replaces faulty list items; builders skip it."""

# Other fields depend on these: without them, a service can't be checked.
_NEEDED = {"protocol", "nat"}

_keep_discarded = WrapValidator(
    lambda value, validate: DISCARDED if value is DISCARDED else validate(value)
)
_one_or_list = BeforeValidator(lambda value: value if isinstance(value, list) else [value])


def _backend(value: object) -> object:
    """A backend's short form as a mapping."""
    if isinstance(value, str):
        return {"address": value}
    if not isinstance(value, dict):
        raise values.wrong_type(value, "HOST:PORT, or a mapping with address and weight")
    return value


_Port = Annotated[int, PlainValidator(values.port)]
_Host = Annotated[Host, PlainValidator(values.host)]
_Name = Annotated[str, PlainValidator(values.host_name)]
_Duration = Annotated[float, PlainValidator(values.duration)]
_SourceAddress = Annotated[Address, PlainValidator(values.address), _keep_discarded]
_HashPart = Annotated[HashPart, PlainValidator(values.hash_part), _keep_discarded]
_Peer = Annotated[Endpoint, PlainValidator(values.endpoint), _keep_discarded]
_Vip = Annotated[Vip, PlainValidator(values.vip), _keep_discarded]


class _Strict(BaseModel):
    # Built when the first file is read, together with its nested models.
    model_config = ConfigDict(defer_build=True, extra="forbid", frozen=True)


class _Lenient(BaseModel):
    model_config = ConfigDict(defer_build=True, extra="ignore", frozen=True)


class BackendEntry(_Strict):
    address: Annotated[BackendKey, PlainValidator(values.backend)] = Field(description="HOST:PORT")
    weight: Annotated[int, PlainValidator(values.weight)] = 1
    role: Annotated[Role, PlainValidator(values.role)] = Role.PRIMARY
    max_connections: Annotated[int | None, PlainValidator(values.max_connections)] = None
    labels: Annotated[dict[str, str], PlainValidator(values.labels)] = {}


class PersistenceEntry(_Strict):
    timeout: _Duration = 300.0
    prefix: Annotated[int | None, PlainValidator(values.integer(1, 128))] = None


class PreferenceEntry(_Strict):
    labels: Annotated[dict[str, str], PlainValidator(values.some_labels)] = Field(
        description="a mapping such as {zone: a}"
    )
    spill_below: Annotated[int, PlainValidator(values.percentage)] = Preference(()).spill_below


class RedispatchEntry(_Strict):
    refused: Annotated[bool, PlainValidator(values.boolean)] = Redispatch().refused
    silent: Annotated[bool, PlainValidator(values.boolean)] = Redispatch().silent
    attempts: Annotated[int, PlainValidator(values.integer(1, 16))] = Redispatch().attempts


_Clients = Annotated[Network | NetworkFile, PlainValidator(values.clients), _keep_discarded]
_Prefix = Annotated[int | None, PlainValidator(values.prefix)]
_Refusal = Annotated[Refusal, PlainValidator(values.refusal)]


class MaxFlowsEntry(_Strict):
    limit: Annotated[int, PlainValidator(values.integer(1, 100_000_000))] = Field(
        description="a number of flows"
    )
    prefix: _Prefix = None
    action: _Refusal = Refusal.DROP


class MaxNewEntry(_Strict):
    rate: Annotated[Rate, PlainValidator(values.rate)] = Field(description="a rate such as 50/s")
    burst: Annotated[int | None, PlainValidator(values.burst)] = None
    prefix: _Prefix = None
    action: _Refusal = Refusal.DROP


_CHECK = HealthCheck(CheckType.TCP)
_HTTP_KEYS = {"method", "path", "host", "status", "body"}
CHECK_KEYS = {
    CheckType.TCP: set[str](),
    CheckType.HTTP: _HTTP_KEYS,
    CheckType.HTTPS: _HTTP_KEYS,
    CheckType.UDP: {"send", "expect"},
    CheckType.SCRIPT: {"command", "user"},
}
"""Keys that only some check types allow."""
_Status = Annotated[StatusRange, PlainValidator(values.http_status), _keep_discarded]
_Word = Annotated[str, PlainValidator(values.text), _keep_discarded]
_Count = Annotated[int, PlainValidator(values.integer(1, 100))]


class HealthEntry(_Strict):
    type: Annotated[CheckType, PlainValidator(values.check_type)] = Field(
        description=" or ".join(CheckType)
    )
    interval: _Duration = _CHECK.interval
    timeout: _Duration = _CHECK.timeout
    rise: _Count = _CHECK.rise
    fall: _Count = _CHECK.fall
    initial: Annotated[Health, PlainValidator(values.initial_health)] = _CHECK.initial
    address: Annotated[Address | None, PlainValidator(values.address)] = None
    port: Annotated[int | None, PlainValidator(values.port)] = None
    method: Annotated[str, PlainValidator(values.http_method)] = _CHECK.method
    path: Annotated[str, PlainValidator(values.http_path)] = _CHECK.path
    host: Annotated[str | None, PlainValidator(values.http_host)] = None
    status: Annotated[list[_Status], _one_or_list, Field(min_length=1)] = list(_CHECK.status)
    body: Annotated[str | None, PlainValidator(values.text)] = None
    send: Annotated[str, PlainValidator(values.payload)] = _CHECK.send
    expect: Annotated[str | None, PlainValidator(values.payload)] = None
    command: Annotated[list[_Word], _one_or_list, Field(min_length=1)] = []
    user: Annotated[str | None, PlainValidator(values.user)] = None

    @model_validator(mode="after")
    def _keys_fit_type(self) -> Self:
        special = set[str]().union(*CHECK_KEYS.values()) - CHECK_KEYS[self.type]
        for key in type(self).model_fields:
            if key in special & self.model_fields_set:
                types = " or ".join(kind for kind, keys in CHECK_KEYS.items() if key in keys)
                raise ValueError(f"'{key}' requires type {types} (this check has {self.type})")
        if self.type is CheckType.SCRIPT and not self.command:
            raise ValueError("missing command (type script requires it)")
        return self


_PASSIVE = PassiveCheck()
_Share = Annotated[int, PlainValidator(values.percentage)]


class PassiveHealthEntry(_Strict):
    failures: Annotated[int, PlainValidator(values.integer(1, 1_000_000))] = _PASSIVE.failures
    share: _Share = _PASSIVE.share
    window: _Duration = _PASSIVE.window
    ejection: _Duration = _PASSIVE.ejection
    longest_ejection: _Duration = _PASSIVE.longest_ejection
    max_ejected: _Share = _PASSIVE.max_ejected
    slower: Annotated[int | None, PlainValidator(values.integer(2, 1000))] = _PASSIVE.slower
    slower_by: _Duration = _PASSIVE.slower_by


class ServiceEntry(_Strict):
    name: Annotated[str | None, PlainValidator(values.name)] = None
    vip: Annotated[list[_Vip], _one_or_list] = Field(
        min_length=1, description="IP:PORT, or a list of them"
    )
    protocol: Annotated[Protocol, PlainValidator(values.protocol)] = Protocol.TCP
    scheduler: Annotated[str, PlainValidator(values.scheduler)] = "round-robin"
    hash_on: Annotated[list[_HashPart], _one_or_list] = []
    hash_balance: Annotated[int | None, PlainValidator(values.integer(101, 1000))] = None
    nat: Annotated[NatMode, PlainValidator(values.nat)] = NatMode.DNAT
    datapath: Annotated[Datapath | Automatic, PlainValidator(values.datapath)] = DEFAULT_DATAPATH
    source_addresses: list[_SourceAddress] = []
    sync: Annotated[Sync, PlainValidator(values.sync)] = Sync.ESTABLISHED
    persistence: PersistenceEntry | None = None
    prefer: PreferenceEntry | None = None
    redispatch: RedispatchEntry = RedispatchEntry()
    allow: Annotated[list[_Clients], _one_or_list, Field(min_length=1)] = []
    deny: Annotated[list[_Clients], _one_or_list] = []
    deny_action: _Refusal = Refusal.DROP
    max_flows: Annotated[
        list[Annotated[MaxFlowsEntry, BeforeValidator(values.max_flows), _keep_discarded]],
        _one_or_list,
    ] = []
    max_new: Annotated[
        list[Annotated[MaxNewEntry, BeforeValidator(values.max_new), _keep_discarded]],
        _one_or_list,
    ] = []
    mss: Annotated[int | None, PlainValidator(values.integer(88, 65535))] = None
    syn_cookies: Annotated[SynCookies, PlainValidator(values.syn_cookies)] = SynCookies.AUTO
    one_packet: Annotated[bool, PlainValidator(values.boolean)] = False
    responses: Annotated[int | None, PlainValidator(values.integer(0, 65535))] = None
    on_backend_down: Annotated[OnBackendDown, PlainValidator(values.on_backend_down)] = (
        OnBackendDown.KEEP
    )
    on_open: Annotated[str, PlainValidator(values.code)] = ""
    on_close: Annotated[str, PlainValidator(values.code)] = ""
    on_backend_change: Annotated[str, PlainValidator(values.code)] = ""
    health: HealthEntry | None = None
    passive_health: PassiveHealthEntry | None = None
    slow_start: Annotated[float | None, PlainValidator(values.duration)] = None
    panic_threshold: _Share = 0
    backends: list[Annotated[BackendEntry, BeforeValidator(_backend), _keep_discarded]] = []


class TimeoutsEntry(_Strict):
    half_open: _Duration = Timeouts().half_open
    established: _Duration = Timeouts().established
    fin: _Duration = Timeouts().fin
    closed: _Duration = Timeouts().closed
    udp_one_way: _Duration = Timeouts().udp_one_way
    udp_two_way: _Duration = Timeouts().udp_two_way


class RecorderEntry(_Strict):
    size: Annotated[int, PlainValidator(values.integer(0, 16_777_216))] = Config().recorder.size
    dump_when: Annotated[Condition | None, PlainValidator(values.condition)] = None


class ApiEntry(_Strict):
    listen: Annotated[Endpoint, PlainValidator(values.endpoint)] = Field(description="IP:PORT")
    token: Annotated[str, PlainValidator(values.token)] = Field(
        description="text of 16 characters or more"
    )
    hosts: Annotated[list[_Name], _one_or_list] = []


class ClusterEntry(_Strict):
    node: _Name = Field(description="a name of this node's own")
    listen: Annotated[Endpoint, PlainValidator(values.endpoint)] = Field(description="IP:PORT")
    peers: Annotated[list[_Peer], _one_or_list] = []
    keys: Annotated[str, PlainValidator(values.directory)] = DEFAULT_KEYS
    source_addresses: dict[
        _Name, Annotated[list[Annotated[Address, PlainValidator(values.address)]], _one_or_list]
    ] = {}


class ServicesFile(_Strict):
    services: list[Annotated[ServiceEntry, _keep_discarded]] = Field(
        description="a list of services"
    )
    queue: Annotated[int | None, PlainValidator(values.integer(0, 65535))] = Config().queue
    workers: Annotated[int, PlainValidator(values.integer(1, 256))] = Config().workers
    fail_open: Annotated[bool, PlainValidator(values.boolean)] = Config().fail_open
    assign: Annotated[bool, PlainValidator(values.boolean)] = Config().assign
    restore: Annotated[bool, PlainValidator(values.boolean)] = Config().restore
    driver: Annotated[Driver, PlainValidator(values.driver)] = Config().driver
    hash_key: Annotated[str, PlainValidator(values.hash_key)] = Config().hash_key
    max_flows: Annotated[int, PlainValidator(values.integer(1, 100_000_000))] = Config().max_flows
    timeouts: TimeoutsEntry = TimeoutsEntry()
    resolve_interval: _Duration = Config().resolve_interval
    recorder: RecorderEntry = RecorderEntry()
    api: ApiEntry | None = None
    cluster: ClusterEntry | None = None


class EndpointEntry(_Lenient):
    host: _Host = Field(description="an IP address or a host name")
    port: _Port = Field(description="an integer from 1 to 65535")


class RouteEntry(_Lenient):
    host: _Host = Field(description="an IP address or a host name")
    port: _Port = Field(description="an integer from 1 to 65535")
    strategy: Annotated[str, PlainValidator(values.strategy)] = Field(
        description="roundrobin, random or iphash"
    )
    endpoints: list[Annotated[EndpointEntry, _keep_discarded]] = Field(
        min_length=1, description="a list of endpoints"
    )


class RoutesFile(_Lenient):
    routes: list[Annotated[RouteEntry, _keep_discarded]] = Field(
        min_length=1, description="a list of routes"
    )


_File = TypeVar("_File", bound=BaseModel)


def validate(model: type[_File], document: Document, faults: list[Fault]) -> _File | None:
    """Read a document as a `model` and add errors to `faults`.

    With faults, the result has the valid parts, so that they can be checked against each other;
    None if nothing is usable. Removes the faulty parts from `document.data`.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    for detail in details:
        path = _path(detail)
        origin = document.origin(path)
        if detail["type"] == "missing":
            origin = replace(origin, path=show_path(path[:-1]))
        faults.append(Fault(origin, _explain(model, detail)))
    for detail in details:
        _discard(model, document.data, document.existing(_path(detail)))
    try:
        return model.model_validate(document.data)
    except ValidationError:
        return None


def unknown_file(document: Document) -> Fault:
    """The fault of a document that is not a mapping."""
    text = "the file is empty" if document.data is None else "this is not a mapping"
    return Fault(Origin(document.source, 1, ""), f"{text} (expected the key 'services')")


def _path(detail: ErrorDetails) -> Path:
    return tuple(detail["loc"])


def _explain(model: type[BaseModel], detail: ErrorDetails) -> str:
    """A pydantic error (docs.pydantic.dev/latest/errors/validation_errors) for operators."""
    path, value = _path(detail), detail["input"]
    match detail["type"]:
        case "value_error":
            return str(detail["ctx"]["error"])
        case "missing":
            return f"'{path[-1]}' is missing (expected {_field(model, path).description})"
        case "extra_forbidden":
            return _unknown_key(str(path[-1]), list(_holder(model, path).model_fields))
        case "list_type":
            return str(values.wrong_type(value, "a list"))
        case "too_short":
            return "the list is empty (expected at least one entry)"
        case _:
            # The remaining error: something other than a mapping.
            keys = _holder(model, (*path, "")).model_fields
            return str(values.wrong_type(value, f"a mapping with {', '.join(keys)}"))


def _unknown_key(key: str, known: list[str]) -> str:
    close = values.closest(key.replace("-", "_"), known)
    hint = f"did you mean '{close}'?" if close else f"expected one of {', '.join(known)}"
    return f"unknown key ({hint})"


def _discard(model: type[BaseModel], data: Any, path: Path) -> None:
    """Remove the smallest part of `data` that contains the fault at `path`, unless it went with an
    earlier fault."""
    while path:
        *parents, last = path
        owner = data
        for part in parents:
            if isinstance(owner, dict) and part not in owner:
                return
            owner = owner[part]
            if owner is DISCARDED:
                return
        if isinstance(last, int):
            owner[last] = DISCARDED
            return
        field = _holder(model, path).model_fields.get(last)
        if field is None or not (field.is_required() or last in _NEEDED):
            owner.pop(last, None)
            return
        path = tuple(parents)


def _field(model: type[BaseModel], path: Path) -> FieldInfo:
    return _holder(model, path).model_fields[str(path[-1])]


def _holder(model: type[BaseModel], path: Path) -> type[BaseModel]:
    """The model that has the last key of `path` as a field."""
    for part in path[:-1]:
        if isinstance(part, str):
            model = _nested(model.model_fields[part].annotation) or model
    return model


def _nested(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `list[Annotated[Model, ...]]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_nested, get_args(annotation))), None)
