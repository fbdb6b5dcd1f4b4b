"""Run folders: what train and distill write, with recipe.toml, log.jsonl, last.pt and the model itself."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import hub, io
from .datasets import open_showers
from .progress import bar
from .showers import Incident, Showers

if TYPE_CHECKING:
    from .config import Recipe
    from .fastsim import FastSim
    from .simulate.gun import Gun


@dataclass(frozen=True)
class _Data:
    """Showers to train on, and where they come from."""

    name: str
    file: Path
    showers: Showers

    @staticmethod
    def open(name: str) -> "_Data":
        file = hub.sample(name)
        showers = open_showers(file)
        if not len(showers):
            raise ValueError(f"got {name} without showers, expected some to train on; give another file")
        return _Data(name, file, showers)

    def valid(self) -> "Gun | Incident":
        """The range a sample was made for, which is wider than what it happens to hold."""
        from .simulate.gun import Gun

        gun = self.showers.provenance.get("gun")
        return Gun.from_description(gun) if gun else _widened(self.showers)

    def origin(self, recipe: "Recipe", began: float) -> dict[str, Any]:
        """What the card of a trained model says about its training."""
        return {
            "recipe": recipe.to_dict(), "data": Path(self.name).name, "data_sha256": sha256(self.file),
            "n_showers": len(self.showers), "data_provenance": dict(self.showers.provenance),
            "seconds": round(time.monotonic() - began),
        }  # fmt: skip


def train(data: str, output: Path, *, recipe: Path | None = None, steps: int | None = None, seed: int | None = None,
          resume: bool = False, force: bool = False) -> "FastSim":  # fmt: skip
    """Train the recipe's model on the showers in ``data``, or without a recipe the default one (``default``);
    ``output`` becomes a run folder."""
    from .config import load_recipe
    from .fastsim import FastSim
    from .parallel import rank
    from .train import fit, require_trainable

    if recipe is None:
        if resume:
            raise ValueError("got --resume without a recipe, expected the run of one; give --recipe or train anew")
        return _train_default(data, output, steps=steps, seed=seed or 0, force=force)
    chosen = _changed(load_recipe(recipe), steps, seed)
    source = _Data.open(data)
    showers = source.showers
    fast = FastSim.create(
        showers.geometry, chosen.model, valid=source.valid(), preprocess=chosen.preprocess, seed=chosen.train.seed
    )
    require_trainable(fast, showers, chosen.train)
    began = time.monotonic()
    with (
        _run_folder(output, chosen, resume=resume, force=force, inputs=[source.file]) if rank() == 0 else nullcontext()
    ):
        with bar(f"train {fast.card.family}", "steps") as update:
            fit(fast, showers, chosen.train, folder=output, resume=resume, progress=update)
        fast = fast.with_card(training=source.origin(chosen, began))
        if rank() == 0:
            fast.save(output)
    return fast


def distill(teacher: str, data: str | None, output: Path, *, recipe: Path | None, n_pairs: int, steps: int | None,
            seed: int | None, resume: bool = False, force: bool = False) -> "FastSim":  # fmt: skip
    """Train a student of the teacher on the showers in ``data``; ``output`` becomes a run folder."""
    from .config import load_recipe
    from .default import choose
    from .distill import distill as teach
    from .fastsim import FastSim
    from .models.caloflow import CaloFlowStudentConfig
    from .models.mean_flow import MeanFlowConfig
    from .models.one_step import OneStepConfig

    old = FastSim.load(hub.model(teacher))
    data = str(old.card.training.get("data", "")) if data is None else data
    if data not in hub.SAMPLE_NAMES and not Path(data).exists():
        raise ValueError(f"got no showers for the student of {teacher}, expected a file of them; give it as well")
    source = _Data.open(data)
    old.geometry.require_same(source.showers.geometry, "training showers")
    chosen = _changed(load_recipe(recipe) if recipe else choose(source.showers).student, steps, seed)
    if not isinstance(chosen.model, OneStepConfig | CaloFlowStudentConfig | MeanFlowConfig):
        raise ValueError(
            f"got a recipe of another family in {recipe}, expected model.family = 'one_step', 'mean_flow' or "
            "'caloflow_student'; correct it"
        )
    began = time.monotonic()
    about = {"teacher": Path(teacher).name} | ({"n_pairs": n_pairs} if isinstance(chosen.model, OneStepConfig) else {})
    with _run_folder(output, chosen, resume=resume, force=force, inputs=[source.file, hub.model(teacher)]):
        with bar("distill", "steps") as update:
            fast = teach(
                old, source.showers, chosen.model, chosen.train, n_pairs=n_pairs, folder=output, resume=resume,
                progress=update,
            )  # fmt: skip
        fast = fast.with_card(training=source.origin(chosen, began) | about)
        fast.save(output)
    return fast


def _changed(recipe: "Recipe", steps: int | None, seed: int | None) -> "Recipe":
    """The recipe with another number of steps and another seed, where given."""
    settings = recipe.train
    settings = replace(settings, steps=settings.steps if steps is None else steps)
    return replace(recipe, train=replace(settings, seed=settings.seed if seed is None else seed))


def _train_default(data: str, output: Path, *, steps: int | None, seed: int, force: bool) -> "FastSim":
    """Teacher and student by the rules of ``default``, and the better one as the model in ``output``."""
    from .config import dump_recipe
    from .default import choose, train_default
    from .evaluate.page import save_all

    source = _Data.open(data)
    recipes = choose(source.showers, steps=steps, seed=seed)
    began = time.monotonic()
    with _run_folder(output, recipes.student, resume=False, force=force, inputs=[source.file]):
        with bar("train teacher and student", "steps") as update:
            judged = train_default(
                source.showers, valid=source.valid(), recipes=recipes, folder=output, progress=update
            )  # fmt: skip
        for name, recipe in (("teacher", recipes.teacher), ("student", recipes.student)):
            (output / name / "recipe.toml").write_text(dump_recipe(recipe))
            getattr(judged, name).with_card(training=source.origin(recipe, began)).save(output / name)
        best = recipes.student if judged.best is judged.student else recipes.teacher
        (output / "recipe.toml").write_text(dump_recipe(best))
        fast = judged.best.with_card(training=source.origin(best, began), scores=judged.scores())
        fast.save(output)
        save_all([judged.report], output / "report")
    return fast


def _widened(showers: Showers) -> Incident:
    """The incident particles, with the ends of the range of energies that the sample says it was made for."""
    ends = showers.provenance.get("energy_mev")
    if ends is None:
        return showers.incident
    first = showers.incident[np.zeros(len(ends), dtype=int)]
    return Incident.concat([showers.incident, replace(first, energy=np.array(ends, dtype=float))])


@contextmanager
def _run_folder(output: Path, recipe: "Recipe", *, resume: bool, force: bool, inputs: Sequence[Path]) -> Iterator[None]:
    """An empty output folder with its recipe.toml, or the run of the same recipe to resume.

    A run that it replaces is set aside meanwhile; if the block fails before there is a checkpoint, because the showers
    or the teacher are refused, everything is again as it was.
    """
    from .config import dump_recipe

    if resume:
        _require_same_run(output, recipe)
        yield
        return
    io.require_absent(output, force, folder=True)
    if output.is_file() or output.resolve() in [path.resolve() for path in inputs]:
        raise FileExistsError(
            f"got output {output}, which is no run or what this run is made from, expected a new name; choose another"
        )
    if output.is_dir() and not (output / "recipe.toml").exists() and any(output.iterdir()):
        raise FileExistsError(f"got output {output}, a folder that is no run, expected a new name; choose another")
    aside = output.absolute().with_name(f".{output.absolute().name}.{os.getpid()}.old")
    if output.is_dir():
        output.rename(aside)
    output.mkdir()
    try:
        (output / "recipe.toml").write_text(dump_recipe(recipe))
        yield
    except BaseException:
        if any(output.rglob("last.pt")):
            shutil.rmtree(aside, ignore_errors=True)
        else:
            shutil.rmtree(output)
            if aside.exists():
                aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _require_same_run(output: Path, recipe: "Recipe") -> None:
    """Raise unless ``output`` is a run of this recipe that can be resumed."""
    from .config import load_recipe
    from .keep import changes

    if not (output / "last.pt").exists():
        raise FileNotFoundError(f"got --resume, expected a run with {output / 'last.pt'}; train without --resume first")
    changed = changes(recipe.to_dict(), load_recipe(output / "recipe.toml").to_dict())
    if changed:
        raise ValueError(
            f"got another recipe to resume than {output / 'recipe.toml'} ({', '.join(changed)}), expected the "
            "same; give the same command or start a new run"
        )


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
