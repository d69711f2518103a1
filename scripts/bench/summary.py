"""Medians, spreads and ratios of samples."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from scripts.bench.figures import Figure, Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the smallest and largest value it comes from."""

    median: float
    low: float
    high: float


def by_round(samples: Iterable[Sample], peer: str, figure: Figure) -> dict[int, float]:
    """The figure's value of a peer in each round that has one."""
    values: dict[int, float] = {}
    for sample in samples:
        if sample.peer == peer and figure.workload in (None, sample.workload):
            value = figure.read(sample)
            if value is not None:
                values[sample.round] = max(value, values.get(sample.round, value))
    return values


def spread(values: Iterable[float]) -> Spread | None:
    """None of no values."""
    ordered = sorted(values)
    return Spread(median(ordered), ordered[0], ordered[-1]) if ordered else None


def ratios(values: Mapping[int, float], base: Mapping[int, float]) -> list[float]:
    """One ratio for each round that both have: what drifts between rounds cancels out."""
    return [value / base[number] for number, value in values.items() if base.get(number)]
