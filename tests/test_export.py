import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from caloforge import export
from caloforge.fastsim import FastSim
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import CONDITIONS
from caloforge.simulate.gun import Gun, log_uniform, uniform
from caloforge.testing import small_geometry, small_showers

onnx = pytest.importorskip("onnx", reason="extra absent: pip install 'caloforge[onnx]'")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

GUN = Gun(11, log_uniform(1e3, 1e5), theta=uniform(0.0, 0.3), x=uniform(-5.0, 5.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[FastSim, Path, export.Parity]:
    """A model with three conditions, its graph, and the parity found when it was written."""
    fast = FastSim.create(small_geometry(), VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=1),
                          valid=GUN)  # fmt: skip
    fast.fit_transform(small_showers())
    with torch.no_grad():
        for k, parameter in enumerate(fast.generator.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k)))
    path = tmp_path_factory.mktemp("export") / "a.onnx"
    return fast, path, export(fast, path)


def test_the_graph_equals_pytorch_by_number(exported: tuple[FastSim, Path, export.Parity]) -> None:
    fast, path, parity = exported
    assert parity.n == 256
    assert parity.layer_energy <= export.TOLERANCE
    assert parity.voxel <= 1e-4
    assert parity.flips <= 1e-3
    again = export.compare(fast, str(path), n=50, seed=9)
    assert again.layer_energy <= export.TOLERANCE


@pytest.mark.parametrize("n", [1, 7])
def test_the_batch_is_dynamic(exported: tuple[FastSim, Path, export.Parity], n: int) -> None:
    fast, path, _ = exported
    incident = GUN.sample(n, 3)
    particles = [getattr(incident, name) for name in CONDITIONS]
    theirs = export.run(export.session(str(path)), fast.noise(n, [5, 0]).numpy(), particles)
    assert theirs.shape == (n, fast.geometry.n_voxels)
    assert theirs.dtype == np.float32
    ours = fast.simulate(incident, seed=5).energy
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4 * ours.max())


def test_the_graph_is_named_and_of_the_stated_version(exported: tuple[FastSim, Path, export.Parity]) -> None:
    fast, path, _ = exported
    graph = onnx.load(path)
    onnx.checker.check_model(graph)
    assert graph.ir_version == export.IR_VERSION
    assert {o.domain: o.version for o in graph.opset_import}[""] == export.OPSET
    assert tuple(v.name for v in graph.graph.input) == ("noise", "energy", "theta", "phi", "x", "y")
    assert [v.name for v in graph.graph.output] == [export.OUTPUT]
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert value.type.tensor_type.shape.dim[0].dim_param == "N"
    shape = graph.graph.input[0].type.tensor_type.shape
    assert shape.dim[1].dim_value == fast.n_noise


def test_the_card_travels_in_the_graph(exported: tuple[FastSim, Path, export.Parity]) -> None:
    fast, path, _ = exported
    metadata = export.read_metadata(path)
    assert metadata["geometry_digest"] == fast.geometry.digest()
    card = json.loads(metadata["caloforge_card"])
    assert card == json.loads(json.dumps(fast.card.to_dict()))
    assert card["valid"]["theta"] == [0.0, 0.3]


def test_an_existing_file_and_a_missing_folder_are_refused_before_any_work(
    exported: tuple[FastSim, Path, export.Parity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_graph", None)  # calling it would fail
    (tmp_path / "a.onnx").write_text("mine")
    with pytest.raises(FileExistsError, match=r"got output .*a.onnx, which exists"):
        export(exported[0], tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="expected an existing folder"):
        export(exported[0], tmp_path / "no" / "a.onnx")


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_nothing_is_written_when_graph_and_pytorch_differ(
    exported: tuple[FastSim, Path, export.Parity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    fast, path, parity = exported
    monkeypatch.setattr(export, "_graph", lambda fast: onnx.load(path))
    monkeypatch.setattr(export, "compare", lambda *_, **__: replace(parity, layer_energy=difference))
    with pytest.raises(ValueError, match=r"got an ONNX graph whose layer energies differ from PyTorch .* nothing was"):
        export(fast, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_another_model_is_found_out_by_the_comparison(exported: tuple[FastSim, Path, export.Parity]) -> None:
    fast, path, _ = exported
    other = FastSim.create(fast.geometry, VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=1),
                           valid=GUN, seed=1)  # fmt: skip
    assert export.compare(other, str(path), n=20).layer_energy > export.TOLERANCE


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("nothing")
    for path in (tmp_path / "a.onnx", tmp_path / "b.onnx"):
        with pytest.raises((ValueError, FileNotFoundError), match=r"got .*\.onnx, expected") as caught:
            export.read_metadata(path)
        assert "\n" not in str(caught.value)
