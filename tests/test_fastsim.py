"""FastSim and its folder on disk. ``python tests/test_fastsim.py`` makes the golden model of format 2 again."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caloforge import io
from caloforge.fastsim import CHUNK, FastSim, read_card
from caloforge.geometry import Geometry, Layer
from caloforge.models.gan import GANConfig
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import CONDITIONS, PreprocessConfig
from caloforge.showers import Incident, Showers
from caloforge.simulate.gun import Gun, log_uniform, uniform
from caloforge.testing import SimulatorContract, small_geometry, small_showers
from caloforge.train import TrainConfig, fit

GOLDEN = {version: Path(__file__).parent / "golden" / f"model_v{version}" for version in (1, 2)}
SHOWERS = small_showers()
CONFIG = VAEConfig(n_latent=3, width=16, depth=1, layer_hidden=8, layer_transforms=1)


def model(config: Any = CONFIG, seed: int = 0) -> FastSim:
    """A small model with random weights everywhere."""
    fast = FastSim.create(SHOWERS.geometry, config, valid=SHOWERS.incident, seed=seed)
    fast.fit_transform(SHOWERS)
    with torch.no_grad():
        for k, parameter in enumerate(fast.generator.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(k))
            parameter.add_(0.03 * noise)
    return fast


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    model().save(tmp_path / "model")
    return tmp_path / "model"


class TestFastSim(SimulatorContract):
    incident = SHOWERS.incident
    extendable = True

    def simulator(self) -> FastSim:
        return model()


def make_golden() -> None:
    """A small model of format 2 trained for 60 steps: two kinds of oblique particles, imposed moments, no helpers."""
    rng = np.random.default_rng(0)
    incident = Incident(
        np.exp(rng.uniform(np.log(1e3), np.log(1e5), 500)), theta=rng.uniform(0, 0.4, 500),
        phi=rng.uniform(-3, 3, 500), x=rng.uniform(-5, 5, 500), pdg=rng.choice([11, 22], 500),
    )  # fmt: skip
    showers = small_showers(n=500)
    showers = Showers(showers.geometry, incident, showers.energy)
    config = GANConfig(
        n_latent=2, width=8, depth=1, judge_width=8, layer_hidden=6, layer_transforms=1, layer_bins=4, layer_steps=60
    )
    preprocess = PreprocessConfig(threshold_mev=0.1, n_knots=7, n_nodes=2, impose="moments", depth_mm=50.0)
    fast = FastSim.create(showers.geometry, config, valid=incident, preprocess=preprocess)
    fit(fast, showers, TrainConfig(steps=60, batch=128, warmup=20, bf16=False, keep="separation", log_every=20))
    fast = fast.with_card(training={"made_by": "tests/test_fastsim.py"}, scores={"auc_low": 0.9})
    fast.save(GOLDEN[2], helpers=False)
    io.write(fast.simulate(incident[:16], seed=5), GOLDEN[2] / "showers.h5", force=True)


@pytest.mark.parametrize(("version", "family"), [(1, "flow_matching"), (2, "gan")])
def test_a_golden_model_is_read_and_gives_its_showers(version: int, family: str) -> None:
    golden = GOLDEN[version]
    stored = io.read(golden / "showers.h5")
    fast = FastSim.load(golden)
    assert json.loads((golden / "card.json").read_text())["format_version"] == version
    assert fast.card.family == family
    assert fast.card.preprocess["conditions"] == {1: "polar", 2: "direction"}[version]
    assert fast.card.scores == {"auc_low": 0.9}
    assert fast.card.valid["energy"] == pytest.approx((1e3, 1e5), rel=0.02)
    showers = fast.simulate(stored.incident, seed=5)
    fast.geometry.require_same(stored.geometry, "golden showers")
    np.testing.assert_allclose(showers.layer_energy, stored.layer_energy, rtol=1e-4)
    np.testing.assert_allclose(showers.energy, stored.energy, rtol=1e-4, atol=1e-4 * stored.energy.max())
    assert sum(path.stat().st_size for path in golden.iterdir()) < 100_000


def test_a_model_without_helpers_makes_the_same_showers(tmp_path: Path) -> None:
    config = GANConfig(n_latent=2, width=8, depth=1, judge_width=8, layer_hidden=6, layer_transforms=1)
    fast = model(config)
    fast.save(tmp_path / "whole")
    fast.save(tmp_path / "plain", helpers=False)
    whole, plain = (FastSim.load(tmp_path / name) for name in ("whole", "plain"))
    a, b = (f.simulate(SHOWERS.incident, seed=1).energy for f in (whole, plain))
    np.testing.assert_array_equal(a, b)
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("whole", "plain")]
    assert sizes[1] < sizes[0]


def test_save_and_load_are_equal_bit_for_bit(folder: Path) -> None:
    fast, again = model(), FastSim.load(folder)
    assert again.card == fast.card
    assert not again.training
    for name, value in fast.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    a, b = (f.simulate(SHOWERS.incident, seed=1).energy for f in (fast, again))
    np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]


def test_half_storage_keeps_showers_to_a_percent_and_statistics_exactly(tmp_path: Path) -> None:
    fast = model(VAEConfig(n_latent=3, width=64, depth=1, layer_hidden=8, layer_transforms=1))
    fast.save(tmp_path / "full")
    fast.save(tmp_path / "half", half=True)
    again = FastSim.load(tmp_path / "half")
    sizes = [(tmp_path / name / "weights.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.8 * sizes[1]
    for name, value in fast.transform.state_dict().items():
        assert torch.equal(value, again.transform.state_dict()[name]), name
    assert all(p.dtype in (torch.float32, torch.float64) for p in again.parameters())
    a, b = (f.simulate(SHOWERS.incident, seed=1) for f in (fast, again))
    np.testing.assert_allclose(b.total, a.total, rtol=0.02)
    assert np.mean((a.energy > 0) != (b.energy > 0)) < 0.01


def test_half_storage_needs_no_masks(tmp_path: Path) -> None:
    fast = model(VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=2, layer_passes=0))
    masks = {k: v for k, v in fast.state_dict().items() if k.endswith(".mask")}
    assert masks
    fast.save(tmp_path / "half", half=True)
    again = FastSim.load(tmp_path / "half").state_dict()
    assert all(torch.equal(mask, again[name]) for name, mask in masks.items())
    assert b".mask" not in (tmp_path / "half" / "weights.safetensors").read_bytes()


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    fast = model()
    state = torch.get_rng_state()
    first = fast.simulate(SHOWERS.incident, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    np.random.rand(5)  # noqa: NPY002
    fast.simulate(SHOWERS.incident, seed=2)
    np.testing.assert_array_equal(fast.simulate(SHOWERS.incident, seed=1).energy, first.energy)
    assert first.provenance["seed"] == 1
    weights = [model(seed=seed).generator.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert any(not torch.equal(v, weights[2][k]) for k, v in weights[0].items())


def test_a_stream_is_the_simulation_in_parts() -> None:
    fast, incident = model(), small_showers(n=CHUNK + 30).incident
    fast = fast.with_card(valid=fast.card.valid | {"energy": (1e3, 1e5)})
    parts = list(fast.stream(incident, seed=3))
    assert [len(part) for part in parts] == [CHUNK, 30]
    whole = fast.simulate(incident, seed=3)
    np.testing.assert_array_equal(np.concatenate([part.energy for part in parts]), whole.energy)
    assert not np.array_equal(whole.energy[:30], whole.energy[CHUNK:])


def test_a_gun_or_particles_set_the_valid_range() -> None:
    gun = Gun(22, log_uniform(1e3, 5e3), theta=uniform(0, 0.2))
    fast = FastSim.create(small_geometry(), CONFIG, valid=gun)
    assert fast.card.pdg == (22,)
    assert fast.card.valid["energy"] == (1e3, 5e3)
    assert fast.card.valid["theta"] == (0.0, 0.2)
    assert fast.encoder.n_conditions == 2
    energy = SHOWERS.incident.energy
    assert model().card.valid["energy"] == (energy.min(), energy.max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": 2e5}, r"got incident energy 200000 MeV, expected 1000\.\.100000 MeV.*choose particles in it"),
        ({"energy": 500.0}, r"got incident energy 500 MeV, expected"),
        ({"theta": 0.1}, r"got incident theta 0\.1 rad, expected 0\.\.0 rad"),
        ({"x": -3.0}, r"got incident x -3 mm, expected 0\.\.0 mm"),
        ({"pdg": 22}, r"got particles with PDG \[22\], expected \[11\]; use a model trained on them"),
    ],
)
def test_particles_outside_the_card_are_refused(change: dict[str, float], message: str) -> None:
    fast = model().with_card(valid=model().card.valid | {"energy": (1e3, 1e5)})
    good: dict[str, Any] = {"energy": np.full(3, 5e3), "pdg": 11}
    fast.check(Incident(**good))
    for ask in (fast.check, lambda incident: fast.simulate(incident, seed=0)):
        with pytest.raises(ValueError, match=message):
            ask(Incident(**(good | {k: np.array([good["energy"][0] if k == "energy" else 0, v, v]) if k != "pdg" else v
                                    for k, v in change.items()})))  # fmt: skip


def edit_card(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "weights.safetensors").write_bytes(content)


def other_geometry(card: dict[str, Any]) -> None:
    card["geometry"]["layers"][0]["second"][1] += 1.0


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a changed bit": (flip_a_bit, "got weights in .* that differ from their card, expected sha256"),
    "truncated weights": (lambda f: (f / "weights.safetensors").write_bytes(b"12345"), "differ from their card"),
    "no card": (lambda f: (f / "card.json").unlink(), r"expected a model folder with card\.json"),
    "no weights": (lambda f: (f / "weights.safetensors").unlink(), "expected a model folder with weights"),
    "no folder": (shutil.rmtree, "expected a model folder"),
    "a newer format": (
        lambda f: edit_card(f, lambda c: c.update(format_version=3)), "of format caloforge-model 3, .*update"),
    "another format": (lambda f: edit_card(f, lambda c: c.update(format="zip")), "of format zip"),
    "no format": (lambda f: (f / "card.json").write_text("[1]"), "expected a model card"),
    "no JSON": (lambda f: (f / "card.json").write_text("{"), "expected a model card"),
    "a missing entry": (lambda f: edit_card(f, lambda c: c.pop("valid")), "expected a model card"),
    "another geometry": (lambda f: edit_card(f, lambda c: other_geometry(c)), "geometry does not match its digest"),
    "an unknown family": (lambda f: edit_card(f, lambda c: c.update(family="magic")), "got model family 'magic'"),
    "another size": (lambda f: edit_card(f, lambda c: c["config"].update(width=8)), "expected settings that fit"),
    "an unknown setting": (lambda f: edit_card(f, lambda c: c["config"].update(q=8)), "expected settings that fit"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(folder: Path, case: str) -> None:
    break_it, message = BROKEN[case]
    break_it(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        FastSim.load(folder)
    assert "\n" not in str(caught.value)


def test_the_card_is_read_without_the_weights(folder: Path) -> None:
    flip_a_bit(folder)
    card, digest = read_card(folder)
    assert card.family == "vae"
    assert card.geometry.digest() == SHOWERS.geometry.digest()
    assert len(digest) == 64


def test_saving_again_replaces_the_model(folder: Path) -> None:
    other = model(seed=1).with_card(scores={"auc_low": 0.6})
    other.save(folder)
    assert FastSim.load(folder).card.scores == {"auc_low": 0.6}


def test_the_forward_pass_speaks_mev() -> None:
    fast = model()
    n = 20
    arguments = [torch.tensor(getattr(SHOWERS.incident, k)[:n], dtype=torch.float32) for k in CONDITIONS]
    with torch.no_grad():
        energy = fast(fast.noise(n, [1, 0]), *arguments)
    np.testing.assert_array_equal(energy, fast.simulate(SHOWERS.incident[:n], seed=1).energy)


def test_a_model_for_one_energy_takes_particles_of_that_energy_only() -> None:
    one = replace(SHOWERS, incident=Incident(np.full(len(SHOWERS), 54321.1), pdg=11))
    fast = FastSim.create(one.geometry, CONFIG, valid=one.incident)
    fast.fit_transform(one)
    assert np.isfinite(fast.simulate(one.incident, seed=0).energy).all()
    with pytest.raises(ValueError, match="got incident energy"):
        fast.check(SHOWERS.incident)


def test_a_detector_of_one_voxel_works() -> None:
    cell = Geometry("cell", (Layer("cartesian", (-1, 1), (-1, 1), (0, 1)),))
    showers = small_showers(cell)
    fast = FastSim.create(cell, CONFIG, valid=showers.incident)
    fit(fast, showers, TrainConfig(steps=3, batch=16, warmup=1, bf16=False))
    assert fast.simulate(showers.incident, seed=0).energy.shape == (64, 1)


if __name__ == "__main__":
    make_golden()
