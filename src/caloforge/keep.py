"""What training keeps: its state, to be resumed from last.pt, and the best weights so far."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .models import Generator, Objective

WHOLE = "all"  # weights kept together


class Best:
    """The parameters of every objective from the step at which its validation loss was lowest.

    whole: of the whole generator instead, with its buffers (running means of normalisations).
    """

    def __init__(self, objectives: list[Objective], generator: nn.Module, whole: bool) -> None:
        self.whole = whole
        place = {id(p): k for k, p in enumerate(_tensors(generator, whole))}
        self.places = {o.name: [place[id(p)] for p in o.parameters] for o in objectives}
        if whole:
            self.places = {WHOLE: list(range(len(place)))}
        self.found: dict[str, dict[str, Any]] = {}

    def update(self, losses: dict[str, float], average: nn.Module, step: int) -> None:
        """Keep the averaged parameters of the objectives that improved."""
        parameters = _tensors(average, self.whole)
        for name, loss in losses.items():
            if name not in self.found or loss < self.found[name]["loss"]:
                kept = [parameters[k].detach().clone() for k in self.places[name]]
                self.found[name] = {"loss": loss, "step": step, "parameters": kept}

    @torch.no_grad()
    def restore(self, generator: nn.Module) -> None:
        """Put the kept parameters into ``generator``; objectives without any stay as they are."""
        parameters = _tensors(generator, self.whole)
        for name, found in self.found.items():
            for k, value in zip(self.places[name], found["parameters"], strict=True):
                parameters[k].copy_(value)


def _tensors(model: nn.Module, whole: bool) -> list[Tensor]:
    return [*model.parameters(), *(model.buffers() if whole else ())]


@dataclass(frozen=True)
class State:
    """Everything that changes while training, saved to and loaded from last.pt; settings: what must not change."""

    generator: Generator
    objectives: list[Objective]
    optimisers: list[torch.optim.Optimizer]
    average: AveragedModel
    best: Best
    path: Path | None
    settings: dict[str, Any]

    def save(self, step: int) -> None:
        if self.path is None:
            return
        state = {"step": step, "config": self.settings, "generator": self.generator.state_dict()}
        state |= {"average": self.average.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers]}
        state["best"] = self.best.found
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def load(self) -> int:
        """Restore the state; returns the number of steps done."""
        if self.path is None or not self.path.exists():
            raise FileNotFoundError(f"got nothing to resume, expected {self.path}; train without --resume")
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # of pickle, of zip files and of torch
            raise ValueError(f"got {self.path}, expected a checkpoint; it is damaged, train anew") from None
        changed = changes({"train": self.settings}, {"train": state["config"]})
        if changed:
            raise ValueError(
                f"got {', '.join(changed)} to resume a run, expected the same recipe and showers; keep them or start "
                "a new run"
            )
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.best.found.update(state["best"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return int(state["step"])


def changes(new: dict[str, dict[str, Any]], old: dict[str, dict[str, Any]]) -> list[str]:
    """The settings, by section, that differ: "train.lr = 0.002 instead of 0.001".

    Settings that only one of them has are left out: other families of models and earlier versions have other ones.
    """
    return [
        f"{section}.{key} = {value} instead of {old[section][key]}"
        for section, values in new.items()
        for key, value in values.items()
        if key in old[section] and value != old[section][key]
    ]
