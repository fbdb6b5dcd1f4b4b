"""Observables of jet images: values known by hand, and FastJet where it is installed."""

import itertools

import numpy as np
import pytest

from caloforge.evaluate import evaluate
from caloforge.evaluate.jets import is_jets, observables, subjettiness
from caloforge.showers import Incident, Showers
from caloforge.simulate import jets

ETA, PHI = jets.geometry().centres()[:, :2].T


def images(pixels: np.ndarray) -> Showers:
    return Showers(jets.geometry(), Incident(np.full(len(pixels), 2.7e5), pdg=24), pixels)


def random_images(n: int, seed: int = 0) -> Showers:
    rng = np.random.default_rng(seed)
    spread = np.exp(-6 * np.hypot(ETA, PHI))
    return images(rng.gamma(0.5, 2e4, (n, 625)) * spread * (rng.random((n, 625)) < 0.15))


def test_two_pixels() -> None:
    pixels = np.zeros((2, 625))
    pixels[0, [12 * 25 + 12, 12 * 25 + 6]] = 2e5, 1e5
    found = {name: values[0] for name, values in observables(images(pixels)).items()}
    assert found["tau_1"] == pytest.approx(0.6 / 3)
    assert found["tau_2"] == found["tau_21"] == found["tau_3"] == 0
    assert found["jet_mass"] == pytest.approx(np.sqrt(4e10 * (1 - np.cos(0.6))))
    empty = {name: values[1] for name, values in observables(images(pixels)).items()}
    assert not any(empty.values())


def test_three_pixels_have_the_axes_of_the_two_hardest() -> None:
    place = np.array([[0.0, 0.0], [0.0, -0.6], [0.1, -0.6]])
    tau = subjettiness(np.array([100.0, 50.0, 10.0]), *place.T)
    assert tau == pytest.approx([(50 * 0.6 + 10 * np.hypot(0.1, 0.6)) / 160, 10 * 0.1 / 160, 0])


def test_axes_equal_those_of_a_slow_twin() -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        p, places = rng.gamma(0.5, 10, 12), rng.uniform(-1, 1, (12, 2))
        jets_left = [(a, tuple(b)) for a, b in zip(p, places, strict=True)]
        while len(jets_left) > 2:
            pairs = itertools.combinations(jets_left, 2)
            a, b = min(
                pairs, key=lambda ab: min(ab[0][0], ab[1][0]) ** 2 * np.hypot(*np.subtract(ab[0][1], ab[1][1])) ** 2
            )
            jets_left = [j for j in jets_left if j not in (a, b)] + [(a[0] + b[0], max(a, b)[1])]
        axes = np.array([place for _, place in jets_left])
        distance = np.linalg.norm(places[:, None] - axes, axis=2).min(axis=1)
        assert subjettiness(p, *places.T)[1] == pytest.approx((p * distance).sum() / p.sum())


def test_taus_equal_fastjet() -> None:
    pytest.importorskip("fastjet", reason="FastJet is not installed: pip install 'caloforge[jets]'")
    rng = np.random.default_rng(4)
    # Positions off the grid: on it many pairs are equally far apart, and which is joined first is arbitrary.
    cells = [np.stack([rng.gamma(0.5, 10, 30), *rng.uniform(-1, 1, (2, 30))], axis=1) for _ in range(50)]
    theirs = jets.subjettiness(cells, "WTA_KT_Axes")
    ours = np.array([subjettiness(*cell.T) for cell in cells])
    np.testing.assert_allclose(ours[:, 1:], theirs[:, 1:], rtol=1e-6, atol=1e-9)


def test_the_standard_profile_judges_jets_by_them() -> None:
    reference, candidate = random_images(300), random_images(300, 1)
    assert is_jets(reference)
    report = evaluate(reference, candidate, repeats=1, epochs=1)
    assert {"separation/jet_mass", "separation/tau_21", "w1/jet_pt"} <= set(report.scores)
