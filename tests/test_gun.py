import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.simulate.gun import Distribution, Gun, adapted, choice, fixed, gun, log_uniform, normal, power, uniform


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


def test_a_power_law_has_its_density() -> None:
    rng, n = np.random.default_rng(0), 100_000
    x = power(1, 10, -2).sample(n, rng)
    # Cumulative (1 - 1/x)/(1 - 1/10)
    assert np.mean(x < 2) == pytest.approx(0.5 / 0.9, abs=0.01)
    log = power(1, np.e**2, -1).sample(n, rng)
    assert np.log(log).mean() == pytest.approx(1, abs=0.02)


def test_a_normal_distribution_is_cut_at_its_limits() -> None:
    x = normal(0, 1, -1.5, 1.5).sample(100_000, np.random.default_rng(0))
    assert -1.5 <= x.min() < x.max() <= 1.5
    assert x.std() == pytest.approx(0.7434, abs=0.01)  # of a standard normal cut at 1.5


def test_a_choice_draws_all_its_values() -> None:
    x = choice(256, 512, 1024).sample(3000, np.random.default_rng(0))
    values, counts = np.unique(x, return_counts=True)
    assert values.tolist() == [256, 512, 1024]
    assert counts.min() > 900


GUNS = (
    Gun(11, log_uniform(1e3, 1e5), theta_x=normal(0, 0.3, -0.9, 0.9), theta_y=normal(0, 0.2, -0.9, 0.9),
        x=uniform(-10, 10), y=uniform(-10, 10), aim=150),
    Gun(211, choice(1e3, 2e3), theta=uniform(0.1, 0.5), phi=uniform(-3, 3), aim=50.0),
    Gun(22, power(1, 10, -2)),
)  # fmt: skip


@pytest.mark.parametrize("one", GUNS)
def test_guns_come_back_from_their_description_and_keep_their_limits(one: Gun) -> None:
    assert Gun.from_description(json.loads(json.dumps(one.describe()))) == one
    particles = one.sample(2000, 3)
    for name, (low, high) in one.limits().items():
        values = getattr(particles, name)
        assert low - 1e-9 <= values.min() <= values.max() <= high + 1e-9, name


def test_slopes_are_those_of_the_direction_and_particles_meet_in_the_aimed_plane() -> None:
    one = GUNS[0]
    p = one.sample(5000, 1)
    tx, ty = np.tan(p.theta) * np.cos(p.phi), np.tan(p.theta) * np.sin(p.phi)
    assert np.arctan(tx).std() == pytest.approx(0.3, rel=0.05)
    assert np.arctan(ty).std() == pytest.approx(0.2, rel=0.05)
    for position, slope in ((p.x, tx), (p.y, ty)):
        assert np.abs(position + 150 * slope).max() <= 10 + 1e-9


def test_text_with_units_makes_a_gun() -> None:
    one = gun("e-", "1..100GeV", "log-uniform", theta_x="0+-20deg", x="-1..1cm", aim=150)
    assert one.energy == log_uniform(1e3, 1e5)
    assert one.theta_x is not None
    assert one.theta_x.sigma == pytest.approx(np.radians(20))
    assert one.theta_x.high == pytest.approx(np.arctan(1.5))
    assert (one.x.low, one.x.high) == (-10, 10)
    assert gun("gamma", "256,512,1024MeV").energy == choice(256, 512, 1024)
    assert gun("pi+", "1..10GeV", "power:-2").energy == power(1e3, 1e4, -2)


def test_a_gun_is_adapted_in_parts() -> None:
    base = GUNS[0]
    assert adapted(base) == base
    other = adapted(base, energy="2..5GeV", particle="e+")
    assert (other.pdg, other.energy, other.theta_x) == (-11, log_uniform(2e3, 5e3), base.theta_x)
    assert adapted(base, spectrum="uniform").energy == uniform(1e3, 1e5)
    straight = adapted(base, theta="0deg", x="0mm", y="0mm")
    assert (straight.theta_x, straight.theta_y, straight.theta) == (None, None, fixed(0))
    with pytest.raises(ValueError, match="give --particle and --energy"):
        adapted(None, particle="e-")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"spectrum": "flat"}, r"got spectrum 'flat', expected uniform, log-uniform or power:INDEX"),
        ({"energy": "1,2GeV", "spectrum": "log-uniform"}, "with a list of energies"),
        ({"energy": "1,2..3GeV"}, "expected a list of energies or one range"),
        ({"theta": "5"}, "expected a number, a range"),
        ({"x": "5deg"}, "one of the units mm, cm, m"),
        ({"theta": "100deg"}, r"outside 0\.\.90 degrees"),
        ({"theta": "5deg", "theta_x": "5deg"}, "expected one pair"),
    ],
)
def test_impossible_guns_are_one_sentence(options: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        gun(**{"particle": "e-", "energy": "1..2GeV"} | options)
