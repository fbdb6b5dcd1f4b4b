import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.config import Recipe, dump_recipe, load_recipe
from caloforge.models import MODELS
from caloforge.models.flow_matching import FlowMatchingConfig
from caloforge.models.vae import VAEConfig
from caloforge.preprocess import PreprocessConfig
from caloforge.train import TrainConfig

REPOSITORY = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml")) + sorted(
    (REPOSITORY / "src").glob("caloforge/data/recipes/*.toml")
)


def recipe(text: str, tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(text)
    return load_recipe(tmp_path / "recipe.toml")


def test_an_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    assert recipe("", tmp_path) == Recipe()


@pytest.mark.parametrize("family", MODELS)
def test_a_dump_is_complete_and_round_trips(family: str, tmp_path: Path) -> None:
    kind, _ = MODELS[family]
    original = Recipe(kind(), PreprocessConfig(threshold_mev=1e-5), TrainConfig(lr=3e-4, mirror=True, keep="last"))
    text = dump_recipe(original)
    assert recipe(text, tmp_path) == original
    data = tomllib.loads(text)
    assert set(data["model"]) == {"family"} | {f.name for f in dataclasses.fields(kind)}
    assert set(data["train"]) == {f.name for f in dataclasses.fields(TrainConfig)}


@given(st.floats(1e-12, 1e3), st.floats(0, 0.99, exclude_max=True), st.integers(1, 10**9), st.booleans())
def test_numbers_survive_the_dump(lr: float, ema: float, steps: int, bf16: bool) -> None:
    original = Recipe(train=TrainConfig(lr=lr, ema=ema, steps=steps, bf16=bf16))
    assert Recipe.from_dict(tomllib.loads(dump_recipe(original))) == original


def test_a_family_chooses_the_settings(tmp_path: Path) -> None:
    made = recipe('[model]\nfamily = "vae"\nn_latent = 5\n[train]\nsteps = 3\nlr = 1\n', tmp_path)
    assert made.model == VAEConfig(n_latent=5)
    assert made.train == TrainConfig(steps=3, lr=1.0)
    assert isinstance(made.train.lr, float)  # an integer is a number
    assert isinstance(Recipe().model, FlowMatchingConfig)


WRONG: dict[str, tuple[str, str]] = {
    "unknown section": ("[modle]\n", r"got unknown key 'modle' in .*, expected only model, preprocess, train; correct"),
    "unknown key": ("[train]\nlearning_rate = 1", r"got unknown key 'learning_rate' in \[train\] of .* only steps"),
    "key of another family": ('[model]\nfamily = "vae"\nn_steps = 3', r"unknown key 'n_steps' in \[model\].*n_latent"),
    "unknown family": ('[model]\nfamily = "magic"', r"got model\.family = 'magic' in .* one of flow_matching, vae"),
    "text for a number": ('[train]\nsteps = "many"', r"got 'many' for steps in \[train\] of .*, expected int; correct"),
    "real for an integer": ("[train]\nsteps = 1.5", r"got 1\.5 for steps in \[train\].*expected int"),
    "truth for a number": ("[train]\nlr = true", r"got True for lr in \[train\].*expected float"),
    "number for a truth": ("[train]\nbf16 = 1", r"got 1 for bf16 in \[train\].*expected bool"),
    "unknown choice": ('[model]\nsolver = "rk5"', r"got 'rk5' for solver in \[model\].*one of euler, midpoint"),
    "impossible value": ("[train]\nlr = -1.0", r"got TrainConfig.*expected .*lr"),
    "no section": ("train = 3", r"got train = 3 in .*, expected a section \[train\]"),
    "no TOML": ("[train\n", r"expected TOML \(.*correct the file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_named_in_one_sentence(case: str, tmp_path: Path) -> None:
    text, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        recipe(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got recipe .*no\.toml, expected a TOML file"):
        load_recipe(tmp_path / "no.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_the_repository_is_valid_and_says_what_it_is(path: Path) -> None:
    made: Any = load_recipe(path)
    assert isinstance(made, Recipe)
    assert path.read_text().startswith("#"), "the first comment says what it is, its cost and the expected numbers"


@pytest.mark.parametrize("make", [
    lambda: PreprocessConfig(impose="momnets"), lambda: TrainConfig(schedule="linear"),
    lambda: FlowMatchingConfig(solver="euler2"),
])  # fmt: skip
def test_a_choice_that_is_not_there_is_refused_in_python_too(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"got '\w+' for \w+, expected one of .*; choose one"):
        make()
