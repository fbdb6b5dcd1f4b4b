import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.simulate.gun import Distribution, Gun, fixed, log_uniform, uniform


@given(st.floats(1e-3, 1e6), st.floats(1, 1e3), st.sampled_from(["uniform", "log_uniform"]), st.integers(0, 2**32))
def test_samples_stay_between_the_limits(low: float, factor: float, kind: str, seed: int) -> None:
    values = Distribution(kind, low, low * factor).sample(50, np.random.default_rng(seed))
    assert low <= values.min() <= values.max() <= low * factor


@given(st.floats(-1e6, 1e6))
def test_a_fixed_value_is_exact(value: float) -> None:
    assert fixed(value).sample(2, np.random.default_rng(0)).tolist() == [value, value]


def test_the_means_are_those_of_the_distributions() -> None:
    rng, n = np.random.default_rng(0), 100_000
    assert uniform(1, 3).sample(n, rng).mean() == pytest.approx(2, abs=5 * (2 / 12**0.5) / n**0.5)
    logs = np.log(log_uniform(1, np.e**2).sample(n, rng))
    assert logs.mean() == pytest.approx(1, abs=5 * (2 / 12**0.5) / n**0.5)
    assert np.mean(logs < 0.5) == pytest.approx(0.25, abs=0.01)


def test_the_same_seed_gives_the_same_particles() -> None:
    gun = Gun(-11, log_uniform(1e3, 1e5), theta=uniform(0, 0.1), x=uniform(-5, 5))
    one, again, other = gun.sample(9, 1), gun.sample(9, 1), gun.sample(9, 2)
    for name in ("energy", "theta", "phi", "x", "y", "pdg"):
        np.testing.assert_array_equal(getattr(one, name), getattr(again, name))
    assert not np.array_equal(one.energy, other.energy)
    assert set(one.pdg) == {-11}


def test_a_gun_describes_itself_in_plain_data() -> None:
    described = json.loads(json.dumps(Gun(22, uniform(1, 2)).describe()))
    assert described["pdg"] == 22
    assert described["energy"] == {"kind": "uniform", "low": 1, "high": 2}


def test_impossible_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got limits 2\.\.1"):
        uniform(2, 1)
    with pytest.raises(ValueError, match="got limits"):
        uniform(0, np.inf)
    with pytest.raises(ValueError, match=r"log-uniform.*expected > 0"):
        log_uniform(0, 1)
    with pytest.raises(ValueError, match="got gun energy from 0 MeV"):
        Gun(11, uniform(0, 1))
