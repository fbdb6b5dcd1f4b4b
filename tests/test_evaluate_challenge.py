"""Conventions of the CaloChallenge: its features and inputs against the official code, its histograms by hand.

golden/calochallenge_features.npz holds a few of the showers (random sparse energies, the first one empty) to which the
official code was given, with its numbers: ``classifier_high`` and ``classifier_low_normed`` are the classifier inputs
that HighLevelFeatures.py and evaluate.py (CaloChallenge/homepage 9b41df7) made from them after zeroing voxels below
``threshold``. They are rows of calochallenge/official_features.npz of the reference data, which is compared in full
where it is present: of data set 1 the empty shower and the two with fewest filled voxels, of data set 2 with one.
"""

from pathlib import Path

import numpy as np
import pytest

from caloforge.evaluate import challenge, distances
from caloforge.evaluate.challenge import binning, features, high, inputs, low, low_normed, separation_powers, threshold
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from conftest import random_showers

GOLDEN = Path(__file__).parent / "golden" / "calochallenge_features.npz"
OFFICIAL = {"ds1_photons": "ds1-photons", "ds1_pions": "ds1-pions", "ds2": "ds2"}
N_INPUTS = {
    "ds1-photons": (369, 374, 30), "ds1-pions": (534, 541, 46), "ds2": (6481, 6526, 362), "ds3": (40501, 40546, 362),
}  # fmt: skip


def mesh(name, numbered=True):
    layers = [
        Layer("polar", regular(-np.pi, np.pi, n_alpha), edges, number=number if numbered else None)
        for number, (n_alpha, edges) in challenge.MESHES[name].items()
    ]
    return Geometry(name, tuple(layers))


def rings(edges=(0, 10, 20), n_alpha=4):
    return Geometry("rings", (Layer("polar", regular(-np.pi, np.pi, n_alpha), edges),))


def showers(geometry, energy, incident=100.0):
    energy = np.atleast_2d(np.asarray(energy, dtype=float))
    return Showers(geometry, Incident(np.broadcast_to(incident, len(energy))), energy)


# the official code


def official(path, key):
    with np.load(path) as file:
        return {k.removeprefix(f"{key}/"): file[k] for k in file.files if k.startswith(f"{key}/")}


def given(numbers, name):
    return Showers(mesh(name), Incident(numbers["incident_energies"][:, 0]), numbers["showers"])


