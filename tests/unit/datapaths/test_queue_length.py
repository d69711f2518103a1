"""How many packets may wait: more where there is memory for them."""

import pytest

from featherlb.datapaths.base import QueueOptions, queue_length
from featherlb.model import Driver

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "workers", "length"),
    [(GIB, 1, 8192), (4 * GIB, 1, 16384), (4 * GIB, 4, 8192), (64 * GIB, 1, 65536)],
)
def test_the_length_follows_the_memory(memory: int, workers: int, length: int) -> None:
    assert queue_length(memory, workers) == length
    options = QueueOptions(0, Driver.NETLINK, length, fail_open=False)
    assert options.buffer * workers <= max(memory // 64, workers * 32 << 20)
