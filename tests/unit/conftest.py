"""What unit tests share."""

import pytest

from featherlb.core.pools.schedulers import registry


@pytest.fixture(autouse=True)
def own_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers that the test registers are known to it alone."""
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))
    monkeypatch.setattr(registry, "_canonical", dict(registry._canonical))
    monkeypatch.setattr(registry, "_user_names", set(registry._user_names))
