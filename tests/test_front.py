"""The front of quality and time: numbers of several runs merged, table, trade-off and plot; no model is measured."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from matplotlib.text import Annotation
from torch import nn

from caloforge.benchmark import Row
from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry
from caloforge.models import VAEConfig
from conftest import random_showers

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def front() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("front")
    finally:
        sys.path.remove(str(BENCHMARKS))


def record(family: str, auc: float, ms: float, sample: str = "calogan-eplus-test", **changes: Any) -> dict[str, Any]:
    """Numbers of a model as ``measure`` returns them."""
    score = {"value": auc, "error": 0.01, "floor": 0.49, "floor_error": 0.02}
    time = {"ms": ms, "spread": 0.1 * ms, "engine": "onnxruntime"}
    return {
        "family": family, "sample": sample, "n_test": 5000, "seed": 0, "repeats": 3, "parameters": 744968,
        "training_s": 366, "scores": {"auc_low": score, "auc_high": score, "fpd": score | {"value": 0.0037}},
        "worst": {"name": "width_y_0"} | score,
        "times": {"1": time, "1000": time | {"ms": ms / 10, "engine": "pytorch"}},
        "geant4_ms": 400.0, "geant4_source": "measured", "machine": "CPU", "caloforge": "0", "date": "2026-01-02",
    } | changes  # fmt: skip


MODELS = {
    "calogan-eplus": record("flow_matching", 0.515, 10.0),
    "calogan-eplus-vae": record("vae", 0.509, 0.8),
    "calogan-eplus-gan": record("gan", 0.526, 0.5, training_s=None),
    "eplus-other": record("vae", 0.52, 0.9),
    "jets-gan": record("gan", 0.7, 3.0, "jets-test", geant4_ms=None, geant4_source="not installed"),
    "par04-eminus-vae": record("vae", 0.6, 4.0, "par04-eminus-test"),
}


def test_runs_are_merged_model_by_model(front: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    assert front.load(path) == {}
    front.merge(path, "b", record("vae", 0.6, 1.0))
    front.merge(path, "a", record("gan", 0.7, 2.0))
    models = front.merge(path, "b", record("vae", 0.55, 1.0))
    assert front.load(path) == models
    assert list(models) == ["a", "b"]
    assert models["b"]["scores"]["auc_low"]["value"] == 0.55
    assert models["a"]["scores"]["auc_low"]["value"] == 0.7
    assert [p.name for p in tmp_path.iterdir()] == ["front.json"]


def test_models_are_sorted_by_data_set_and_score(front: ModuleType) -> None:
    found = front.by_dataset(MODELS | {"new": record("vae", 0.6, 1.0, "unknown-test")})
    assert list(found) == ["calogan-eplus", "par04-eminus", "jets", "unknown"]
    assert list(found["calogan-eplus"]) == ["calogan-eplus-vae", "calogan-eplus", "eplus-other", "calogan-eplus-gan"]


def test_the_table_says_what_was_measured(front: ModuleType) -> None:
    text = front.section(MODELS)
    row = next(line for line in text.splitlines() if line.startswith("| calogan-eplus-vae |"))
    auc = "0.509 ± 0.010 (0.490 ± 0.020)"
    assert row == (
        f"| calogan-eplus-vae | vae | 744,968 | 6.1 | {auc} | {auc} | 3.7 ± 10.0 (490.0 ± 20.0) | width_y_0 {auc} | "
        "0.800 (ORT) | 0.080 (torch) | 5,000 |"
    )
    tables = {part.splitlines()[0]: part.splitlines() for part in text.split("\n### ")[1:]}
    rows = {title: [line for line in lines if line.startswith("|")] for title, lines in tables.items()}
    assert len({line.count("|") for lines in rows.values() for line in lines}) == 1
    assert [lines[0].split(" | ")[-1] for lines in rows.values()] == ["× Geant4 |", "× Geant4 |", "× Pythia |"]
    assert "| 744,968 | – |" in text  # training time unknown
    assert "Geant4's time measured (400 ms)" in text
    assert "Pythia's time not installed (unknown)" in text


def test_missed_bars_are_bold(front: ModuleType) -> None:
    student, teacher = record("one_step", 0.5, 0.1), record("copula", 0.551, 9.0)
    student["scores"]["auc_high"] = student["scores"]["auc_low"] | {"value": 0.531}
    models = {"calogan-eplus-one-step": student, "calogan-eplus-copula": teacher}
    cells = front.section(MODELS | models).splitlines()[-1].split(" | ")
    assert cells[:3] == ["| calogan-eplus-one-step", "**0.551 ± 0.010** (0.55)", "0.500 ± 0.010 (0.60)"]
    assert cells[3] == "**0.031 ± 0.014** (0.03)"
    assert cells[5] == "0.100 (0.15)"
    assert "to be reached" not in front.section(MODELS), "neither student nor teacher"


def test_published_rows_are_marked(front: ModuleType) -> None:
    text = front.section(MODELS)
    assert "| *CaloFlow student* (published, 2110.11377) |" in text
    assert "| 0.785 ± 0.007 |" in text
    dream = next(line for line in text.splitlines() if line.startswith("| *CaloDREAM*"))
    assert "(published, other showers, 2410.21611)" in dream
    assert "| 28.4M |" in dream
    assert "| 0.531 ± 0.003 (0.500) | 0.521 ± 0.002 (0.499) | 24.6 ± 1.0 (10.8) |" in dream
    assert "| 16,900 | 5,050 (100) |" in dream
    assert not front.published("lhcb-eminus")
    assert all(row.ms for row in front.published("ds1-gamma"))


def test_the_front_is_what_nobody_beats_in_both(front: ModuleType) -> None:
    own = front.by_dataset(MODELS)["calogan-eplus"]
    assert front.front_plot.front(own) == ["calogan-eplus-gan", "calogan-eplus-vae"]
    assert front.front_plot.front({"a": MODELS["calogan-eplus"]}) == ["a"]
    better = own | {"best": record("vae", 0.5, 0.1)}
    assert front.front_plot.front(better) == ["best"]


def test_models_are_called_by_their_family(front: ModuleType) -> None:
    own = front.by_dataset(MODELS)["calogan-eplus"]
    assert front.front_plot.names("calogan-eplus", own) == ["vae", "flow matching", "eplus other", "GAN"]


def test_the_plot_has_a_panel_for_each_calorimeter(front: ModuleType, tmp_path: Path) -> None:
    figure = front.front_plot.draw(front.by_dataset(MODELS))
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left")[:7] for axes in panels] == ["CaloGAN", "Par04, "]
    for axes, own in zip(panels, ("vae", "VAE"), strict=True):
        texts = {t.get_text() for t in axes.texts if isinstance(t, Annotation)}
        assert {own, "Geant4, 400 ms", "CaloINN"} <= texts
    front.front_plot.save(figure, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_drawing_needs_no_measurement(front: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert front.main(["--draw", "--output", str(tmp_path)]) == 1  # nothing to draw
        (tmp_path / "front.json").write_text(json.dumps({"models": {"calogan-eplus-vae": MODELS["calogan-eplus-vae"]}}))
        assert front.main(["--draw", "--output", str(tmp_path)]) == 0
        assert "| calogan-eplus-vae |" in (tmp_path / "RESULTS.md").read_text()
        assert (tmp_path / "front.png").exists()
        assert front.main(["no-model", "--output", str(tmp_path)]) == 1  # and the others are still drawn
    finally:
        torch.set_num_threads(threads)
        front.results.RESULTS = BENCHMARKS / "RESULTS.md"
    error = capsys.readouterr().err
    assert error.startswith("no-model: left out, FileNotFoundError: got no-model")
    assert error.count("\n") == 1
    assert "calogan-eplus-vae" in front.load(tmp_path / "front.json")


def test_parameters_of_generation_leave_out_the_encoder(front: ModuleType, mixed: Geometry) -> None:
    showers = random_showers(mixed, 20)
    fast = FastSim.create(mixed, VAEConfig(n_latent=4, width=8, depth=1, layer_hidden=8), valid=showers.incident)
    fast.fit_transform(showers)
    n = front.n_used(fast, showers.incident[:2])
    used = [p for name, p in fast.generator.named_parameters() if not name.startswith("encoder")]
    assert n == sum(p.numel() for p in used)
    assert n < sum(p.numel() for p in fast.parameters())


def test_a_parameter_counts_once_and_its_device_not(front: ModuleType) -> None:
    layer, other = nn.Linear(3, 2), nn.Linear(5, 5)
    with front.Touched() as touched:
        layer(torch.zeros(1, 3, device=other.weight.device))
        layer(torch.zeros(1, 3))
    assert sum(p.numel() for p in touched.parameters.values()) == 8


def test_a_model_that_onnx_cannot_take_is_timed_without(
    front: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def benchmark(models: Any, incident: Any, *, batches: Any, engines: Any = ("pytorch", "onnxruntime")) -> list[Any]:
        if "onnxruntime" in engines:
            raise RuntimeError("no such operator\nand more")
        return [Row("m", e, 1, 1, 2.0, 0.1, 0.0, 0.0, 400.0, "measured", 1.0) for e in engines]

    monkeypatch.setattr(front, "benchmark", benchmark)
    rows = front.timed(Path("m"), None, ("pytorch", "onnxruntime"))
    assert capsys.readouterr().err == "m: timed without ONNX Runtime, RuntimeError: no such operator\n"
    faster = Row("m", "onnxruntime", 1, 1, 1.5, 0.2, 0.0, 0.0, 400.0, "measured", 1.0)
    assert front.fastest(rows, 1)["engine"] == "pytorch"
    assert front.fastest([*rows, faster], 1) == {"ms": 1.5, "spread": 0.2, "engine": "onnxruntime"}
