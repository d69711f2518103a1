"""What each scheduler promises about the distribution of connections, as a test on counts. Pure.

The connections of a run are opened once and stay open to its end, so the counts are those of the
picks. `silent` further ones, without a request, can have gone anywhere: every count may be off by
their number. Where chance decides, a count may also be CHANCES standard deviations from its mean:
by chance alone that is exceeded once in 1.7 million times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

CHANCES = 5
TWO_CHOICES_SPREAD = 10
"""How far two-choices may be from the exact share. In 20,000 simulations with 400 connections and 2
to 8 backends, none was off by more than 7, and each step was 5 times rarer than the one before."""
HASH_ROWS = 65536
"""Rows of the hash schedulers' tables, assigned at random or in equal numbers."""

Counts = Sequence[int]
"""Connections by backend."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The result of a run: the backends' weights, each client's connections by backend."""

    weights: Sequence[int]
    by_client: Mapping[str, Counts]
    silent: int

    @property
    def counts(self) -> Counts:
        return [sum(column) for column in zip(*self.by_client.values(), strict=True)]

    def means(self, weighted: bool) -> list[float]:
        """What each backend should have."""
        weights = self.weights if weighted else [1] * len(self.weights)
        return [sum(self.counts) * weight / sum(weights) for weight in weights]


@dataclass(frozen=True, slots=True)
class Promise:
    """`broken` yields a sentence for each backend or client whose count breaks the promise."""

    text: str
    broken: Callable[[Pool], list[str]]


def _near(pool: Pool, weighted: bool, allowed: Callable[[float, int], float]) -> list[str]:
    """Every backend's count is as far from its mean as allowed, given mean and total, or less."""
    faults = []
    total = sum(pool.counts)
    for number, (count, mean) in enumerate(zip(pool.counts, pool.means(weighted), strict=True), 1):
        limit = allowed(mean, total) + pool.silent
        if abs(count - mean) > limit:
            faults.append(
                f"backend {number} got {count} connections instead of {mean:.1f} ± {limit:.1f}"
            )
    return faults


def _even(pool: Pool) -> list[str]:
    return _near(pool, False, lambda mean, total: 1)


def _proportional(pool: Pool) -> list[str]:
    return _near(pool, True, lambda mean, total: len(pool.weights))


def _almost_proportional(pool: Pool) -> list[str]:
    return _near(pool, True, lambda mean, total: TWO_CHOICES_SPREAD)


def _at_random(pool: Pool) -> list[str]:
    return _near(pool, True, lambda mean, total: CHANCES * sqrt(mean * (1 - mean / total)))


def _by_hash(pool: Pool) -> list[str]:
    def allowed(mean: float, total: int) -> float:
        return CHANCES * sqrt(mean * (1 - mean / total) * (1 + total / HASH_ROWS))

    return _near(pool, True, allowed)


def _one_backend_each(pool: Pool) -> list[str]:
    return [
        f"client {client} was sent to {sum(map(bool, counts))} backends: {list(counts)}"
        for client, counts in pool.by_client.items()
        if sum(map(bool, counts)) != 1
    ]


def _one_backend(pool: Pool) -> list[str]:
    used = sum(count > pool.silent for count in pool.counts)
    return [] if used == 1 else [f"{used} backends were used: {pool.counts}"]


# Not of `overflow`: it refuses connections beyond the sum of the weights. Nor of `least-latency`:
# what each backend gets depends on how long the machine takes.
PROMISES = {
    "round-robin": Promise("equal shares, to within 1", _even),
    "weighted-round-robin": Promise(
        "shares by weight, to within the number of backends", _proportional
    ),
    "least-connections": Promise("equally many open connections, to within 1", _even),
    "weighted-least-connections": Promise(
        "open connections by weight, to within the number of backends", _proportional
    ),
    "never-queue": Promise(
        "open connections by weight, to within the number of backends", _proportional
    ),
    "first": Promise("all connections on one backend", _one_backend),
    "failover": Promise("all connections on one backend", _one_backend),
    "destination-hash": Promise("all connections on one backend", _one_backend),
    "random": Promise("shares by weight, to within 5 standard deviations", _at_random),
    "two-choices": Promise(
        f"open connections by weight, to within {TWO_CHOICES_SPREAD}", _almost_proportional
    ),
    "source-hash": Promise("all connections of a client on one backend", _one_backend_each),
    "five-tuple-hash": Promise("shares by weight, to within 5 standard deviations", _by_hash),
    "maglev": Promise("shares by weight, to within 5 standard deviations", _by_hash),
}
