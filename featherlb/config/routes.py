"""The configuration file of the Go featherlb: `routes` of `host`, `port`, `strategy`, `endpoints`.

The Go program is a TCP proxy, so its backends see the balancer's address: `full` NAT. It uses an
endpoint as often as it is listed, which is a weight here.
"""

from collections import Counter

from featherlb.config import schema
from featherlb.config.faults import Fault
from featherlb.config.loader import Document, Path
from featherlb.config.types import BackendConfig, Config, ServiceConfig, VipConfig, default_name
from featherlb.model import NatMode, Protocol

_WEIGHTED = {"round-robin": "weighted-round-robin"}
"""Schedulers that ignore weights, and their weighted variants."""


def read(document: Document, faults: list[Fault]) -> Config:
    """The valid parts of a `routes` file; the rest is added to `faults`."""
    file = schema.validate(schema.RoutesFile, document, faults)
    if file is None:
        return Config()
    return Config(
        services=tuple(
            _service(route, document, ("routes", i))
            for i, route in enumerate(file.routes)
            if route is not schema.DISCARDED
        )
    )


def _service(route: schema.RouteEntry, document: Document, path: Path) -> ServiceConfig:
    vip = VipConfig(route.host, route.port, route.port, document.origin((*path, "host")))
    endpoints = [
        BackendConfig(
            endpoint.host, endpoint.port, document.origin((*path, "endpoints", i, "host"))
        )
        for i, endpoint in enumerate(route.endpoints)
        if endpoint is not schema.DISCARDED
    ]
    weights = Counter(endpoints)
    repeated = len(weights) < len(endpoints)
    return ServiceConfig(
        name=default_name(vip, Protocol.TCP),
        vips=(vip,),
        origin=document.origin(path),
        scheduler=_WEIGHTED.get(route.strategy, route.strategy) if repeated else route.strategy,
        nat=NatMode.FULL,
        backends=tuple(
            BackendConfig(backend.host, backend.port, backend.origin, weight)
            for backend, weight in weights.items()
        ),
    )
