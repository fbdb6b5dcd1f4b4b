"""The page of one or more reports and the files beside it: markup, scene, metrics.json, metrics.csv, figures."""

import base64
import csv
import html.parser
import json
import math
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from caloforge.evaluate import Report, Score
from caloforge.evaluate import observables as observe
from caloforge.evaluate.metrics_file import metrics_csv, metrics_json, metrics_schema
from caloforge.evaluate.page import render, save_all
from caloforge.evaluate.plots import SECTIONS, figures
from caloforge.evaluate.plots.profiles import depth_axis, radial_edges
from caloforge.evaluate.plots.style import CANDIDATES, VARIABLES
from caloforge.evaluate.scene import STEPS, matched, mesh, packed, scene, spread
from caloforge.evaluate.verdict import sentence, stands_out, worst_first
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers

PLANES = Geometry(
    "planes",
    tuple(Layer("cartesian", regular(-10, 10, 4), regular(-10, 10, n), (i, i + 1)) for i, n in enumerate((4, 1, 5))),
)
RINGS = Geometry("rings", tuple(Layer("polar", regular(-np.pi, np.pi, n), (0, 5, 10, 20)) for n in (6, 1)))
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


def toy(geometry, n=300, seed=0, shift=1.0):
    """Gamma-distributed voxels, a third of them empty; ``shift`` scales layer 0."""
    rng = np.random.default_rng(seed)
    incident = np.exp(rng.uniform(np.log(1e3), np.log(1e5), n))
    energy = rng.gamma(2, 0.5, (n, geometry.n_voxels)) * incident[:, None] / geometry.n_voxels
    energy[rng.random(energy.shape) < 0.3] = 0
    energy[:, : geometry.offsets[1]] *= shift
    return Showers(geometry, Incident(incident, pdg=22), energy, provenance={"engine": "toy", "seed": seed})


def report_of(reference, candidate, name, far=(), extra=None):
    """A report without the cost of judging: made-up scores, those in ``far`` ten sigma above their floor."""
    values = observe.observables(reference), observe.observables(candidate)
    names = ["auc_low", "auc_high", "jsd_low", "response/mean", "occupancy/layer_0"]
    names += [f"{kind}/{key}" for kind in ("separation", "w1") for key in values[0]]
    scores = {key: Score(0.7 if key in far else 0.511, 0.01, 0.5, 0.016) for key in names}
    rate = np.linspace(0, 1, 11)
    provenance = {
        "candidate_name": name, "notes": [], "created": "2026-01-02T03:04:05+00:00", "n_reference": len(reference),
        "geometry": {"name": reference.geometry.name, "digest": reference.geometry.digest()},
        "reference": dict(reference.provenance), "candidate": dict(candidate.provenance),
        "versions": {"caloforge": "0"},
    }  # fmt: skip
    roc = {f"{level}{floor}": np.stack([rate, rate]) for level in ("low", "high") for floor in ("", " floor")}
    return Report(scores, provenance, reference, candidate, values, roc, extra or {})


@pytest.fixture(scope="module")
def reference():
    return toy(PLANES)


@pytest.fixture(scope="module")
def reports(reference):
    rng = np.random.default_rng(3)
    x = np.linspace(0.1, 0.9, 5)
    extra = {
        "calibration/low": (x, x**1.1, 0.02 + 0 * x),
        "weights/low": (rng.normal(0, 0.1, 99), rng.normal(0, 0.1, 88)),
    }
    return [
        report_of(reference, toy(PLANES, 290, 1, shift=1.3), "far <off>", ("auc_high", "separation/fraction_0"), extra),
        report_of(reference, toy(PLANES, 310, 2), "near"),
    ]


def few(patch):
    """Draw a few figures only: each costs a tenth of a second or more."""
    patch.setattr("caloforge.evaluate.plots.observables.N_PANELS", 3)
    patch.setattr("caloforge.evaluate.plots.showers.N_EXAMPLES", 1)


@pytest.fixture(autouse=True)
def few_panels(monkeypatch):
    few(monkeypatch)


