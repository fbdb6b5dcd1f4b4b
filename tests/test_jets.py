"""Jets from Pythia and FastJet, where they are installed; the way from jet to image without them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caloforge import io
from caloforge.cli import run
from caloforge.evaluate import jets as pixels
from caloforge.simulate import jets, pythia
from caloforge.simulate.jets import Jet, JetConfig, image


def needs_packages() -> Any:
    for name in ("pythia8mc", "fastjet"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'caloforge[jets]'")
    return jets


def two_prongs(angle: float = 0.4, distance: float = 0.6) -> Jet:
    """A hard subjet and a softer one at an angle from it, and one soft particle to its left."""
    s1 = np.array([200.0, 0.7, 3.0])
    s2 = np.array([80.0, 0.7 + distance * np.cos(angle), 3.0 + distance * np.sin(angle)])
    s2[2] = (s2[2] + np.pi) % (2 * np.pi) - np.pi
    side = np.array([5.0, 0.7 + 0.3 * np.cos(angle + 1.3), 3.0 + 0.3 * np.sin(angle + 1.3)])
    return Jet(270.0, 0.7, 3.0, 80.0, np.stack([s1, s2]), np.stack([s1, s2, side]))


@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0, -2.5, 3.1])
def test_the_second_subjet_lies_below_the_first(angle: float) -> None:
    out = image(two_prongs(angle), "constituents", 1e-3)
    assert out[12, 12] == 200
    assert out[12, 6] == pytest.approx(80)
    assert out.sum() == pytest.approx(285)
    assert out[13:].sum() > out[:12].sum()  # the right half has more


def test_the_spline_spreads_pixels_and_rings() -> None:
    clean, paper = (image(two_prongs(), r, 1e-3) for r in ("constituents", "spline"))  # type: ignore[arg-type]
    assert np.unravel_index(paper.argmax(), paper.shape) == (12, 12)
    assert paper[11:14, 5:8].sum() > 60
    assert paper[11:14, 5:8].max() < 80  # interpolation spreads a pixel
    assert (paper > 0).sum() > 2 * (clean > 0).sum()


def test_towers_add_energy_and_are_massless() -> None:
    particles = np.array([[10.0, 0.1, 1.8, 11.0], [9.0, 0.2, 1.8, 10.0], [0.0, 0.0, 50.0, 50.0]])
    cells = jets.towers(particles)
    assert len(cells) == 1  # the third goes down the beam
    assert cells[0, 0] == pytest.approx(21.0 / np.cosh(0.15))
    assert tuple(cells[0, 1:]) == pytest.approx((0.15, 0.05))


def test_trimming_drops_soft_subjets() -> None:
    needs_packages()
    cells = np.array([[200.0, 0.0, 0.0], [100.0, 0.5, 0.0], [3.0, -0.6, 0.0]])
    soft = np.array([[4.0, 1.0, 0.0], [3.0, -1.0, 0.0]])
    nothing, jet = jets.trimmed_leading_jets([soft, cells])
    assert nothing is None
    assert jet is not None
    assert len(jet.subjets) == 2
    assert jet.delta_r == pytest.approx(0.5)
    assert jet.mass == pytest.approx(np.sqrt(2 * 200 * 100 * (np.cosh(0.5) - 1)), rel=1e-6)


@pytest.mark.parametrize(("pdg", "n"), [(24, 250), (21, 400)])
def test_the_early_veto_loses_few_jets(pdg: int, n: int) -> None:
    needs_packages()
    import pythia8mc

    config, verdicts, found = JetConfig(), [], []
    generator = pythia._settings(config, pdg, seed=5)
    veto = pythia._early_veto(config, pdg, generator)

    class Noted(pythia8mc.UserHooks):  # type: ignore[misc, name-defined]
        passed = True

        def canVetoPT(self) -> bool:
            return True

        def scaleVetoPT(self) -> float:
            return float(veto.scaleVetoPT())

        def doVetoPT(self, position: int, event: Any) -> bool:
            if position != pythia.IN_RESONANCES:
                self.passed = not veto.doVetoPT(position, event)
            return False

    hook = Noted()
    generator.setUserHooksPtr(hook)
    assert generator.init()
    while len(verdicts) < n:
        if generator.next():
            verdicts.append(hook.passed)
            found.append(
                np.array([(p.px(), p.py(), p.pz(), p.e()) for p in generator.event if p.isFinal() and p.isVisible()])
            )
    chosen = jets.trimmed_leading_jets([jets.towers(momenta) for momenta in found])
    selected = np.array([jet is not None and jets._selected(jet, config) for jet in chosen])
    kept = np.array(verdicts)
    assert selected.sum() > 12
    assert (selected & ~kept).sum() <= 0.03 * selected.sum()
    assert kept.mean() < 0.6


def test_a_production_has_both_classes_in_its_windows(tmp_path: Path) -> None:
    needs_packages()
    path = tmp_path / "jets.h5"
    jets.produce_jets(path, JetConfig(), n=8, seed=3)
    showers, columns = io.read(path), io.read_columns(path)
    assert sorted(set(showers.incident.pdg)) == [21, 24]
    assert set(columns) == set(jets.COLUMNS)
    assert np.all((columns["pt"] > 250e3) & (columns["pt"] < 300e3))
    assert np.all((columns["mass"] > 60e3) & (columns["mass"] < 100e3))
    np.testing.assert_array_equal(columns["pt"], showers.incident.energy)
    found = pixels.observables(showers)
    np.testing.assert_allclose(found["jet_mass"], columns["mass"], rtol=0.2)
    again = tmp_path / "again.h5"
    jets.produce_jets(again, JetConfig(), n=8, seed=3)
    np.testing.assert_array_equal(io.read(again).energy, showers.energy)


BAD = {
    "an energy": (["--energy", "50GeV"], "got --energy for jets"),
    "a particle": (["--particle", "pi+"], "got --particle pi\\+ for jets, expected W or QCD"),
    "a card": (["--engine", "parametric"], "expected --particle and --rotation only"),
    "no jets": (["-n", "0"], "got n=0 jets"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_command_refuses(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_packages()
    options, message = BAD[case]
    count = [] if "-n" in options else ["-n", "2"]
    assert run(["simulate", "jets", *count, *options, "-o", str(tmp_path / "x.h5")]) == 2
    error = capsys.readouterr().err
    assert pytest.importorskip("re").search(message, error), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("Z",)}, "expected some of W, QCD"),
        ({"pt": (300.0, 250.0)}, "expected 0 <= low < high"),
        ({"rotation": "linear"}, "expected constituents or spline"),
    ],
)
def test_impossible_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JetConfig(**settings)
