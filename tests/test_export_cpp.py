"""The C++ of a student against PyTorch, for every way in which students differ."""

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from caloforge import benchmark, export
from caloforge.export import cpp
from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import ModelConfig
from caloforge.models.one_step import OneStepConfig
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.showers import Incident
from caloforge.testing import small_geometry

try:
    cpp.compiler()
except FileNotFoundError as absent:
    pytest.skip(f"no C++ compiler: {absent}", allow_module_level=True)

PLANAR = Geometry("planar", (Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 8)),
                             Layer("cartesian", regular(-30, 30, 3), regular(-40, 40, 5))))  # fmt: skip
ALIKE = Geometry("alike", (PLANAR.layers[0],) * 2)
ONE = Geometry("one", PLANAR.layers[:1])
RINGS = Geometry("rings", tuple(Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 10.0, 20.0, 50.0)) for _ in range(3)))
PARTICLES = Incident(np.geomspace(1e3, 1e5, 40), theta=np.linspace(0, 0.3, 40), phi=np.linspace(-3, 3, 40),
                     x=np.linspace(-5, 5, 40), pdg=np.where(np.arange(40) % 2, 22, 11))  # fmt: skip
ELECTRONS = Incident(PARTICLES.energy, pdg=11)
SMALL: dict[str, Any] = {"width": 24, "layer_width": 70, "n_slices": 16}
STUDENTS = {
    "as simple as possible": (PLANAR, {}),
    "one layer, a diagonal R": (ONE, {"correlate": False, "layer_activation": "tanh"}),
    "moments": (PLANAR, {"per_layer": 7, "layers": "rest", "layer_activation": "silu"}),
    "moments about the centre": (ONE, {"per_layer": 7, "centred": True, "recount": True}),
    "moments of equal layers": (ALIKE, {"per_layer": 7, "layers": "ratios"}),
    "moments known, not imposed": (PLANAR, {"per_layer": 7, "impose": False}),
    "brightest": (PLANAR, {"per_layer": 5, "brightest": True, "layers": "logs"}),
    "brightest and moments": (PLANAR, {"per_layer": 8, "brightest": True, "layers": "logs"}),
    "brightest and moments, empty layers": (PLANAR, {"per_layer": 8, "brightest": True, "twice": False}),
    "rings": (RINGS, {"per_layer": 5, "brightest": True, "radial": True, "twice": False, "rings": True, "recount": True,
                      "layers": "rest"}),
}  # fmt: skip


def model(geometry: Geometry, config: ModelConfig, particles: Incident = ELECTRONS) -> FastSim:
    """An untrained model, with weights that are not zero."""
    fast = FastSim.create(
        geometry, config, valid=particles, preprocess=PreprocessConfig(voxels="linear", scale_mev=1.0, depth_mm=50.0)
    )
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in fast.generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
        if fast.generator.root.dim() == 2:
            fast.generator.root += 0.1 * torch.randn(fast.generator.root.shape, generator=random)
    return fast


@pytest.mark.parametrize("name", STUDENTS)
def test_the_code_equals_pytorch_by_number(name: str) -> None:
    geometry, changes = STUDENTS[name]
    fast = model(geometry, OneStepConfig(**(SMALL | changes)))
    with cpp.Compiled(fast) as compiled:
        for n in (5, 100):  # one by one; 16 at a time and the rest
            parity = export.compare_with(fast, compiled, n=n)
            assert parity.layer_energy <= 2e-5
            assert parity.voxel <= 1e-4
            assert parity.flips <= 1e-3


def test_weights_that_fit_are_read_as_float16() -> None:
    fast = model(PLANAR, OneStepConfig(**(SMALL | {"per_layer": 7})))
    whole = len(cpp.pack(fast))
    with torch.no_grad():
        for value in (*fast.generator.parameters(), fast.generator.root):
            value.copy_(value.half().float())
    assert len(cpp.pack(fast)) < whole
    with cpp.Compiled(fast) as compiled:
        assert export.compare_with(fast, compiled, n=37).layer_energy <= 2e-5


def philox(counter: np.ndarray, seed: int) -> np.ndarray:
    """Words (N, 4) of counters (N, 4): Philox 4x32-10 (Salmon et al., SC'11)."""
    c = counter.astype(np.uint64)
    key = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint64)
    for _ in range(10):
        a, b = c[:, 0] * np.uint64(0xD2511F53), c[:, 2] * np.uint64(0xCD9E8D57)
        high, low = (np.stack([b, a]) >> np.uint64(32)), np.stack([b, a]) & np.uint64(0xFFFFFFFF)
        c = np.stack([high[0] ^ c[:, 1] ^ key[0], low[0], high[1] ^ c[:, 3] ^ key[1], low[1]], axis=1)
        key = (key + np.array([0x9E3779B9, 0xBB67AE85], np.uint64)) & np.uint64(0xFFFFFFFF)
    return c


