"""The soak in its shortest form, and what it does with a fault."""

from pathlib import Path

import pytest

from scripts.trials import disturbances, soak
from scripts.trials.stage import stage

pytestmark = pytest.mark.no_packets("it tests the trial, which tests the packet path")


def test_a_little_of_the_soak(tmp_path: Path) -> None:
    kinds = [one for one in disturbances.ALL if one.name in ("worker killed", "servers killed")]
    with stage(tmp_path) as ready:
        record = soak.run(ready, 8, kinds, seed=1, afterwards=1)
    assert {one.kind.name for one in record.incidents} >= {"worker killed"}
    assert record.faults == []
    assert "No fault." in soak.describe(record, "pytest")
