"""Observables: values known by hand, invariances, and equality with the official CaloChallenge code."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caloforge.evaluate.observables import high_level, high_level_names, low_level, observables, varying_conditions
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

SHARED = Path(os.environ.get("CALOFORGE_SHARED", Path(__file__).parents[2] / "shared"))
OFFICIAL = SHARED / "reference" / "calochallenge"

# 2 layers: 2 x 2 cells of 10 mm, and 1 x 3 cells of 10 mm along y
BOX = Geometry(
    "box",
    (
        Layer("cartesian", regular(-10, 10, 2), regular(-10, 10, 2)),
        Layer("cartesian", (-5, 5), regular(-15, 15, 3)),
    ),
)


def box(energy, incident=100.0):
    energy = np.atleast_2d(np.array(energy, dtype=float))
    return Showers(BOX, Incident(np.full(len(energy), incident)), energy)


def test_every_observable_of_one_shower_by_hand():
    # layer 0: 30 at (-5, -5), 10 at (5, -5); layer 1: 20 at y = -10, 20 at y = 10
    values = {name: float(v[0]) for name, v in observables(box([30, 0, 10, 0, 20, 0, 20])).items()}
    width_x = np.sqrt(25 - 2.5**2)
    assert values == pytest.approx({
        "total_energy": 80, "response": 0.8, "layer_energy_0": 40, "layer_energy_1": 40, "fraction_0": 0.5,
        "fraction_1": 0.5, "depth": 1, "lateral_depth": 40, "shower_depth": 0.5, "shower_depth_width": 0.5,
        "occupied_0": 0.5, "occupied_1": 2 / 3, "e_ratio_0": 0.5, "e_ratio_1": 0.0,
        "brightest_1_0": 0.75, "brightest_2_0": 0.25, "brightest_3_0": 0, "brightest_4_0": 0,
        "brightest_1_1": 0.5, "brightest_2_1": 0.5, "brightest_3_1": 0,
        "ec_x_0": -2.5, "ec_y_0": -5, "lateral_width_0": width_x, "width_y_0": 0, "ec_y_1": 0, "width_y_1": 10,
    })  # fmt: skip


def test_polar_layer_by_hand():
    # four quadrants, two rings of 10 mm; 30 MeV at 45 degrees, r = 5, and 10 MeV at 225 degrees, r = 15
    layer = Layer("polar", regular(0, 2 * np.pi, 4), (0, 10, 20))
    energy = np.zeros((1, 8))
    energy[0, 0], energy[0, 5] = 30, 10
    values = observables(Showers(Geometry("ring", (layer,)), Incident([50.0]), energy))
    x = np.array([5.0, -15.0]) / np.sqrt(2)
    mean = 0.75 * x[0] + 0.25 * x[1]
    assert values["ec_x_0"][0] == pytest.approx(mean, abs=1e-12)
    assert values["ec_y_0"][0] == pytest.approx(mean, abs=1e-12)
    assert values["lateral_width_0"][0] == pytest.approx(np.sqrt(0.75 * 0.25) * abs(x[0] - x[1]))
    assert values["ec_r_0"][0] == pytest.approx(7.5)
    assert values["width_r_0"][0] == pytest.approx(np.sqrt(0.75 * 25 + 0.25 * 225 - 7.5**2))


def test_rings_without_alpha_bins_have_no_transverse_centre():
    layer = Layer("polar", (-np.pi, np.pi), (0, 10, 20))
    values = observables(Showers(Geometry("rings", (layer,)), Incident([50.0]), np.ones((1, 2))))
    assert "ec_r_0" in values
    assert not {"ec_x_0", "ec_y_0", "lateral_width_0", "width_y_0"} & set(values)


def test_empty_shower_gives_zeros_and_depth_minus_one():
    values = observables(box(np.zeros(7)))
    assert values.pop("depth")[0] == -1
    assert all(v[0] == 0 for v in values.values())


def test_layer_of_one_voxel():
    geometry = Geometry("slab", (Layer("cartesian", (0, 1), (0, 1)),))
    values = observables(Showers(geometry, Incident([10.0]), [[5.0]]))
    assert values["e_ratio_0"][0] == 1
    assert values["brightest_1_0"][0] == 1
    assert "brightest_2_0" not in values
    assert high_level(Showers(geometry, Incident([10.0]), [[5.0]])).shape == (1, 4)


def test_chunks_do_not_change_the_values():
    showers = box(np.random.default_rng(0).exponential(size=(50, 7)))
    whole = observables(showers)
    for name, values in observables(showers, chunk=7).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-12, atol=1e-12)


def test_no_showers_give_empty_columns():
    values = observables(box(np.zeros((3, 7)))[:0])
    assert {v.shape for v in values.values()} == {(0,)}


SHOWER = st.lists(st.integers(0, 1000), min_size=7, max_size=7)


@given(SHOWER, st.sampled_from([0.125, 2.0, 8.0]))
@settings(max_examples=50, deadline=None)
def test_scaling_energy_leaves_shapes_alone(energy, scale):
    one, other = observables(box(energy)), observables(box(np.array(energy) * scale))
    for name in one:
        factor = scale if name.startswith(("total", "layer_energy", "lateral_depth", "response")) else 1
        np.testing.assert_allclose(other[name], factor * one[name], rtol=1e-9, atol=1e-9)


@given(SHOWER)
@settings(max_examples=50, deadline=None)
def test_bounds_hold_for_every_shower(energy):
    values = {name: v[0] for name, v in observables(box(energy)).items()}
    for name, value in values.items():
        if name.startswith(("fraction", "occupied", "e_ratio", "brightest", "shower_depth")):
            assert -1e-12 <= value <= 1 + 1e-12, name
    assert abs(values["ec_x_0"]) <= 5 + 1e-9
    assert values["lateral_width_0"] <= 5 + 1e-9
    assert values["layer_energy_0"] + values["layer_energy_1"] == pytest.approx(values["total_energy"])


def test_classifier_inputs_by_hand():
    showers = box([30, 0, 10, 0, 20, 0, 20])
    np.testing.assert_allclose(low_level(showers)[0], [2, 0.3, 0, 0.1, 0, 0.2, 0, 0.2], rtol=1e-6)
    names = high_level_names(BOX)
    row = dict(zip(names, high_level(showers)[0], strict=True))
    assert row["incident_energy"] == 2
    assert row["layer_energy_0"] == pytest.approx(np.log10(40))
    assert row["occupied_1"] == pytest.approx(1 / 3)
    assert row["ec_x_0"] == pytest.approx(-0.025)


def test_conditions_that_vary_become_inputs():
    energy = np.ones((2, 7))
    incident = Incident([1.0, 2.0], theta=[0.1, 0.1], phi=[0.0, np.pi / 2])
    showers = Showers(BOX, incident, energy)
    assert varying_conditions(incident) == ("phi",)
    np.testing.assert_allclose(low_level(showers, ("phi",))[:, -2:], [[1, 0], [0, 1]], atol=1e-7)
    assert high_level(showers, conditions=("theta",)).shape[1] == len(high_level_names(BOX)) + 1


def _official_geometry(name: str) -> Geometry:
    text = json.loads((OFFICIAL / "geometry.json").read_text())[name]
    layers = [Layer("polar", regular(-np.pi, np.pi, v["n_alpha"]), v["r_edges_mm"]) for v in text["layers"]]
    return Geometry(name, tuple(layers))


@pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="no official CaloChallenge features; set CALOFORGE_SHARED to find them"
)
@pytest.mark.parametrize("name", ["ds1_photons", "ds1_pions", "ds2"])
def test_equal_to_the_official_calochallenge_code(name):
    geometry = _official_geometry(name.replace("ds", "dataset_"))
    ids = [v["layer"] for v in json.loads((OFFICIAL / "geometry.json").read_text())[geometry.name]["layers"]]
    with np.load(OFFICIAL / "official_features.npz") as file:
        official = {k.removeprefix(f"{name}/"): file[k] for k in file.files if k.startswith(f"{name}/")}
    energy = np.where(official["showers"] < official["threshold"], 0, official["showers"])
    showers = Showers(geometry, Incident(official["incident_energies"][:, 0]), energy)
    values = observables(showers)
    np.testing.assert_allclose(values["total_energy"], official["E_tot"], rtol=1e-6)
    ours = {
        "E_layer": "layer_energy", "EC_eta": "ec_x", "EC_phi": "ec_y", "width_eta": "lateral_width",
        "width_phi": "width_y", "EC_r": "ec_r", "width_r": "width_r", "sparsity": "occupied",
    }  # fmt: skip
    compared = 0
    for key, expected in official.items():
        kind, _, layer = key.partition("/layer_")
        if not layer:
            continue
        got = values[f"{ours[kind]}_{ids.index(int(layer))}"]
        np.testing.assert_allclose(1 - got if kind == "sparsity" else got, expected, rtol=1e-6, atol=1e-6, err_msg=key)
        compared += 1
    assert compared == sum(name.startswith(tuple(ours.values())) for name in values)
    np.testing.assert_allclose(high_level(showers), official["classifier_high"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(low_level(showers), official["classifier_low"], rtol=1e-6, atol=1e-6)
