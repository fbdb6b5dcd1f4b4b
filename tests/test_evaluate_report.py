"""evaluate() end to end on tiny showers: scores, floors, files, refusals."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from caloforge.evaluate import Score, evaluate
from caloforge.evaluate.numbers import format_number, format_pair, format_signed
from caloforge.evaluate.plots import SECTIONS
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

PLANES = Geometry(
    "planes",
    tuple(Layer("cartesian", regular(-10, 10, 4), regular(-10, 10, n), (i, i + 1)) for i, n in enumerate((4, 1))),
)
FILES = ["metrics.csv", "metrics.json", "report.html"]
RINGS = Geometry("rings", tuple(Layer("polar", regular(0, 2 * np.pi, n), (0, 5, 10, 20)) for n in (4, 1)))
FAST = {"repeats": 2, "epochs": 5, "n_bootstrap": 10}


def toy(geometry, n, seed, shift=1.0):
    """Gamma-distributed voxels with a random share of empty ones; ``shift`` scales layer 0."""
    rng = np.random.default_rng(seed)
    incident = rng.uniform(1e3, 1e4, n)
    energy = rng.gamma(2, 0.5, (n, geometry.n_voxels)) * incident[:, None] / geometry.n_voxels
    energy[rng.random(energy.shape) < 0.2] = 0
    energy[:, : geometry.offsets[1]] *= shift
    return Showers(geometry, Incident(incident, pdg=22), energy, provenance={"engine": "toy", "seed": seed})


@pytest.fixture(autouse=True)
def few_panels(monkeypatch):
    """Draw a few figures only: each costs a tenth of a second or more."""
    monkeypatch.setattr("caloforge.evaluate.plots.observables.N_PANELS", 4)
    monkeypatch.setattr("caloforge.evaluate.plots.showers.N_EXAMPLES", 2)


@pytest.fixture(scope="module")
def reference():
    return toy(PLANES, 800, 0)


@pytest.fixture(scope="module")
def report(reference):
    return evaluate(reference, toy(PLANES, 700, 1, shift=2), candidate_name="toy <b>", **FAST)


def test_scores_have_the_promised_names(report):
    names = set(report.scores)
    observables = {name.removeprefix("w1/") for name in names if name.startswith("w1/")}
    assert {"total_energy", "response", "depth", "occupied_1", "lateral_width_0"} <= observables
    whole = {"fpd", "kpd", "sliced_w1", "mean_ks", "precision", "recall", "density", "coverage", "prd_auc"}
    groups = ("separation", "w1", "ks", "tv", "kl", "js", "chi2")
    named = {name for name in names if "/" not in name} - whole
    assert named == {"auc_low", "auc_high", "jsd_low", "jsd_high"}
    assert {f"{group}/{name}" for group in groups for name in observables} <= names
    assert {"response/mean", "response/width", "response/core_width", "occupancy/layer_0", "occupancy/layer_1"} <= names
    assert {"weights_high/ess", "weights_low/kl"} <= names
    left_out = {note.split(" is left out")[0] for note in report.provenance["notes"] if "is left out" in note}
    assert whole - names <= left_out | {"precision", "recall", "density", "coverage"}


def test_a_different_sample_stands_out_of_its_floor(report):
    for name in ("auc_low", "auc_high", "separation/fraction_0", "w1/fraction_0", "response/mean"):
        assert report.scores[name].excess > 3, name
    assert abs(report.scores["occupancy/layer_0"].value) < 5 * report.scores["occupancy/layer_0"].error
    assert {"fraction_0", "shower_depth"} <= set(report.worst(10))
    mean = [s.total / s.incident.energy for s in (report.reference, report.candidate)]
    assert report.scores["response/mean"].value == pytest.approx(mean[1].mean() / mean[0].mean() - 1)


def test_the_same_distribution_stays_at_its_floor(reference):
    scores = evaluate(reference, toy(PLANES, 800, 2), **FAST).scores
    assert scores["auc_low"].value == pytest.approx(0.5, abs=3 * scores["auc_low"].error)
    assert scores["auc_high"].floor == pytest.approx(0.5, abs=3 * scores["auc_high"].floor_error)
    assert abs(scores["response/mean"].excess) < 4


def test_a_sample_against_itself_is_refused_and_would_be_at_zero(reference, monkeypatch):
    with pytest.raises(ValueError, match=r"got \d+ showers that stand in both samples"):
        evaluate(reference, reference, **FAST)
    monkeypatch.setattr("caloforge.evaluate.require_distinct", lambda *samples: None)
    report = evaluate(reference, reference, **FAST)
    zero = [
        s.value for name, s in report.scores.items() if name.startswith(("separation", "w1", "response", "occupancy"))
    ]
    assert np.allclose(zero, 0, atol=1e-12)
    assert not any("distributed differently" in note for note in report.provenance["notes"])


def test_same_seed_same_scores_and_global_random_states_untouched(reference, report):
    before = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = evaluate(reference, report.candidate, **FAST)
    assert repr(again.scores) == repr(report.scores)  # NaN is not equal to itself
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert evaluate(reference, report.candidate, seed=1, **FAST).scores["auc_low"] != report.scores["auc_low"]


def test_saved_files(report, tmp_path):
    folder = report.save(tmp_path / "report")
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report"]
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert set(metrics) == {"$schema", "format_version", "candidates"}
    assert set(metrics["candidates"]) == {"toy <b>"}
    metrics = metrics["candidates"]["toy <b>"]
    assert set(metrics["scores"]) == set(report.scores)
    assert set(metrics["scores"]["auc_low"]) == {"value", "error", "floor", "floor_error"}
    assert metrics["scores"]["auc_low"]["value"] == report.scores["auc_low"].value
    assert metrics["provenance"]["n_floor"] == [400, 400]
    assert metrics["provenance"]["settings"]["seed"] == 0
    assert metrics["provenance"]["geometry"]["digest"] == PLANES.digest()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "toy &lt;b&gt; against Geant4" in page
    assert "half the statistics" in page


def test_an_existing_folder_is_only_replaced_by_force(report, tmp_path, monkeypatch):
    monkeypatch.setattr("caloforge.evaluate.page.render", lambda reports: "page")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="give --force"):
        report.save(tmp_path / "mine")
    report.save(tmp_path / "mine", force=True)
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [*FILES, "thesis.txt"]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="expected a folder"):
        report.save(tmp_path / "file", force=True)
    with pytest.raises(FileNotFoundError, match="create it"):
        report.save(tmp_path / "nowhere" / "report")


def test_a_failed_save_leaves_nothing(report, tmp_path, monkeypatch):
    monkeypatch.setattr("caloforge.evaluate.page.render", lambda reports: "\ud800")  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        report.save(tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_polar_layers_dead_candidate_and_nan_free_json(tmp_path):
    reference = toy(RINGS, 120, 0)
    dead = replace(reference, energy=np.zeros_like(reference.energy))
    calls = []
    report = evaluate(
        reference, dead, repeats=1, epochs=2, n_bootstrap=5, progress=lambda fraction, text: calls.append(fraction)
    )
    assert report.scores["response/mean"].value == -1
    assert report.scores["separation/total_energy"].value > 0.95
    assert calls == sorted(calls)
    assert calls[-1] == 1
    json.loads((report.save(tmp_path / "r") / "metrics.json").read_text(), parse_constant=pytest.fail)
    backwards = evaluate(dead, reference, repeats=1, epochs=2, n_bootstrap=5)
    assert math.isnan(backwards.scores["response/mean"].value)
    text = json.loads(json.dumps(backwards.to_dict(), allow_nan=False))
    assert text["scores"]["response/mean"]["value"] is None
    backwards.to_html()


def test_different_incident_energies_are_noted(reference, monkeypatch):
    other = replace(reference, incident=Incident(reference.incident.energy * 1.5, pdg=22))
    report = evaluate(reference, other, repeats=1, epochs=1, n_bootstrap=5)
    monkeypatch.setattr("caloforge.evaluate.plots.SECTIONS", dict.fromkeys(SECTIONS, lambda reports: []))
    assert report.provenance["notes"][0].startswith("The incident energy is distributed differently")
    assert 'class="note"' in report.to_html()


def test_bad_input_is_refused(reference):
    with pytest.raises(ValueError, match="candidate showers with geometry 'rings'"):
        evaluate(reference, toy(RINGS, 100, 0))
    with pytest.raises(ValueError, match="got 20 reference showers, expected at least 50"):
        evaluate(reference[:20], reference)
    with pytest.raises(ValueError, match="got 20 candidate showers"):
        evaluate(reference, reference[:20])
    for name, value in {"repeats": 0, "epochs": 0, "n_bootstrap": 1, "seed": -1}.items():
        with pytest.raises(ValueError, match=f"got {name} {value}, expected at least"):
            evaluate(reference, reference, **{name: value})


def test_excess_and_number_formats():
    assert Score(0.6, 0.03, 0.5, 0.04).excess == pytest.approx(2)
    assert Score(0.0, 0.0, 0.0, 0.0).excess == 0
    assert math.isnan(Score(1.0, 0.0, 0.0, 0.0).excess)
    assert format_pair(0.53123, 0.0071) == "0.5312 ± 0.0071"
    assert format_pair(float("nan"), 1.0) == "–"
    assert format_pair(2.0, 0.0) == "2"
    assert format_pair(12345.0, 230.0) == "1.23e+04 ± 2e+02"
    assert format_number(None) == format_number(float("inf")) == "–"
    assert format_number(0.000123) == "1.23e-04"
    assert [format_signed(v) for v in (0.123, -0.123, -0.001)] == ["+0.12", "-0.12", "0.00"]


def test_importing_the_referee_loads_neither_torch_nor_matplotlib():
    heavy = ("torch", "matplotlib", "sklearn", "scipy", "jinja2")
    code = f"import sys, caloforge.evaluate; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
