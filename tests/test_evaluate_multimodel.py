"""The multi-class test: scores known for Gaussians, its cross-check, and what it refuses."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import norm

from caloforge.evaluate.multimodel import Posteriors, compare, log_posteriors
from conftest import random_showers

SHIFTS = {"near": 0.3, "far": 1.5, "there": 0.0}
OPTIONS = {"repeats": 2, "epochs": 15, "hidden": 48}


def exact(x: np.ndarray) -> np.ndarray:
    """Log posterior of the candidates at x (N,): (N, K)."""
    return log_softmax(np.stack([norm.logpdf(x, shift) for shift in SHIFTS.values()], axis=1), axis=1)


@pytest.fixture(scope="module")
def found() -> Posteriors:
    rng = np.random.default_rng(0)
    candidates = {name: rng.normal(shift, 1, (3000 + 100 * k, 1)) for k, (name, shift) in enumerate(SHIFTS.items())}
    return log_posteriors(np.random.default_rng(1).normal(size=(4000, 1)), candidates, seed=0, **OPTIONS)


def test_scores_are_the_exact_log_posteriors(found: Posteriors) -> None:
    x = np.random.default_rng(1).normal(size=4000)
    np.testing.assert_allclose(found.score, exact(x).mean(axis=0), atol=4 * found.error.max())
    assert found.names == ("near", "far", "there")
    assert found.ranking() == ["there", "near", "far"]
    assert found.n == 3000
    assert found.uniform == -np.log(3)
    assert found.scores.shape == (2, 3)
    np.testing.assert_allclose(found.scores.mean(axis=0), found.score)
    np.testing.assert_allclose(found.share.sum(), 1)
    assert np.all(found.error > 0)
    assert np.all(found.error < 0.3)


def test_differences_are_those_of_divergences(found: Posteriors) -> None:
    # KL(N(0)|N(a)) = a^2/2
    divergence = 0.5 * np.array(list(SHIFTS.values())) ** 2
    wanted = divergence[None, :] - divergence[:, None]
    for k in range(3):
        for j in range(3):
            assert found.difference[k, j] == pytest.approx(wanted[k, j], abs=4 * found.difference_error[k, j] + 1e-12)
    np.testing.assert_allclose(found.difference, found.score[:, None] - found.score[None, :], atol=1e-12)
    assert found.difference_error[0, 2] < np.hypot(found.error[0], found.error[2])


def test_every_candidate_recognises_its_own_showers(found: Posteriors) -> None:
    assert found.cross.shape == (3, 3)
    np.testing.assert_array_equal(found.cross.argmax(axis=1), [0, 1, 2])
    x = np.random.default_rng(3).normal(SHIFTS["far"], 1, 100_000)
    np.testing.assert_allclose(found.cross[1], exact(x).mean(axis=0), atol=4 * found.cross_error[1].max())


def test_equal_candidates_are_a_guess() -> None:
    rng = np.random.default_rng(4)
    state = torch.get_rng_state().clone()
    done: list[int] = []
    same = log_posteriors(
        rng.normal(size=(500, 2)), {str(k): rng.normal(size=(600, 2)) for k in range(4)}, seed=1, repeats=2, epochs=3,
        hidden=16, done=lambda: done.append(1),
    )  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert len(done) == 2
    np.testing.assert_allclose(same.score, same.uniform, atol=5 * same.error.max())


def test_showers_on_both_levels_and_the_same_seed(mixed) -> None:
    reference = random_showers(mixed, 60)
    candidates = {"a": random_showers(mixed, 50, 1), "b": random_showers(mixed, 40, 2)}
    for level in ("high", "low"):
        one, two = (
            compare(reference, candidates, level=level, seed=3, repeats=1, epochs=2, hidden=8) for _ in range(2)
        )
        np.testing.assert_array_equal(one.score, two.score)
        assert one.n == 40


def test_bad_input_is_refused(mixed) -> None:
    x = np.ones((50, 2))
    with pytest.raises(ValueError, match="got 1 candidates"):
        log_posteriors(x, {"a": x})
    with pytest.raises(ValueError, match="of 10 showers at least"):
        log_posteriors(x, {"a": x, "b": x[:10]})
    with pytest.raises(ValueError, match="same inputs"):
        log_posteriors(x, {"a": x, "b": np.ones((50, 3))})
    showers = random_showers(mixed, 30)
    with pytest.raises(ValueError, match="got level 'middle'"):
        compare(showers, {"a": showers, "b": showers}, level="middle")
