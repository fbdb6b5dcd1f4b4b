"""The shipped Geant4 samples are what they say, and have the physics of the published detectors."""

import numpy as np
import pytest

from caloforge import hub, io
from caloforge.geometry import Array
from caloforge.showers import Showers
from caloforge.simulate import jets
from caloforge.simulate.detectors import find
from caloforge.simulate.gun import Gun

TESTS = [name for name in hub.SAMPLE_NAMES if name.endswith("-test")]


@pytest.fixture(scope="module")
def lhcb() -> Showers:
    return io.read(hub.sample("lhcb-eminus-test"))


@pytest.fixture(scope="module")
def par04() -> Showers:
    return io.read(hub.sample("par04-eminus-test"))


@pytest.mark.parametrize("name", [name for name in hub.SAMPLE_NAMES if not name.startswith("jets")])
def test_samples_say_where_they_come_from(name: str) -> None:
    geometry, n, provenance = io.read_header(hub.sample(name))
    geometry.require_same(find(provenance["detector"]).geometry, "the shipped description")
    assert n >= 1000
    assert provenance["engine"].startswith("Geant4 11")
    assert "reduced neutron data" in provenance["data_tables"] or "eplus" in name
    assert hub.sample(name).stat().st_size < 25e6
    if "parts" not in provenance:
        gun, incident = Gun.from_description(provenance["gun"]), io.read_incident(hub.sample(name))
        assert f"-n {n} --seed {provenance['seed']}" in provenance["command"]
        assert set(incident.pdg.tolist()) == {gun.pdg}
        # The particles follow from the seed: here those of the first chunk.
        first = gun.sample(25, np.random.SeedSequence(provenance["seed"], spawn_key=(0,)).spawn(2)[0])
        np.testing.assert_allclose(incident.energy[:25], first.energy, rtol=1e-12)
        np.testing.assert_allclose(incident.x[:25], first.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("part", ["train", "test"])
def test_jets_have_a_w_peak_and_lie_in_their_windows(part: str) -> None:
    showers, columns = io.read(hub.sample(f"jets-{part}")), io.read_columns(hub.sample(f"jets-{part}"))
    showers.geometry.require_same(jets.geometry(), "jets")
    assert showers.provenance["engine"].startswith("Pythia 8")
    assert f"-n {len(showers)} --seed {showers.provenance['seed']}" in showers.provenance["command"]
    assert all(np.all((columns[k] > low) & (columns[k] < high)) for k, low, high in
               (("pt", 250e3, 300e3), ("mass", 60e3, 100e3)))  # fmt: skip
    w = columns["mass"][showers.incident.pdg == 24] / 1e3
    assert 79 < w[(w > 74) & (w < 86)].mean() < 81
    assert 0.03 < (showers.energy > 0).mean() < 0.09
    below = showers.image(0)[:, 10:15, :12].sum((1, 2)) - showers.image(0)[:, 10:15, 13:].sum((1, 2))
    assert (below[showers.incident.pdg == 24] > 0).mean() > 0.95  # the second subjet


def test_all_samples_together_are_small() -> None:
    assert sum(hub.sample(name).stat().st_size for name in hub.SAMPLE_NAMES) < 120e6


def test_train_and_test_parts_share_no_shower() -> None:
    for name in TESTS:
        test, train = (io.read_incident(hub.sample(name.replace("-test", part))) for part in ("-test", "-train"))
        if len(np.unique(test.energy)) > 100:  # a list of energies repeats itself
            assert not np.isin(test.energy, train.energy).any(), name


def slopes(showers: Showers) -> tuple[Array, Array]:
    incident = showers.incident
    return np.tan(incident.theta) * np.cos(incident.phi), np.tan(incident.theta) * np.sin(incident.phi)


def test_lhcb_electrons_have_the_shapes_of_the_specification(lhcb: Showers) -> None:
    """Chekalina et al., 1812.01319, and a run of 200 electrons with the same geometry; lengths in cm."""
    energy, incident = lhcb.energy.astype(float), lhcb.incident
    total = energy.sum(axis=1)
    assert (total / incident.energy).mean() == pytest.approx(0.173, abs=0.002)
    assert (total / incident.energy).std() == pytest.approx(0.006, abs=0.002)
    occupied = (energy > 0).mean(axis=1)
    assert occupied.mean() == pytest.approx(0.174, abs=0.02)
    assert occupied.std() == pytest.approx(0.105, abs=0.015)
    for (low, high), expected in {(1, 3): 0.057, (3, 10): 0.110, (10, 30): 0.187, (30, 100): 0.307}.items():
        chosen = (incident.energy >= 1e3 * low) & (incident.energy < 1e3 * high)
        assert occupied[chosen].mean() == pytest.approx(expected, rel=0.08)
    tx, ty = slopes(lhcb)
    centres = lhcb.geometry.centres() / 10
    dx = centres[:, 0] - (incident.x / 10 + 10.8 * tx)[:, None]
    dy = centres[:, 1] - (incident.y / 10 + 10.8 * ty)[:, None]
    c, s = np.cos(incident.phi)[:, None], np.sin(incident.phi)[:, None]
    along, across = dx * c + dy * s, dy * c - dx * s
    longitudinal = ((energy * np.sign(along)).sum(axis=1) / total, (energy * np.sign(across)).sum(axis=1) / total)
    assert longitudinal[0].mean() == pytest.approx(0, abs=0.03)
    assert longitudinal[0].std() == pytest.approx(0.38, abs=0.03)
    assert longitudinal[1].mean() == pytest.approx(0, abs=0.03)
    assert longitudinal[1].std() == pytest.approx(0.324, abs=0.03)
    assert ((energy * dx).sum(axis=1) / total).std() == pytest.approx(1.22, rel=0.2)
    for axis, width, spread in ((across, 2.24, 0.20), (along, 3.19, 0.85)):
        mean = (energy * axis).sum(axis=1) / total
        rms = np.sqrt((energy * (axis - mean[:, None]) ** 2).sum(axis=1) / total)
        assert np.median(rms) == pytest.approx(width, rel=0.08)
        assert rms.std() == pytest.approx(spread, abs=0.2)


def test_par04_response_and_resolution(par04: Showers) -> None:
    """Sampling fraction 0.032 of W/Si and 13.4 %/sqrt(E); the readout multiplies by 1/0.033."""
    assert par04.overflow is not None
    gev, deposited = par04.incident.energy / 1e3, 0.033 * (par04.total + par04.overflow.sum(axis=1))
    fraction = deposited / par04.incident.energy
    assert fraction.mean() == pytest.approx(0.032, abs=0.0005)
    # The pull of E_dep/E scaled by sqrt(E) has the width of the stochastic term.
    stochastic = ((fraction / fraction.mean() - 1) * np.sqrt(gev)).std()
    assert stochastic == pytest.approx(0.134, rel=0.07)


def test_the_shower_maximum_grows_with_the_logarithm_of_the_energy(par04: Showers) -> None:
    """Depth of the maximum 1.06 ln(E/MeV) - 3.5 radiation lengths (W/Si), from parabolas through mean profiles."""
    x0 = 153 / 36.2  # [mm]
    depth = np.array([sum(layer.depth or (0, 0)) / 2 for layer in par04.geometry.layers]) / x0
    logs, maxima = [], []
    order = np.argsort(par04.incident.energy)
    for chosen in np.array_split(order, 8):
        profile = par04.layer_energy[chosen].mean(axis=0)
        near = np.abs(np.arange(len(profile)) - profile.argmax()) <= 3
        a, b, _ = np.polyfit(depth[near], np.log(profile[near]), 2)
        maxima.append(-b / (2 * a))
        logs.append(np.log(par04.incident.energy[chosen]).mean())
    slope, offset = np.polyfit(logs, maxima, 1)
    assert slope == pytest.approx(1.06, abs=0.12)
    middle = np.mean(logs)
    assert slope * middle + offset == pytest.approx(1.06 * middle - 3.5, abs=0.4)


def test_par04_showers_are_symmetric_about_their_axis(par04: Showers) -> None:
    """Energy in the 16 sectors: equal within the spread from shower to shower."""
    sectors = par04.energy.reshape(len(par04), 45, 16, 9).sum(axis=(1, 3), dtype=float)
    share = sectors / sectors.sum(axis=1, keepdims=True)
    pull = (share.mean(axis=0) - 1 / 16) / (share.std(axis=0) / np.sqrt(len(share)))
    assert np.abs(pull).max() < 3.5
    assert (pull**2).mean() < 2.5


@pytest.mark.parametrize(("name", "response"), [("calogan-gamma-test", 0.994), ("calogan-piplus-test", 0.3)])
def test_calogan_photons_and_pions(name: str, response: float) -> None:
    showers = io.read(hub.sample(name))
    tolerance = 0.004 if "gamma" in name else 0.05
    assert (showers.total / showers.incident.energy).mean() == pytest.approx(response, abs=tolerance)
    # The calorimeter is 1.3 interaction lengths deep: pions leave most of their energy behind it.
    fraction = (showers.layer_energy / showers.total[:, None]).mean(axis=0)
    assert (fraction[2] > 0.01) == ("piplus" in name)


def test_ds1_photons_have_unit_response() -> None:
    showers = io.read(hub.sample("ds1-gamma-test"))
    high = showers[showers.incident.energy > 4000]
    assert (high.total / high.incident.energy).mean() == pytest.approx(1.0, abs=0.05)
    assert len(np.unique(showers.incident.energy)) == 10
