"""Recipes: one TOML file per study, read into frozen dataclasses. Unknown keys are errors that name the known ones."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .models import MODELS, ModelConfig, family_of
from .models.flow_matching import FlowMatchingConfig
from .preprocess import PreprocessConfig
from .settings import build, read_toml, require_known
from .train import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """All that a training run is made of, apart from the data."""

    model: ModelConfig = field(default_factory=FlowMatchingConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with every default written out."""
        model = {"family": family_of(self.model)} | dataclasses.asdict(self.model)
        return {
            "model": model, "preprocess": dataclasses.asdict(self.preprocess), "train": dataclasses.asdict(self.train),
        }  # fmt: skip

    @staticmethod
    def from_dict(data: dict[str, Any], where: str = "recipe") -> "Recipe":
        """The recipe in plain data; ``where`` names its origin in errors."""
        require_known(data, ("model", "preprocess", "train"), where)
        for name, section in data.items():
            if not isinstance(section, dict):
                raise ValueError(f"got {name} = {section!r} in {where}, expected a section [{name}]; correct it")
        model = dict(data.get("model", {}))
        family = model.pop("family", "flow_matching")
        if not isinstance(family, str) or family not in MODELS:
            raise ValueError(
                f"got model.family = {family!r} in {where}, expected one of {', '.join(MODELS)}; choose one"
            )
        return Recipe(
            build(MODELS[family][0], model, f"[model] of {where}"),
            build(PreprocessConfig, data.get("preprocess", {}), f"[preprocess] of {where}"),
            build(TrainConfig, data.get("train", {}), f"[train] of {where}"),
        )


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file."""
    return Recipe.from_dict(read_toml(path, "recipe"), str(path))


def dump_recipe(recipe: Recipe) -> str:
    """TOML text of a recipe, complete."""
    lines = []
    for section, values in recipe.to_dict().items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