def test_the_noise_is_philox_and_normal() -> None:
    known = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # the published answer for zeros
    assert philox(np.zeros((1, 4)), 0)[0].tolist() == known
    fast = model(PLANAR, OneStepConfig(**SMALL))
    seed, first = 7 << 40 | 3, 2**32 - 3  # both words of both count
    with cpp.Compiled(fast) as compiled:
        ours = compiled.noise(20, seed, first)
        many = compiled.noise(4000, 1)
        particles = [np.full(20, 1e4), *np.zeros((4, 20))]
        np.testing.assert_allclose(compiled.seeded(particles, seed, first), compiled(ours, particles), rtol=1e-4)
        tail = compiled.seeded([v[:2] for v in particles], seed, first + 18)  # one by one instead of 16 at a time
        np.testing.assert_allclose(tail, compiled.seeded(particles, seed, first)[18:], rtol=1e-3, atol=1e-3)
    for k in (0, 19):
        quads = np.arange(-(-fast.n_noise // 4))
        shower = first + k
        words = philox(np.stack([quads, *(0 * quads + v for v in (shower & 0xFFFFFFFF, shower >> 32, 0))], 1), seed)
        radius = np.sqrt(-2 * np.log((words[:, ::2] >> np.uint64(8)) * 2.0**-24 + 2.0**-25))
        angle = ((words[:, 1::2] & np.uint64(0x3FFFFFFF)) >> np.uint64(6)) * 2.0**-24 + 2.0**-25 - 0.5
        angle = np.pi / 2 * (angle + (words[:, 1::2] >> np.uint64(30)))
        expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1)[: fast.n_noise]
        np.testing.assert_allclose(ours[k], expected, rtol=1e-5, atol=1e-5)
    assert scipy.stats.kstest(many.ravel(), "norm").pvalue > 1e-3
    off = np.corrcoef(many.T) - np.eye(fast.n_noise)
    assert np.abs(off).max() < 5 / np.sqrt(len(many))


def test_directions_places_and_kinds_count() -> None:
    fast = model(PLANAR, OneStepConfig(**SMALL), PARTICLES)
    assert fast.inputs[-1] == "pdg"
    z = fast.noise(40, 3)
    arrays = [getattr(PARTICLES, name) for name in fast.inputs]
    with cpp.Compiled(fast) as compiled:
        theirs = compiled(z.numpy(), arrays)
        other = compiled(z.numpy(), [*arrays[:-1], arrays[-1][::-1]])
    ours = fast(z, *(torch.tensor(v, dtype=torch.float32) for v in arrays)).detach().numpy()
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-5 * ours.max())
    assert not np.allclose(theirs, other)


def test_the_example_makes_the_showers(tmp_path: Path) -> None:
    fast = model(PLANAR, OneStepConfig(**SMALL))
    folder = tmp_path / "code"
    cpp.export_cpp(fast, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "example.cpp", "one_step.hpp", "weights.bin"]
    strict = ("-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized")  # the last in GCC's own headers
    command = [cpp.compiler(), *cpp.FLAGS, *strict, "example.cpp", "-o", "example"]
    subprocess.run(command, cwd=folder, check=True)
    said = subprocess.run(["./example"], cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(said) == 10
    assert said[0].startswith("shower 0: ")
    assert "of 47 voxels" in said[0]
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:1000])
    broken = subprocess.run(["./example"], cwd=folder, capture_output=True, text=True)
    assert broken.returncode != 0
    assert "got a damaged file of weights" in broken.stderr
    with pytest.raises(FileExistsError, match="give --force"):
        cpp.export_cpp(fast, folder)
    cpp.export_cpp(fast, folder, force=True)  # only its own files are replaced
    assert (folder / "example").exists()


def test_what_cannot_be_compiled_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = FastSim.create(small_geometry(), VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=1),
                         valid=ELECTRONS)  # fmt: skip
    with pytest.raises(ValueError, match=r"got a model of family vae for C\+\+, expected a student"):
        cpp.export_cpp(vae, tmp_path / "code")
    fast = model(PLANAR, OneStepConfig(**SMALL))
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="a file, expected a folder"):
        cpp.export_cpp(fast, tmp_path / "file", force=True)
    monkeypatch.setattr(cpp, "TOLERANCE", 0.0)
    with pytest.raises(ValueError, match="nothing was written"):
        cpp.export_cpp(fast, tmp_path / "code")
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(FileNotFoundError, match=r"got no C\+\+ compiler"):
        cpp.export_cpp(fast, tmp_path / "code")
    assert not benchmark._compiles(fast.card)
    assert not (tmp_path / "code").exists()


def test_benchmark_times_what_can_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model(PLANAR, OneStepConfig(**SMALL)).save(tmp_path / "student")
    rows = benchmark([tmp_path / "student"], ELECTRONS, engines=("c++",), n_geant4=0, seconds=0.02)
    assert [(r.engine, r.batch) for r in rows] == [("c++", 1), ("c++", 1000)]
    vae = FastSim.create(small_geometry(), VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=1),
                         valid=ELECTRONS)  # fmt: skip
    vae.save(tmp_path / "vae")
    assert benchmark([tmp_path / "vae"], ELECTRONS, engines=("c++",), n_geant4=0, seconds=0.02) == []
    monkeypatch.setenv("CXX", "false")  # a compiler that fails
    with pytest.warns(UserWarning, match=r"not timed as C\+\+: got an error of false \(no message\)"):
        assert benchmark([tmp_path / "student"], ELECTRONS, engines=("c++",), n_geant4=0, seconds=0.02) == []
