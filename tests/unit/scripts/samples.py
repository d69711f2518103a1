"""Samples as a run would give them. Imports the benchmark's figures."""

from dataclasses import replace

from scripts.bench.figures import Sample

FACTS = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m scripts.bench",
    "cores": 2,
    "processor": "A Processor",
    "kernel": "6.1.0",
    "system": "A System",
    "load_before": 0.04,
    "build": "compiled",
    "versions": {"haproxy": "2.6.12"},
}
TITLES = {"featherlb-netlink-dnat": "featherlb", "haproxy": "HAProxy", "nftables": "DNAT"}

_SAMPLE = Sample(
    round=1,
    peer="haproxy",
    workload="keepalive-64",
    rate=1000.0,
    errors=0,
    requests=2000,
    p50=0.001,
    p99=0.004,
    cpu_peer=0.5,
    cpu_system=1.5,
    pss=10_000_000,
    rss_peak=12_000_000,
)


def sample(**fields: object) -> Sample:
    """A sample that differs from the usual one in these fields."""
    return replace(_SAMPLE, **fields)  # type: ignore[arg-type]
