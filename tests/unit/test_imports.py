"""What a start doesn't need, it doesn't import: each of these takes a noticeable part of it."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        (
            "featherlb.worker.loop",
            "asyncio importlib.metadata pyroute2 aiohttp pydantic click yaml",
        ),
        ("featherlb.cli.up", "pyroute2 yaml prometheus_client rich"),
        ("featherlb.cli.down", "pyroute2 aiohttp pydantic yaml rich"),
        ("featherlb.doctor", "aiohttp prometheus_client"),
        ("featherlb.cli.status", "asyncio aiohttp pyroute2 yaml prometheus_client"),
        ("featherlb.cli", "asyncio pyroute2 aiohttp pydantic yaml rich"),
    ],
)
def test_what_is_not_needed_is_not_imported(module: str, spared: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded.isdisjoint(spared.split())