class Reader(html.parser.HTMLParser):
    """Collects what the tests ask about, and that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def drawn(reports):
    with pytest.MonkeyPatch.context() as patch:
        few(patch)
        return figures(reports)


@pytest.fixture(scope="module")
def page(reports, drawn):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("caloforge.evaluate.plots.figures", lambda reports: drawn)
        return render(reports)


def test_the_page_is_well_formed_and_needs_no_network(page):
    reader = Reader(page)
    assert len(reader.ids) == len(set(reader.ids))
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page
    links = {value for _, name, value in reader.attributes if name in ("href", "src", "xlink:href")}
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(reader.ids)


def test_the_page_names_every_candidate_and_labels_every_control(page, reports):
    assert "far &lt;off&gt;, near against Geant4" in page
    assert "<off>" not in page.partition("<script")[0]
    assert all(sentence(report).split(",")[0] in page.replace("&#39;", "'") for report in reports)
    for attributes, content in re.findall(r"<button([^>]*)>(.*?)</button>", page, flags=re.S):
        assert "aria-label=" in attributes or re.search(r"[A-Za-z]", re.sub(r"<[^>]+>", "", content))
    assert page.count('class="zoom" aria-label="Enlarge. ') == page.count('class="zoom"') > 10
    for level in ("verdict", "scores", "viewer", "method"):
        assert f'<section id="{level}" aria-labelledby="{level}-title">' in page


def test_figures_of_all_kinds_show_all_candidates(drawn):
    names = [image.name for section in drawn.values() for image in section]
    assert len(names) == len(set(names))
    assert [image.name for image in drawn["judges"]] == ["roc-low", "roc-high", "calibration-low", "weights-low-1"]
    assert [image.name for image in drawn["profiles"]] == ["profile-longitudinal", "profile-radial", "voxel-spectrum"]
    assert [image.name for image in drawn["response"]] == ["response", "resolution"]
    assert len(drawn["layers"]) == 3 * 2
    assert len(drawn["correlations"]) == 2
    assert drawn["observables"][0].name == "observable-fraction_0"
    svg = drawn["observables"][0].svg
    assert all(f"var(--c{n})" in svg and f'class="of-{n}"' in svg for n in (1, 2))
    assert not any(colour in svg for colour in VARIABLES)
    assert len(svg) < 26_000
    assert "near: S = 0.5110" in drawn["observables"][0].caption
    assert all(image.alt for section in drawn.values() for image in section)


def test_the_colours_of_the_figures_are_the_page_s():
    style = (render.__globals__["files"]("caloforge.evaluate") / "assets" / "report.css").read_text()
    light = style[: style.index("prefers-color-scheme: dark")]
    for colour, variable in VARIABLES.items():
        if variable not in ("card", "faded"):
            assert f"--{variable}: {colour}" in light
        assert style.count(f"--{variable}:") >= 2
    assert len(set(CANDIDATES)) == 6


def test_axes_of_the_profiles():
    flat = Geometry("flat", tuple(Layer("cartesian", (-2, 0, 2), (-2, 0, 2), d) for d in ((0, 4), (6, 8))))
    edges, label = depth_axis(flat)
    assert (edges.tolist(), label) == ([0, 5, 8], "depth [mm]")
    assert len(radial_edges(flat)) == 2
    assert radial_edges(RINGS).tolist() == [0, 5, 10, 20]
    assert depth_axis(RINGS)[1] == "layer"
    assert len(radial_edges(PLANES)) > 3


def test_metrics_json_keeps_its_schema_and_a_broken_one_does_not(reports, reference):
    schema = metrics_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads(metrics_json(reports), parse_constant=pytest.fail)
    jsonschema.validate(content, schema)
    assert content["$schema"] == schema["$id"]
    assert list(content["candidates"]) == ["far <off>", "near"]
    nan = replace(reports[0], scores=dict(reports[0].scores) | {"w1/dead": Score(math.nan, 0, 0, math.inf)})
    text = json.loads(metrics_json([nan]), parse_constant=pytest.fail)
    jsonschema.validate(text, schema)
    assert text["candidates"]["far <off>"]["scores"]["w1/dead"]["value"] is None
    for broken in ({"format_version": 2}, {"candidates": {}}, {"scores": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | broken, schema)


def test_metrics_csv_has_one_line_per_candidate_and_score(reports):
    rows = list(csv.DictReader(metrics_csv(reports).splitlines()))
    assert len(rows) == 2 * len(reports[0].scores)
    assert list(rows[0]) == ["candidate", "score", "value", "error", "floor", "floor_error", "excess"]
    first = next(row for row in rows if row["score"] == "auc_high")
    assert first["candidate"] == "far <off>"
    assert float(first["excess"]) == reports[0].scores["auc_high"].excess


def only(monkeypatch, *names):
    """Draw these sections of the page only."""
    empty = dict.fromkeys(SECTIONS, lambda reports: [])
    monkeypatch.setattr("caloforge.evaluate.plots.SECTIONS", empty | {name: SECTIONS[name] for name in names})


def test_save_all_writes_one_page_and_the_figures_if_asked(reports, tmp_path, monkeypatch):
    only(monkeypatch, "judges")
    assert save_all(reports[:1], tmp_path / "a", figures=True) == tmp_path / "a"
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "figures",
        "metrics.csv",
        "metrics.json",
        "report.html",
    ]
    written = sorted(p.name for p in (tmp_path / "a" / "figures").iterdir())
    assert {"roc-low.pdf", "roc-low.png", "weights-low-1.pdf"} <= set(written)
    assert len(written) % 2 == 0
    assert (tmp_path / "a" / "figures" / "roc-low.pdf").read_bytes()[:5] == b"%PDF-"
    (tmp_path / "a" / "figures" / "mine.txt").touch()
    save_all(reports[:1], tmp_path / "a", force=True, figures=True)
    assert sorted(p.name for p in (tmp_path / "a" / "figures").iterdir()) == sorted([*written, "mine.txt"])
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_candidates_that_cannot_share_a_page_are_refused(reports, reference):
    with pytest.raises(ValueError, match="expected at least one"):
        render([])
    with pytest.raises(ValueError, match="got candidates called near, near, expected different names"):
        render([reports[1], reports[1]])
    other = toy(PLANES, 300, 7)
    with pytest.raises(ValueError, match="got stranger with another reference than near"):
        render([reports[1], report_of(other, reference, "stranger")])
    with pytest.raises(ValueError, match="the reference of round"):
        render([reports[1], report_of(toy(RINGS), toy(RINGS), "round")])


def test_the_verdict_in_words(reports, monkeypatch):
    only(monkeypatch)
    far, near = map(sentence, reports)
    assert far.startswith("can be told from Geant4 by a neural network (AUC 0.700 ± 0.010 on observables, 10.6 σ above")
    assert "1 of " in far
    assert "the worst is fraction_0, 10.6 σ above its floor" in far
    assert near.startswith("could not be told from Geant4")
    assert "None of " in near
    assert "The mean response is 51.10 ± 1.00 % too high." in near
    assert worst_first(reports, 1) == ["fraction_0"]
    assert stands_out("response/mean", Score(-1, 0.1, 0, 0))
    assert stands_out("density", Score(-1, 0.1, 0, 0))
    assert not stands_out("separation/x", Score(-1, 0.1, 0, 0))
    assert stands_out("separation/x", Score(1, 0.1, 0, 0))
    bare = replace(reports[0], scores={"fpd": Score(1, 1, 1, 0)}, roc={})
    assert sentence(bare) == ""
    assert "fpd" in render([bare])


def test_the_scene_gives_the_showers_back(reports, reference):
    data = json.loads(json.dumps(scene(reports)))
    assert data["samples"] == ["Geant4", "far <off>", "near"]
    assert len(data["showers"]) == 12
    assert [len(step) for step in data["showers"]] == [3] * 12
    energies = [step[0]["energy"] for step in data["showers"]]
    assert energies == sorted(energies)
    for step in data["showers"]:
        shower = step[0]
        row = int(np.flatnonzero(reference.incident.energy == shower["energy"])[0])
        cells = np.frombuffer(base64.b64decode(shower["cells"]), "<u2")
        codes = np.frombuffer(base64.b64decode(shower["codes"]), "<u2")
        back = np.zeros(PLANES.n_voxels)
        back[cells] = data["low"] * (data["high"] / data["low"]) ** (codes / STEPS)
        np.testing.assert_allclose(back, reference.energy[row], rtol=2e-4)
        assert shower["total"] == pytest.approx(reference.energy[row].sum())
        assert max(abs(math.log(other["energy"] / shower["energy"])) for other in step[1:]) < 0.3


def test_the_scene_matches_energies_and_directions_and_uses_each_shower_once():
    reference = Showers(PLANES, Incident([10.0, 20, 20], theta=[0, 0, 0.5]), np.zeros((3, PLANES.n_voxels)))
    candidate = Showers(PLANES, Incident([20.0, 9, 20], theta=[0.5, 0, 0]), np.zeros((3, PLANES.n_voxels)))
    assert matched(reference, candidate, np.array([0, 1, 2])).tolist() == [1, 2, 0]
    assert matched(reference, candidate[:1], np.array([0, 1])).tolist() == [0, 0]
    assert spread(np.array([3.0, 1, 2]), 12).tolist() == [1, 2, 0]
    assert spread(np.arange(100.0), 2).tolist() == [25, 75]


def test_the_scene_leaves_out_soft_voxels_before_it_grows_and_says_so(reference):
    shower = packed(reference, 0, 1e-3, 1e5, True, 3)
    kept = np.sort(reference.energy[0])[-3:]
    assert len(np.frombuffer(base64.b64decode(shower["cells"]), "<u4")) == 3
    assert shower["lost"] == pytest.approx(1 - kept.sum() / reference.energy[0].sum(), rel=1e-5)
    empty = packed(replace(reference, energy=0 * reference.energy), 0, 1e-3, 1, False, 9)
    assert (empty["cells"], empty["total"], empty["lost"]) == ("", 0, 0)
    assert [layer["depth"] for layer in mesh(RINGS)] == [[0, 12], [12, 24]]


def test_dead_and_tiny_samples_make_a_page(monkeypatch):
    only(monkeypatch, "observables", "profiles", "response", "correlations")
    showers = toy(RINGS, 60)
    dead = replace(showers, energy=np.zeros_like(showers.energy))
    Reader(render([report_of(showers, dead, "dead")]))
    Reader(render([report_of(dead, showers, "alive")]))
    one = Geometry("one", (Layer("cartesian", (0, 1), (0, 1)),))
    Reader(render([report_of(toy(one, 60), toy(one, 60, 1), "one voxel")]))