@pytest.mark.parametrize("key", OFFICIAL)
def test_golden_numbers_of_the_official_code(key):
    numbers = official(GOLDEN, key)
    raw = given(numbers, OFFICIAL[key])
    above = threshold(raw)
    assert numbers["threshold"] == challenge.least_energy(raw.geometry)
    assert 0 < (above.energy > 0).sum() < (raw.energy > 0).sum()
    np.testing.assert_allclose(inputs(raw, "high"), numbers["classifier_high"], rtol=1e-9, atol=1e-9)
    if key == "ds1_photons":
        np.testing.assert_allclose(low_normed(above), numbers["classifier_low_normed"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("key", OFFICIAL)
def test_every_number_of_the_official_code(key, shared):
    numbers = official(shared / "reference" / "calochallenge" / "official_features.npz", key)
    raw = given(numbers, OFFICIAL[key])
    above = threshold(raw)
    values = features(above)
    compared = {"response"}
    for name, expected in numbers.items():
        ours = name.replace("/layer", "")
        if ours in values:
            np.testing.assert_allclose(values[ours], expected, rtol=1e-6, atol=1e-6, err_msg=name)
            compared.add(ours)
    assert compared == set(values)
    for level in ("low", "high"):
        np.testing.assert_allclose(inputs(raw, level), numbers[f"classifier_{level}"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(low_normed(above), numbers["classifier_low_normed"], rtol=1e-6, atol=1e-6)


def test_meshes_are_those_of_the_published_files(shared):
    from caloforge.datasets.calochallenge import read_binning

    particles = {"ds1-photons": "photon", "ds1-pions": "pion", "ds2": "electron", "ds3": "electron"}
    for name, particle in particles.items():
        path = (
            shared / "reference" / "calochallenge" / f"binning_{name.replace('ds', 'dataset_').replace('-', '_')}.xml"
        )
        geometry = read_binning(path, particle)
        assert challenge.data_set(geometry) == name
        assert [v.number for v in geometry.layers] == [v.number for v in mesh(name).layers]


# data sets


@pytest.mark.parametrize("name", N_INPUTS)
def test_data_sets_are_recognised(name):
    assert challenge.data_set(mesh(name)) == name
    assert challenge.data_set(mesh(name, numbered=False)) == name
    layers = mesh(name).layers
    changed = (*layers[:-1], Layer("polar", layers[-1].first, (*layers[-1].second[:-1], 3000.0), number=None))
    assert challenge.data_set(Geometry(name, changed)) is None
    other = (*layers[:-1], Layer("polar", layers[-1].first, layers[-1].second, number=99))
    assert challenge.data_set(Geometry(name, other)) is None
    assert challenge.data_set(Geometry(name, layers[:-1])) is None
    assert challenge.least_energy(mesh(name)) == (1 if "ds1" in name else 0.5e-3 / 0.033)


@pytest.mark.parametrize("name", N_INPUTS)
def test_numbers_of_inputs(name):
    one = Showers(mesh(name), Incident([1e4]), np.ones((1, mesh(name).n_voxels)))
    shapes = [inputs(one, level).shape for level in ("low", "low-normed", "high", "resnet")]
    assert shapes == [(1, n) for n in (*N_INPUTS[name], N_INPUTS[name][0])]


def test_other_geometries_need_a_threshold(mixed):
    assert challenge.data_set(mixed) is None
    assert challenge.least_energy(mixed, 0.3) == 0.3
    with pytest.raises(ValueError, match=r"got geometry 'mixed', expected one of the CaloChallenge.*give minimum"):
        threshold(random_showers(mixed, 3))
    with pytest.raises(ValueError, match="got minimum 0"):
        threshold(random_showers(mixed, 3), 0.0)


def test_threshold_is_strict_and_leaves_the_rest_alone():
    edge = np.float32(0.5e-3 / 0.033)
    just_below = np.nextafter(edge, np.float32(0))
    energy = np.array([[edge, just_below, 5, 0, 1, 1, 1, 1]])
    given = Showers(rings(), Incident([10.0]), energy, [[2.0]], {"engine": "by hand"})
    above = threshold(given, 0.5e-3 / 0.033)
    np.testing.assert_array_equal(above.energy, np.array([[edge, 0, 5, 0, 1, 1, 1, 1]], dtype=np.float32))
    np.testing.assert_array_equal(above.overflow, [[2.0]])
    assert above.provenance == {"engine": "by hand", "minimum_voxel_energy_mev": 0.5e-3 / 0.033}
    assert given.energy[0, 1] == just_below
    third = np.float32(1 / 3)  # a little above 1/3: not strictly below it in float32, nor in float64
    assert threshold(showers(rings(), [third] * 8), 1 / 3).energy.min() == third


# features and inputs


def test_features_by_hand():
    # two layers of 4 x 2 voxels and 1 x 2 voxels; 30 MeV at 45 degrees, r = 5, 10 MeV at -135 degrees, r = 15
    alpha = regular(-np.pi, np.pi, 4)
    layers = Layer("polar", alpha, (0, 10, 20), number=2), Layer("polar", (-np.pi, np.pi), (0, 10, 30), number=7)
    energy = np.zeros((2, 10))
    energy[0, 2 * 2], energy[0, 1], energy[0, 8:] = 30, 10, [6, 2]
    values = features(showers(Geometry("two", layers), energy))
    x = np.array([5, -15]) / np.sqrt(2)
    centre, width = 0.75 * x[0] + 0.25 * x[1], np.sqrt(0.75 * 0.25) * (x[0] - x[1])
    expected = {
        "response": 0.48, "E_tot": 48, "E_layer_2": 40, "E_layer_7": 8, "EC_eta_2": centre, "EC_phi_2": centre,
        "width_eta_2": width, "width_phi_2": width, "sparsity_2": 0.75, "sparsity_7": 0, "EC_r_2": 7.5, "EC_r_7": 8.75,
        "width_r_2": np.sqrt(0.75 * 25 + 0.25 * 225 - 7.5**2), "width_r_7": np.sqrt(0.75 * 25 + 0.25 * 400 - 8.75**2),
    }  # fmt: skip
    assert {name: v[0] for name, v in values.items()} == pytest.approx(expected, abs=1e-6)
    empty = {name: v[1] for name, v in values.items()}
    assert empty == {name: float(name.startswith("sparsity")) for name in expected}


def slow_features(one, label, layer, position):
    """The definition of the features of one polar layer, voxel by voxel."""
    total = sum(one)
    empty = sum(e == 0 for e in one) / len(one)
    out = {f"E_layer_{label}": total, f"sparsity_{label}": empty}
    for axis, positions in zip(("eta", "phi", "r"), position, strict=True):
        if axis == "r" or layer.shape[0] > 1:
            centre = sum(p * e for p, e in zip(positions, one, strict=True)) / (total + 1e-16)
            square = sum(p * p * e for p, e in zip(positions, one, strict=True)) / (total + 1e-16)
            out |= {f"EC_{axis}_{label}": centre, f"width_{axis}_{label}": max(0, square - centre**2) ** 0.5}
    return out


@pytest.mark.parametrize("chunk", [3, 1000])
def test_features_equal_their_slow_twin(chunk):
    geometry = mesh("ds1-photons")
    sample = random_showers(geometry, 7)
    values = features(sample, chunk=chunk)
    for n, row in enumerate(sample.energy.astype(float)):
        for layer, start, stop in zip(geometry.layers, geometry.offsets[:-1], geometry.offsets[1:], strict=True):
            middles = [(a + b) / 2 for a, b in zip(layer.second[:-1], layer.second[1:], strict=True)]
            angles = [(a + b) / 2 for a, b in zip(layer.first[:-1], layer.first[1:], strict=True)]
            places = [(r * np.cos(a), r * np.sin(a), r) for a in angles for r in middles]
            slow = slow_features(row[start:stop], layer.number, layer, list(zip(*places, strict=True)))
            fast = {name: values[name][n] for name in slow}
            assert fast == pytest.approx(slow, rel=1e-9, abs=1e-5)  # a width near 0 is the root of a rounding error


def test_inputs_by_hand():
    one = showers(rings((0, 10), 2), [[3, 1], [0, 0]], 10.0)
    np.testing.assert_allclose(low(one), [[1, 0.3, 0.1], [1, 0, 0]])
    np.testing.assert_allclose(low_normed(one), [[1, 0.75, 0.25, np.log10(4)], [1, 0, 0, -8]], atol=1e-8)
    width = np.sqrt(0.75) * 5
    expected = [1, np.log10(4), 0, -0.025, 0, width / 100, np.log10(4), 0, 0.05, 0]
    np.testing.assert_allclose(high(one)[0], expected, atol=1e-8)
    np.testing.assert_allclose(high(one)[1], [1, -8, 0, 0, 0, 0, -8, 1, 0, 0])
    assert low(one, np.float32).dtype == low_normed(one, np.float32).dtype == high(one, dtype=np.float32).dtype == "f4"


def test_only_low_normed_has_no_threshold():
    one = showers(rings((0, 10), 2), [[3, 1]], 10.0)
    assert inputs(one, "low", minimum=2)[0].tolist() == pytest.approx([1, 0.3, 0])
    assert inputs(one, "resnet", minimum=2).tolist() == inputs(one, "low", minimum=2).tolist()
    assert inputs(one, "high", minimum=2)[0, 1] == pytest.approx(np.log10(3))
    assert inputs(one, "low-normed")[0].tolist() == pytest.approx([1, 0.75, 0.25, np.log10(4)])
    with pytest.raises(ValueError, match="got level 'lowest', expected one of low, low-normed, high, resnet"):
        inputs(one, "lowest", minimum=1)


def test_cartesian_layers_have_x_and_y_and_no_radius(mixed):
    names = set(features(random_showers(mixed, 2)))
    assert {"EC_eta_7", "EC_phi_7", "EC_eta_1", "EC_r_1"} <= names
    assert "EC_r_7" not in names
    assert high(random_showers(mixed, 2)).shape == (2, len(names))


def test_voxels_as_an_image(mixed):
    geometry = mesh("ds2")
    assert challenge.image_shape(geometry) == (45, 16, 9)
    assert challenge.image_shape(mesh("ds3")) == (45, 50, 18)
    sample = random_showers(geometry, 2)
    image = sample.energy.reshape(2, *challenge.image_shape(geometry))
    np.testing.assert_array_equal(image[:, 13], sample.image(13))
    with pytest.raises(ValueError, match=r"layers of cartesian 2 x 5, polar 4 x 3, expected equal layers"):
        challenge.image_shape(mixed)


def test_correlations_of_layer_energies():
    geometry = Geometry("three", tuple(Layer("cartesian", (0, 1), (0, 1)) for _ in range(3)))
    rng = np.random.default_rng(0)
    first = rng.random(400)
    energy = np.stack([first, 3 - 2 * first, np.full(400, 2.0)], axis=1)
    matrix = challenge.layer_correlation(showers(geometry, energy))
    np.testing.assert_allclose(matrix[:2, :2], [[1, -1], [-1, 1]], atol=1e-6)
    assert np.isnan(matrix[2]).all()
    sample = random_showers(mesh("ds1-pions"), 50)
    np.testing.assert_allclose(challenge.layer_correlation(sample), np.corrcoef(sample.layer_energy.T), atol=1e-12)


# histograms


def spans(edges):
    """Number of bins and both ends, for equal bins."""
    np.testing.assert_allclose(np.diff(edges), (edges[-1] - edges[0]) / (len(edges) - 1))
    return len(edges) - 1, edges[0], edges[-1]


def sample_of(name, n=40):
    sample = random_showers(mesh(name), n)
    energy = np.tile(challenge.ENERGIES, n)[:n] if "ds1" in name else sample.incident.energy
    return threshold(Showers(sample.geometry, Incident(energy), sample.energy))


@pytest.mark.parametrize("name", ["ds1-photons", "ds1-pions"])
def test_histograms_of_data_set_1(name):
    sample = sample_of(name)
    edges, values = binning(sample), features(sample)
    assert spans(edges["response"]) == (100, 0.5, 1.5)
    assert spans(edges["response_2048"]) == (20, 0.4, 1.4)
    assert spans(edges["response_4096"]) == pytest.approx((20, 0.9, 1.1) if name == "ds1-photons" else (20, 0.4, 1.4))
    assert spans(edges["response_4194304"])[0] == 20
    assert sum(key.startswith("response_") for key in edges) == 15
    for layer in challenge.MESHES[name]:
        log_bins = edges[f"E_layer_{layer}"]
        assert len(log_bins) == 40
        assert log_bins[[0, -1]].tolist() == pytest.approx([1, values[f"E_layer_{layer}"].max()])
        np.testing.assert_allclose(log_bins[1:] / log_bins[:-1], log_bins[1] / log_bins[0])
        assert spans(edges[f"sparsity_{layer}"]) == (20, 0, 1)
        far, farthest = layer in (12, 13), layer in (12, 13, 14)
        assert spans(edges[f"EC_r_{layer}"]) == (100, 0, 1500 if farthest else 500)
        assert spans(edges[f"width_r_{layer}"]) == (100, 0, 1500 if farthest else 500)
        assert (f"EC_eta_{layer}" in edges) == (challenge.MESHES[name][layer][0] > 1)
        if f"EC_eta_{layer}" in edges:
            side = 500 if far else 100
            assert spans(edges[f"EC_eta_{layer}"]) == spans(edges[f"EC_phi_{layer}"]) == (100, -side, side)
            assert spans(edges[f"width_eta_{layer}"]) == (100, 0, 400 if far else 100)
            assert spans(edges[f"width_phi_{layer}"]) == (100, 0, 400 if far else 100)
    assert len(edges["E_voxel"]) == 50
    assert edges["E_voxel"][[0, -1]].tolist() == pytest.approx([1, sample.energy.max()])


def test_histograms_of_data_sets_2_and_3():
    sample = sample_of("ds2", 4)
    edges = binning(sample)
    assert not any(key.startswith("response_") for key in edges)
    assert spans(edges["EC_eta_44"]) == spans(edges["EC_phi_0"]) == (100, -30, 30)
    assert spans(edges["width_eta_3"]) == spans(edges["width_phi_3"]) == (100, 0, 30)
    assert spans(edges["EC_r_7"]) == (100, 0, 42)
    assert spans(edges["width_r_7"]) == (100, 0, 20)
    assert edges["E_layer_20"][0] == edges["E_voxel"][0] == 0.5e-3 / 0.033
    assert set(edges) == {"E_voxel", *features(sample)} - {"E_tot"}


def test_histograms_of_other_geometries_come_from_the_mesh(mixed):
    sample = threshold(random_showers(mixed, 20), 0.1)
    edges = binning(sample, minimum=0.1)
    assert spans(edges["EC_r_1"]) == (100, 0, 50)
    assert spans(edges["width_r_1"]) == (100, 0, 25)
    assert spans(edges["EC_eta_1"]) == spans(edges["EC_phi_7"]) == (100, -50, 50)
    assert spans(edges["width_eta_7"]) == (100, 0, 50)
    assert edges["E_layer_7"][0] == 0.1


def test_a_layer_that_is_always_empty_has_no_energy_histogram():
    sample = sample_of("ds1-photons", 5)
    energy = sample.energy.copy()
    energy[:, 363:] = 0
    edges = binning(Showers(sample.geometry, sample.incident, energy))
    assert "E_layer_12" not in edges
    assert "E_layer_3" in edges


def test_separation_ignores_what_is_outside_and_reports_it():
    geometry = rings((0, 100), 1)
    reference = showers(geometry, [[200], [52], [52], [90]])
    candidate = showers(geometry, [[10], [52], [90], [90]])
    found = separation_powers(reference, candidate, minimum=1)
    # inside 0.5..1.5: bins (2/3, 1/3) against (1/3, 2/3): S = 1/2 * 2 * (1/9) / 1
    assert found["response"].value == pytest.approx(1 / 9)
    assert found["response"].underflow == (0, 0.25)
    assert found["response"].overflow == (0.25, 0)
    assert found["response"].error > 0
    assert found["E_layer_0"].overflow == found["E_voxel"].overflow == (0, 0)
    assert found["E_voxel"].value == pytest.approx(1 / 3)  # (1/4, 1/2, 1/4, 0) against (0, 1/4, 1/2, 1/4)


def test_official_formula_and_the_closed_last_bin():
    sample = sample_of("ds1-photons", 60)
    pair = sample[:30], sample[30:]
    known = features(pair[0]), features(pair[1])
    found = separation_powers(*pair, known)
    assert list(found) == list(binning(pair[0]))
    energy = np.zeros_like(sample.energy)
    nothing = separation_powers(pair[0], Showers(sample.geometry, sample.incident, energy)[30:])
    assert nothing["sparsity_1"].overflow == (0, 0)  # sparsity 1 of empty layers is in the last bin
    assert nothing["sparsity_1"].value == 1
    assert np.isnan(nothing["E_layer_1"].value)
    assert np.isnan(nothing["E_voxel"].value)
    assert nothing["E_layer_1"].underflow[1] == nothing["E_voxel"].underflow[1] == 1
    for name, edges in binning(pair[0]).items():
        if name in known[0] and not np.isnan(found[name].value):
            p, q = (np.histogram(v[name], edges, density=True)[0] * np.diff(edges) for v in known)
            assert found[name].value == pytest.approx(0.5 * ((p - q) ** 2 / (p + q + 1e-16)).sum(), abs=1e-12), name


def test_same_showers_have_no_separation_and_other_meshes_are_refused(mixed):
    sample = sample_of("ds1-pions", 30)
    found = separation_powers(sample, sample, n_bootstrap=5)
    assert {s.value for s in found.values() if not np.isnan(s.value)} == {0}
    again = separation_powers(sample, sample, n_bootstrap=5)
    assert [s.error for s in again.values()] == pytest.approx([s.error for s in found.values()], nan_ok=True)
    with pytest.raises(ValueError, match="got candidate showers with geometry 'mixed'"):
        separation_powers(sample, random_showers(mixed, 5))


def test_error_of_the_voxel_histogram_knows_that_voxels_of_a_shower_belong_together():
    # every shower has one scale: 100 voxels say no more than one
    geometry = rings((0, 10), 100)
    rng = np.random.default_rng(1)

    def experiment():
        scale = rng.uniform(2, 40, (2, 300, 1))
        pair = [showers(geometry, s * np.ones((1, 100))) for s in scale]
        edges = np.linspace(1, 41, 6)
        return challenge._voxel_separation([challenge._voxel_blocks(s, edges) for s in pair], 60, rng)

    runs = [experiment() for _ in range(60)]
    spread, error = np.std([r.value for r in runs]), np.mean([r.error for r in runs])
    assert 0.5 * spread < error < 2.5 * spread
    counts = rng.multinomial(30000, np.full(5, 0.2), size=2)
    assert distances.separation_power(*counts, 60, rng)[1] < 0.1 * error  # as if voxels were independent
