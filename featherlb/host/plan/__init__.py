"""What an instance needs of the host, as a value: rules, sets, addresses, settings. No I/O.

Imports `model` and the value types of the drivers. `build` turns services into a `HostPlan`; all
that it has to know about the host comes in as `Facts`. docs/packet-path.md walks through the
hooks; `queued`, `copies` and `offloaded` have the rules of each datapath.

The verdict on a queued packet ends its way through that table, so featherlb's rules stand last
in raw and mangle, behind the host's own. The guards stand first.
"""

from featherlb.host.plan.addresses import subnet_interface
from featherlb.host.plan.claims import (
    carried_entries,
    kept_entries,
    on_datapath,
    source_entries,
    untracked_entries,
)
from featherlb.host.plan.facts import Facts, Options
from featherlb.host.plan.plan import HostPlan, build

__all__ = [
    "Facts",
    "HostPlan",
    "Options",
    "build",
    "carried_entries",
    "kept_entries",
    "on_datapath",
    "source_entries",
    "subnet_interface",
    "untracked_entries",
]
