import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from caloforge.cli import run
from caloforge.default import _depth, _threshold, choose
from caloforge.distill import distill, pairs_of, student_of
from caloforge.export import export
from caloforge.fastsim import FastSim
from caloforge.geometry import Geometry, Layer, regular
from caloforge.io import write
from caloforge.models.caloflow import CaloFlowConfig, CaloFlowStudentConfig
from caloforge.models.copula import CopulaConfig
from caloforge.models.one_step import OneStep, OneStepConfig, feature_order
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.showers import Incident, Showers
from caloforge.testing import small_showers
from caloforge.tilt import Moments
from caloforge.train import TrainConfig, fit

PLANAR = Geometry(
    "planar",
    (
        Layer("cartesian", regular(-30, 30, 4), regular(-40, 40, 8)),
        Layer("cartesian", regular(-30, 30, 3), regular(-40, 40, 5)),
    ),
)
SHOWERS = small_showers(PLANAR, n=300)
STUDENT = OneStepConfig(width=32, layer_width=16, pair_steps=100, n_slices=16)
TRAIN = TrainConfig(
    steps=120, batch=128, lr=5e-3, weight_decay=0.0, warmup=10, bf16=False, ema=0.9, keep="last", log_every=10,
    checkpoint_every=1000,
)  # fmt: skip


def teacher(impose: Any = "moments", model: Any = None, layers: Any = "fractions", brightest: bool = False) -> FastSim:
    fast = FastSim.create(
        PLANAR, model or CopulaConfig(8, 1, 4, 2), valid=SHOWERS.incident,
        preprocess=PreprocessConfig(impose=impose, layers=layers, brightest=brightest),
    )  # fmt: skip
    fit(fast, SHOWERS, TrainConfig(steps=20, batch=128, warmup=5, bf16=False, log_every=20, checkpoint_every=1000))
    return fast


