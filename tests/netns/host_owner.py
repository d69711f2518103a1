"""An instance of its own process, for the tests of host changes: applies a plan, and obeys stdin.

    python -m tests.netns.host_owner QUEUE NAT VIP BACKEND...

Prints `applied` when the plan is in force. Then each line on stdin is a list of backends to go
over to (answered by `updated`); the end of stdin reverts everything (`reverted`).
"""

import sys
from ipaddress import ip_address

from featherlb import host
from featherlb.model import Backend, Endpoint, NatMode, Protocol, Service, Vip
from featherlb.model.errors import HostError


def service(nat: str, vip: str, backends: list[str]) -> Service:
    where, _, last = vip.partition("-")
    if where.startswith("0.0.0.0:"):
        endpoint = Endpoint(ip_address("0.0.0.0"), int(where.removeprefix("0.0.0.0:")))
    else:
        endpoint = Endpoint.parse(where)
    return Service(
        name="web",
        protocol=Protocol.TCP,
        vips=(Vip(endpoint.address, endpoint.port, int(last or endpoint.port)),),
        backends=tuple(Backend(Endpoint.parse(backend)) for backend in backends),
        nat=NatMode(nat),
    )


def main(queue: str, nat: str, vip: str, *backends: str) -> None:
    options = host.Options(queue=int(queue))

    def plan(backends: list[str]) -> host.HostPlan:
        services = host.prepare([service(nat, vip, backends)])
        facts = host.survey(services)
        host.check(services, options, facts)
        return host.build(services, options, facts)

    instance = host.Host()
    try:
        instance.apply(plan(list(backends)))
    except HostError as error:
        sys.exit(str(error))
    print("applied", flush=True)
    for line in sys.stdin:
        instance.update(plan(line.split()))
        print("updated", flush=True)
    print("reverted", *instance.revert()[1], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
