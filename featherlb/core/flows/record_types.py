"""A record and its directions as mypy sees them. Nothing imports this when the program runs."""

from collections.abc import MutableSequence

# From the tables of record.py, by `scripts/check_record.py --write`:


class Direction:
    src_high: int
    src_low: int
    dst_high: int
    dst_low: int
    src_port: int
    dst_port: int
    expected: int
    awaited: int
    kernel_packets: int
    bytes: int


class Record:
    directions: MutableSequence[Direction]
    client_high: int
    client_low: int
    vip_high: int
    vip_low: int
    client_port: int
    vip_port: int
    client_expects: int
    forward_bytes: int
    backend_high: int
    backend_low: int
    source_high: int
    source_low: int
    backend_port: int
    source_port: int
    backend_expects: int
    reply_bytes: int
    splice: int
    seen: int
    idle: int
    previous: int
    epoch: int
    next: int
    owner: int
    ends: MutableSequence[int]
    responses: int
    member_id: int
    flags: int
    address_delta: int
    transport_delta: int
    age: int
    protocol: int
    state: int
    queue: int
    kind: int
    scales: int


# End of what the tables of record.py say.