@pytest.mark.parametrize("layers", ["fractions", "logs", "rest", "ratios"])
def test_the_student_has_its_teachers_tables(layers: Any) -> None:
    """With the teacher's layer features and margins its showers are the teacher's, before moments are imposed."""
    old = teacher("none", layers=layers)
    student = student_of(old, STUDENT).generator
    assert isinstance(student, OneStep)
    _, c = old.encode(SHOWERS)
    energy = torch.tensor(SHOWERS.incident.energy, dtype=torch.float32)
    pairs = pairs_of(old, c, energy, 300, seed=3)
    given = c[torch.randint(len(c), (300,), generator=torch.Generator().manual_seed(3))]
    torch.testing.assert_close(pairs.c, given)
    raw = old.transform.layers.read(pairs.g.double())  # type: ignore[union-attr,operator]
    with torch.no_grad():
        made = student._decoded(pairs.z.float(), pairs.c, pairs.g)
    layers = old.transform.fractions.layer_energies(raw[:, :2], student.sizes.incident_energy(pairs.c))  # type: ignore[union-attr,operator]
    torch.testing.assert_close((student.members.sums(made.e)).double(), layers, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layers", ["logs", "rest", "ratios"])
def test_rings_share_their_tables_and_run_in_onnx(layers: Any, tmp_path: Path) -> None:
    rings = [Layer("polar", regular(-np.pi, np.pi, 4), (0.0, 10.0, 20.0, 50.0), (k, k + 1)) for k in range(2)]
    geometry = Geometry("rings", tuple(rings))
    showers = small_showers(geometry, n=300)
    recipes = choose(showers, steps=20)
    assert recipes.student.model.rings  # type: ignore[union-attr]
    assert recipes.teacher.preprocess.brightest
    assert recipes.teacher.preprocess.correlate
    assert recipes.student.model.impose  # type: ignore[union-attr]
    assert not recipes.student.model.twice  # type: ignore[union-attr]
    deep = choose(small_showers(Geometry("deep", tuple(rings[:1]) * 9), n=300))
    assert not deep.teacher.preprocess.brightest
    assert not deep.student.model.impose  # type: ignore[union-attr]
    preprocess = replace(recipes.teacher.preprocess, layers=layers, brightest=layers == "rest")
    old = FastSim.create(geometry, CopulaConfig(8, 1, 4), valid=showers.incident, preprocess=preprocess)
    fit(old, showers, TrainConfig(steps=5, batch=128, warmup=1, bf16=False, mirror=True, log_every=5))
    student = distill(
        old, showers, replace(STUDENT, rings=True, recount=True, pair_steps=10), replace(TRAIN, steps=20), n_pairs=500
    )
    generator = student.generator
    assert isinstance(generator, OneStep)
    assert generator.rings.n == 6
    assert generator.rings.ring.reshape(2, 4, 3).tolist() == [[[0, 1, 2]] * 4, [[3, 4, 5]] * 4]
    assert student.simulate(showers.incident, seed=1).total.mean() == pytest.approx(showers.total.mean(), rel=0.3)
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export(student, tmp_path / "student.onnx")  # refused where the graph gives other showers
    with pytest.raises(ValueError, match=r"got rings for 'planar', expected a polar mesh that can be turned"):
        student_of(teacher(), replace(STUDENT, rings=True))


def test_moments_stand_in_the_students_order() -> None:
    moments = Moments(PLANAR).values(torch.tensor(SHOWERS.energy))  # by layers: x, y, ln xx, ln yy, xy
    order = feature_order(2, 7, True)
    assert order[:4].tolist() == [0, 1, 2, 3]
    by_kind = moments[:, order[4:] - 4]
    torch.testing.assert_close(by_kind[:, :2], moments[:, [0, 5]])
    torch.testing.assert_close(by_kind[:, 8:], moments[:, [4, 9]])


@pytest.mark.parametrize(("impose", "layers", "brightest"), [("moments", "rest", True), ("none", "logs", False)])
def test_a_student_may_keep_its_teachers_layer_flow(impose: Any, layers: Any, brightest: bool, tmp_path: Path) -> None:
    old = teacher(impose, layers=layers, brightest=brightest)
    config = replace(STUDENT, layers_by="flow", pair_steps=10)
    student = distill(old, SHOWERS, config, replace(TRAIN, steps=10), n_pairs=500)
    generator = student.generator
    assert isinstance(generator, OneStep)
    c = old.encode(SHOWERS)[1]
    pairs = pairs_of(old, c, torch.tensor(SHOWERS.incident.energy, dtype=torch.float32), 300, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(generator._layer_features(pairs.z.float(), pairs.c), pairs.g, rtol=0.01, atol=0.03)
        made = generator._decoded(pairs.z.float(), pairs.c, pairs.g)
    if brightest:
        asked = generator._layers_of(pairs.g, pairs.c)[0][:, -2:]
        several = generator.members.sums((made.e > 0).float()) > 1
        share = generator.members.largest(made.e) / generator.members.sums(made.e)
        assert ((share - asked).abs() < 1e-3)[several].float().mean() > 0.5
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export(student, tmp_path / "student.onnx")  # refused where the graph gives other showers


def test_one_tilt_may_be_enough_beside_the_brightest_voxels(tmp_path: Path) -> None:
    old = teacher(layers="rest", brightest=True)
    for twice in (True, False):
        student = distill(
            old, SHOWERS, replace(STUDENT, twice=twice, pair_steps=10), replace(TRAIN, steps=10), n_pairs=500
        )
        generator = student.generator
        assert isinstance(generator, OneStep)
        assert generator.newton_rest is not None
        assert (generator.newton is not None) is twice
        z, c = torch.randn(50, student.n_noise), old.encode(SHOWERS)[1][:50]
        with torch.no_grad():
            made = generator._decoded(z, c)
        assert [v[0] for v in made.tilts] == [v for v in (generator.newton, generator.newton_rest) if v is not None]
        assert made.tilts[-1][1].count_nonzero() < (made.m >= 0).sum()  # all filled voxels but the brightest ones
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    export(student, tmp_path / "student.onnx")  # refused where the graph gives other showers


def test_a_discriminator_trains_with_the_student_and_is_not_needed_afterwards(tmp_path: Path) -> None:
    config = replace(STUDENT, judge_width=8, pair_steps=10)
    student = distill(teacher(), SHOWERS, config, replace(TRAIN, steps=20), n_pairs=500, folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "loss/discriminator" not in rows[0]
    assert 0 < rows[1]["loss/discriminator"] < 5
    student.save(tmp_path / "student", helpers=False)
    again = FastSim.load(tmp_path / "student")
    some = SHOWERS.incident[:20]
    np.testing.assert_array_equal(again.simulate(some, seed=1).energy, student.simulate(some, seed=1).energy)


def test_regression_and_matching_bring_the_student_to_its_teacher(tmp_path: Path) -> None:
    longer = replace(STUDENT, pair_steps=200), replace(TRAIN, steps=220)
    student = distill(teacher(), SHOWERS, *longer, n_pairs=1000, folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    pairs = [row["validation/pairs"] for row in rows if row["step"] <= 200]
    assert pairs[-1] < 0.8 * pairs[0]
    layers = [row["validation/layers"] for row in rows if row["step"] <= 200]
    assert layers[-1] < 0.8 * layers[0]
    assert np.isfinite(rows[-1]["validation/showers"])
    assert student.card.family == "one_step"
    made = student.simulate(SHOWERS.incident, seed=1)
    assert made.total.mean() == pytest.approx(SHOWERS.total.mean(), rel=0.3)
    student.save(tmp_path / "model")
    again = FastSim.load(tmp_path / "model").simulate(SHOWERS.incident, seed=1)
    np.testing.assert_array_equal(again.energy, made.energy)


def test_a_caloflow_student_takes_over_what_its_teacher_has() -> None:
    sizes: dict[str, Any] = {"n_blocks": 2, "layer_hidden": 8, "layer_transforms": 1, "bins": 4}
    preprocess = PreprocessConfig(voxels="fractions")
    old = FastSim.create(PLANAR, CaloFlowConfig(width=8, **sizes), valid=SHOWERS.incident, preprocess=preprocess)
    config = TrainConfig(steps=5, batch=32, warmup=1, bf16=False, log_every=5)
    fit(old, SHOWERS, config)
    student = distill(old, SHOWERS, CaloFlowStudentConfig(width=8, teacher_width=8, **sizes), config)
    for name, value in old.generator.layers.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(student.generator.layers.state_dict()[name], value)  # type: ignore[union-attr]
    for name, value in old.transform.state_dict().items():
        torch.testing.assert_close(student.transform.state_dict()[name], value)
    assert np.isfinite(student.simulate(SHOWERS.incident, seed=0).energy).all()
    with pytest.raises(ValueError, match="got a teacher of family copula for a caloflow_student, expected caloflow"):
        distill(teacher(), SHOWERS, CaloFlowStudentConfig(), TRAIN)


def test_wrong_teachers_are_refused() -> None:
    voxelwise = FastSim.create(
        PLANAR, OneStepConfig(), valid=SHOWERS.incident, preprocess=PreprocessConfig(voxels="linear", scale_mev=1.0)
    )
    with pytest.raises(ValueError, match=r"got a teacher with preprocessing 'linear', expected 'gaussian' to distill"):
        student_of(voxelwise, STUDENT)
    small = VAEConfig(n_latent=3, width=8, depth=1, layer_hidden=8, layer_transforms=1, layer_bins=4)
    with pytest.raises(ValueError, match=r"got a teacher of family vae, whose noise is 58 numbers, expected 55"):
        student_of(teacher("none", small), STUDENT)
    with pytest.raises(ValueError, match="training showers"):
        distill(teacher(), small_showers(n=100), STUDENT, TRAIN)


def test_the_rules_of_the_default() -> None:
    recipes = choose(SHOWERS)
    assert recipes.teacher.preprocess.impose == "moments"
    assert recipes.teacher.train.mirror
    rings = small_showers()  # its first layer is polar and resolved; the second has 2 x 5 cells
    assert choose(rings).teacher.preprocess.impose == "none"
    assert not choose(rings).teacher.train.mirror
    assert choose(SHOWERS, steps=8).student.train.steps == 8
    response = np.stack([np.full(len(SHOWERS), 0.5), np.linspace(0.1, 0.9, len(SHOWERS))])  # of electrons and hadrons
    factors = response * (SHOWERS.incident.energy / np.maximum(SHOWERS.total, 1e-9))
    scaled = [replace(SHOWERS, energy=(SHOWERS.energy * f[:, None]).astype(np.float32)) for f in factors]
    chosen = [choose(showers).teacher.preprocess for showers in scaled]
    assert [(p.layers == "logs", p.brightest, p.correlate) for p in chosen] == [
        (False, False, True),
        (True, True, False),
    ]


def test_the_depth_is_that_of_the_centre_of_energy() -> None:
    rng = np.random.default_rng(0)
    n = 400
    theta, phi = rng.uniform(0, 0.3, n), rng.uniform(-np.pi, np.pi, n)
    x, y = rng.uniform(-5, 5, (2, n))
    mesh = Geometry("fine", (Layer("cartesian", regular(-60, 60, 60), regular(-60, 60, 60)),))
    centres = mesh.centres()[:, :2]
    at = np.stack([x + 80 * np.tan(theta) * np.cos(phi), y + 80 * np.tan(theta) * np.sin(phi)], axis=1)
    energy = np.exp(-0.5 * ((centres[None] - at[:, None]) ** 2).sum(2) / 3.0**2).astype(np.float32)
    incident = Incident(np.full(n, 1e4), theta=theta, phi=phi, x=x, y=y, pdg=np.full(n, 11))
    showers = Showers(mesh, incident, energy)
    assert _depth(showers) == pytest.approx(80, abs=1)
    assert _depth(SHOWERS) == 0
    assert 1e-4 <= _threshold(showers) <= 1e-3


def test_the_default_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caloforge.default.N_PAIRS", 2000)
    write(small_showers(PLANAR, n=800), tmp_path / "truth.h5")
    folder = tmp_path / "run"
    assert run(["train", str(tmp_path / "truth.h5"), "-o", str(folder), "--steps", "12", "--threads", "1"]) == 0
    for name in ("card.json", "recipe.toml", "teacher/card.json", "student/card.json", "report/report.html"):
        assert (folder / name).exists(), name
    fast = FastSim.load(folder)
    assert fast.card.family in ("copula", "one_step")
    assert 0 <= fast.card.scores["auc_high"]["value"] <= 1
    assert run(["train", str(tmp_path / "truth.h5"), "-o", str(folder), "--resume"]) == 2
    assert "got --resume without a recipe" in capsys.readouterr().err
    student = str(tmp_path / "student")
    command = ["distill", str(folder / "teacher"), str(tmp_path / "truth.h5"), "-o", student, "--steps", "8"]
    assert run([*command, "--pairs", "200", "--threads", "1"]) == 0
    assert FastSim.load(student).card.training["teacher"] == "teacher"
    assert run(["distill", student, str(tmp_path / "truth.h5"), "-o", str(tmp_path / "b")]) == 2
    assert "expected 'gaussian' to distill" in capsys.readouterr().err
