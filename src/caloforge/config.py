"""Recipes: one TOML file per study, read into frozen dataclasses. Unknown keys are errors that name the known ones."""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from .models import MODELS, ModelConfig, family_of
from .models.flow_matching import FlowMatchingConfig
from .preprocess import PreprocessConfig
from .train import TrainConfig

T = TypeVar("T")


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
        _known_keys(data, ("model", "preprocess", "train"), where)
        for name, section in data.items():
            if not isinstance(section, dict):
                raise ValueError(f"got {name} = {section!r} in {where}, expected a section [{name}]; correct it")
        model = dict(data.get("model", {}))
        family = model.pop("family", "flow_matching")
        if family not in MODELS:
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
    try:
        data = tomllib.loads(Path(path).read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"got recipe {path}, expected a TOML file; no such file, check the name") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"got recipe {path}, expected TOML ({error}); correct the file") from None
    return Recipe.from_dict(data, str(path))


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


def _known_keys(data: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = [key for key in data if key not in known]
    if unknown:
        raise ValueError(
            f"got unknown key {unknown[0]!r} in {where}, expected only {', '.join(known)}; correct the name"
        )


def build(kind: type[T], data: dict[str, Any], where: str) -> T:
    """A dataclass from plain data, with names and types checked."""
    hints = typing.get_type_hints(kind)
    _known_keys(data, tuple(hints), where)
    values = {key: _converted(value, hints[key], f"{key} in {where}") for key, value in data.items()}
    return kind(**values)


def _converted(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        options = typing.get_args(hint)
        if value not in options:
            raise ValueError(f"got {value!r} for {where}, expected one of {', '.join(map(str, options))}; choose one")
        return value
    if origin in (types.UnionType, typing.Union):
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"got {value!r} for {where}, expected {hint.__name__}; correct it")
    return value
