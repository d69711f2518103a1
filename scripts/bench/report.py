"""Samples as Markdown tables."""

from collections.abc import Iterable, Mapping, Sequence

from scripts.bench.figures import GROUPS, HEADLINES, Figure, Sample
from scripts.bench.summary import Spread, by_round, ratios, spread

BASES = {"haproxy": "HAProxy", "nftables": "kernel DNAT"}
"""The peers that ratios are taken to, and what the tables call them."""
ABSENT = "-"

Titles = Mapping[str, str]
"""Titles of the peers by name, in the order of the rows."""


def headline(samples: Sequence[Sample], titles: Titles, facts: Mapping[str, object]) -> str:
    """A table for a README: medians and ratios to the first base, and how they were measured."""
    base = next(iter(BASES))
    figures = [figure for figure in HEADLINES if _measured(samples, figure)]
    rows = [
        [title, *(_headline_cell(samples, name, figure, base) for figure in figures)]
        for name, title in titles.items()
    ]
    ratio = f"In parentheses: the ratio to {titles[base]}. " if base in titles else ""
    header = ["", *(figure.title for figure in figures)]
    return f"{table(header, rows)}\n\n{ratio}{origin(samples, facts)}\n"


def _headline_cell(samples: Sequence[Sample], peer: str, figure: Figure, base: str) -> str:
    own = by_round(samples, peer, figure)
    values = spread(own.values())
    if values is None:
        return ABSENT
    pairs = spread(ratios(own, by_round(samples, base, figure)))
    ratio = f" ({pairs.median:.2f})" if pairs else ""
    return number(values.median, figure.decimals) + ratio


def full(
    samples: Sequence[Sample],
    titles: Titles,
    facts: Mapping[str, object],
    failures: Iterable[str],
) -> str:
    """Every figure: medians with spread, then the ratios of each to the bases."""
    parts = ["# Benchmark", origin(samples, facts)]
    for heading, figures in GROUPS.items():
        measured = [figure for figure in figures if _measured(samples, figure)]
        if measured:
            parts.append(f"## {heading}\n\nMedian (smallest to largest).")
            parts.append(_figures(samples, titles, measured))
    for base, called in BASES.items():
        measured = [
            figure
            for group in ("Throughput", "Latency", "CPU")
            for figure in GROUPS[group]
            if by_round(samples, base, figure)
        ]
        if measured:
            parts.append(
                f"## Ratios to {called}\n\nMedian of each round's ratio (smallest to largest)."
                " More is better for rates, less for times and CPU."
            )
            parts.append(_ratios(samples, titles, measured, base))
    notes = [*failures, *_errors(samples)]
    if notes:
        parts.append("## Not measured, or with errors\n\n" + "\n".join(f"- {n}" for n in notes))
    return "\n\n".join(parts) + "\n"


def origin(samples: Sequence[Sample], facts: Mapping[str, object]) -> str:
    """When, where and how the figures were measured."""
    rounds = len({sample.round for sample in samples})
    versions = facts["versions"]
    assert isinstance(versions, Mapping)
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{facts['date']}, {facts['cores']} cores ({facts['processor']}), Linux {facts['kernel']},"
        f" {facts['system']}, load average {facts['load_before']:.1f} before;"
        f" packet path {facts['build']}, {names}."
        f" Medians of {rounds} alternating rounds: `{facts['command']}`."
    )


def number(value: float, decimals: int) -> str:
    """With thousands separators; large values don't need their last digits."""
    if decimals == 0 and value >= 10_000:
        value = round(value, -2)
    return f"{value:,.{decimals}f}"


def describe(values: Spread | None, decimals: int) -> str:
    """`102,400 (98,000-105,000)`."""
    if values is None:
        return ABSENT
    low, high = number(values.low, decimals), number(values.high, decimals)
    return f"{number(values.median, decimals)} ({low}-{high})"


def _measured(samples: Sequence[Sample], figure: Figure) -> bool:
    return any(
        figure.workload in (None, sample.workload) and figure.read(sample) is not None
        for sample in samples
    )


def _figures(samples: Sequence[Sample], titles: Titles, figures: Sequence[Figure]) -> str:
    """One row a peer, one column a figure."""
    rows = [
        [
            title,
            *(
                describe(spread(by_round(samples, name, figure).values()), figure.decimals)
                for figure in figures
            ),
        ]
        for name, title in titles.items()
    ]
    return table(["", *(figure.title for figure in figures)], rows)


def _ratios(samples: Sequence[Sample], titles: Titles, figures: Sequence[Figure], base: str) -> str:
    """One row a figure, one column a peer: these cells are short and the figures many."""
    rows = []
    for figure in figures:
        denominator = by_round(samples, base, figure)
        cells = [
            describe(spread(ratios(by_round(samples, name, figure), denominator)), 2)
            for name in titles
        ]
        rows.append([figure.title, *cells])
    return table(["", *titles.values()], rows)


def _errors(samples: Sequence[Sample]) -> Iterable[str]:
    for sample in samples:
        if sample.errors:
            yield (
                f"{sample.peer}, {sample.workload}, round {sample.round}: {sample.errors} errors"
                f" in {sample.requests} requests"
            )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
