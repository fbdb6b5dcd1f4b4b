import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caloforge import benchmark
from caloforge.fastsim import FastSim
from caloforge.models.vae import VAEConfig
from caloforge.showers import Incident
from caloforge.testing import small_geometry, small_showers

INCIDENT = Incident(np.linspace(1e3, 1e5, 40), pdg=11)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings in the process of the test: starting one takes seconds."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    monkeypatch.setattr(benchmark, "_in_process", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(benchmark, "_pin", lambda: None)
    monkeypatch.setattr(benchmark, "BATCHES", (1, 10))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    if affinity:
        os.sched_setaffinity(0, affinity)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    showers = small_showers()
    fast = FastSim.create(small_geometry(), VAEConfig(n_latent=2, width=8, depth=1, layer_hidden=8, layer_transforms=1),
                          valid=INCIDENT)  # fmt: skip
    fast.fit_transform(showers)
    fast.save(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_one_row_per_model_engine_and_batch(folder: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    rows = benchmark([folder, folder], INCIDENT, engines=("pytorch",), n_geant4=0, seconds=0.02,
                     progress=lambda *step: seen.append(step))  # fmt: skip
    assert [r.batch for r in rows] == [1, 10, 1, 10]
    assert {(r.model, r.engine, r.threads) for r in rows} == {("tiny", "pytorch", 1)}
    for row in rows:
        assert 0 < row.ms_per_shower < 1e3
        assert row.ms_spread >= 0
        assert row.load_s > 0
        assert row.peak_mb > 50  # MB, of a process that holds PyTorch
        assert row.geant4_source == "unknown"  # somebody's own detector
        assert np.isnan([row.geant4_ms_per_shower, row.speedup]).all()
    assert seen[0][:2] == (0, 3)
    assert seen[-1][:2] == (3, 3)


def test_the_onnx_engine_gives_the_same_showers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines are called with the same random generator: so they make the same noise, and the same showers."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="extra absent: pip install 'caloforge[onnx]'")
    showers = [benchmark._loaded(str(folder), engine)[0](INCIDENT, np.random.default_rng(2))
               for engine in ("pytorch", "onnxruntime")]  # fmt: skip
    assert showers[0].shape == (40, 22)
    np.testing.assert_allclose(showers[1], showers[0], rtol=1e-3, atol=1e-4 * showers[0].max())


def test_geant4_is_measured_where_it_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Incident] = []

    def time_geant4(detector: str, incident: Incident) -> float:
        asked.append(incident)
        return 100.0

    from caloforge.simulate import geant4

    monkeypatch.setattr(geant4, "find_data", lambda: folder)
    monkeypatch.setattr(benchmark, "_time_geant4", time_geant4)
    assert benchmark._geant4_cost("calogan", INCIDENT, 5) == (100.0, "measured")
    np.testing.assert_allclose(asked[0].energy, np.linspace(1e3, 1e5, 40)[[0, 10, 20, 29, 39]])  # all energies
    assert benchmark._geant4_cost("somebody's", INCIDENT, 5)[1] == "unknown"
    recorded = benchmark.RECORDED_MS_PER_GEV["calogan"] * INCIDENT.energy.mean() / 1e3
    assert benchmark._geant4_cost("calogan", INCIDENT, 0) == (pytest.approx(recorded), "recorded")
    assert benchmark._geant4_cost("calogan", Incident(INCIDENT.energy, pdg=211), 0)[1] == "unknown"
    assert benchmark._geant4_cost("jets", INCIDENT, 0)[1] == "not asked for"


def test_the_file_holds_machine_and_rows(folder: Path, tmp_path: Path) -> None:
    rows = benchmark([folder], INCIDENT, engines=("pytorch",), n_geant4=0, seconds=0.02)
    benchmark.write_json(rows, tmp_path / "benchmark.json")
    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert data["machine"]["processor"]
    assert [set(row) for row in data["rows"]] == [{f.name for f in fields(benchmark.Row)}] * 2
    issued = {"model", "engine", "batch", "threads", "ms_per_shower", "geant4_ms_per_shower", "speedup"}
    assert issued < set(data["rows"][0])


def test_repeated_calls_are_timed_one_by_one() -> None:
    batches: list[int] = []

    def call(incident: Incident, rng: np.random.Generator) -> Any:
        batches.append(len(incident))

    times = benchmark._repeat(call, INCIDENT, 7, seconds=0.0)
    assert len(times) == 3
    assert set(batches) == {7}


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a model folder"):
        benchmark([tmp_path], INCIDENT, n_geant4=0)


def test_batches_are_those_asked_for(folder: Path) -> None:
    rows = benchmark([folder], INCIDENT, engines=("pytorch",), batches=(1, 3, 7), n_geant4=0, seconds=0.02)
    assert [r.batch for r in rows] == [1, 3, 7]
    with pytest.raises(ValueError, match=r"got batches \(0,\), expected"):
        benchmark([folder], INCIDENT, batches=(0,))
