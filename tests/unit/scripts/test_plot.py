"""The chart is drawn, even from few or incomplete samples."""

from pathlib import Path

import pytest

from tests.unit.scripts.samples import TITLES, sample

pytest.importorskip("matplotlib", reason="the plot needs matplotlib: scripts/setup.sh .venv bench")


def test_a_chart_is_as_high_as_it_has_panels(tmp_path: Path) -> None:
    from scripts.bench.plot import draw

    few, many = tmp_path / "few.png", tmp_path / "many.png"
    samples = [sample(), sample(round=2, rate=1500.0)]
    draw(few, samples, TITLES, "caption")
    bulk = [sample(workload=f"bulk-reply-{n}", requests=None, p50=None, p99=None) for n in (1, 8)]
    draw(many, [*samples, *bulk, sample(workload="connect-64")], TITLES, "caption")
    assert height(few) < height(many)


def height(path: Path) -> int:
    """Of a PNG, from its header chunk (RFC 2083 section 4.1.1)."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(content[20:24], "big")
