import pytest

from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import KEY, letters, make_pool, shares


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 3, 2), (100, 1)])
def test_shares_are_as_the_weights(weights: tuple[int, ...]) -> None:
    pool = make_pool(*weights)
    scheduler = create("random", seed=1, key=KEY)
    scheduler.update(pool)
    ideal = [weight / sum(weights) for weight in weights]
    # The standard deviation of a share of 20,000 draws is at most 0.0035.
    assert shares(scheduler, pool, 20_000) == pytest.approx(ideal, abs=0.014)


def test_no_pattern_repeats() -> None:
    pool = make_pool(1, 1)
    scheduler = create("random", seed=1, key=KEY)
    scheduler.update(pool)
    drawn = letters(scheduler, pool, 200)
    assert len({drawn[index : index + 4] for index in range(197)}) == 2**4
