"""One training loop for every model family.

All randomness of step k comes from (seed, k): a resumed run continues bit for bit. A run folder holds recipe.toml,
log.jsonl (one JSON object per log step), last.pt (checkpoint), and at the end the model itself.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .fastsim import FastSim
from .models import Objective
from .preprocess import mirrors
from .showers import Showers

Progress = Callable[[int, int, str], None]
WHOLE = "all"  # weights kept together
MOST_SEPARATED = 3000  # held-out showers that choose a step


@dataclass(frozen=True)
class TrainConfig:
    """One default per number.

    steps of ``batch`` showers; lr: peak rate of AdamW after ``warmup`` steps, then by ``schedule`` cosine to 0 or
    constant; ema: decay of the weight average that becomes the model; clip: gradient norm; bf16: autocast; mirror:
    augment with the mirror images of a planar detector hit in its centre; validation: fraction of the showers kept out
    of training; keep: each objective's averaged weights from its best validation loss ("best": early stopping), all
    averaged weights from the log step at which showers of the held-out particles had the lowest mean separation power
    ("separation", for GANs, whose losses say nothing), or from the end ("last"); log_every and checkpoint_every in
    steps.
    """

    steps: int = 20_000
    batch: int = 1024
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 500
    schedule: Literal["cosine", "constant"] = "cosine"
    ema: float = 0.999
    clip: float = 1.0
    bf16: bool = True
    mirror: bool = False
    validation: float = 0.05
    keep: Literal["best", "separation", "last"] = "best"
    log_every: int = 250
    checkpoint_every: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.log_every < 1 or self.checkpoint_every < 1:
            raise ValueError(f"got {self}, expected steps, batch, log_every and checkpoint_every >= 1; raise them")
        if not (0 <= self.validation < 1 and 0 <= self.ema < 1 and self.lr > 0 and self.clip > 0):
            raise ValueError(f"got {self}, expected 0 <= validation, ema < 1 and lr, clip > 0; correct them")
        if self.keep == "separation" and self.validation == 0:
            raise ValueError("got train.keep = 'separation' with validation 0, expected held-out showers; raise it")


@dataclass(frozen=True)
class _Data:
    """Showers, encoded x (N, F + V), context c (N, C), and the permutations that augment them (S, F + V)."""

    x: Tensor
    c: Tensor
    mirrors: Tensor
    showers: Showers


def fit(
    fast: FastSim,
    showers: Showers,
    config: TrainConfig,
    *,
    folder: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> None:
    """Train ``fast`` on the showers, in place; afterwards it holds the averaged weights.

    folder: an existing run folder for log.jsonl and last.pt; resume: continue from its last.pt. Raises
    FloatingPointError, naming objective and step, when a loss is not finite.
    """  # fmt: skip
    require_trainable(fast, showers, config)
    train, validation = _prepare(fast, showers, config)
    generator = fast.generator
    objectives = list(generator.objectives())
    optimisers = [_optimiser(o, config) for o in objectives]
    average = AveragedModel(generator, multi_avg_fn=_ema(config))
    best = _Best(objectives, generator, config.keep == "separation")
    settings = asdict(config) | {"showers": hashlib.sha256(showers.energy.tobytes()).hexdigest()[:16]}
    state = _State(generator, average, optimisers, best, Path(folder) / "last.pt" if folder else None, settings)
    start = state.load() if resume else 0
    if folder:
        _cut_log(Path(folder) / "log.jsonl", start)
    generator.train()
    losses: dict[str, float] = {}  # the latest of every objective
    started, began = time.monotonic(), start
    for step in range(start, config.steps):
        losses |= _step(step, config, fast, objectives, optimisers, train)
        average.update_parameters(generator)
        done = step + 1
        if done % config.log_every == 0 or done == config.steps:
            rate = (done - began) * config.batch / (time.monotonic() - started)
            row: dict[str, Any] = {"step": done, "lr": _rate(step, config), "showers_per_s": round(rate)}
            held = _validate(average.module, fast, validation, config)
            row |= {f"loss/{k}": v for k, v in losses.items()} | {f"validation/{k}": v for k, v in held.items()}
            if config.keep == "best":
                best.update(held, average.module, done)
            elif config.keep == "separation":
                row["separation"] = _separation(average.module, fast, validation, config)
                best.update({WHOLE: row["separation"]}, average.module, done)
            _log(folder, row)
            if progress:
                shown = {k: v for k, v in row.items() if "/" in k or k == "separation"}
                progress(done, config.steps, "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        if done % config.checkpoint_every == 0 or done == config.steps:
            state.save(done)
    generator.load_state_dict(average.module.state_dict())
    best.restore(generator)
    generator.eval()


def require_trainable(fast: FastSim, showers: Showers, config: TrainConfig) -> None:
    """Raise ValueError unless these showers can train this model: geometry, range, number, symmetry."""
    fast.geometry.require_same(showers.geometry, "training showers")
    n, incident = len(showers), showers.incident
    if n - int(config.validation * n) < 2:
        raise ValueError(
            f"got {n} showers with validation {config.validation}, expected at least 2 to train on; add some"
        )
    if config.mirror and fast.card.preprocess.get("impose", "none") != "none":
        raise ValueError(
            "got train.mirror with preprocess.impose, whose centres would have to change sign; turn one of them off"
        )
    if config.mirror and max(abs(v).max() for v in (incident.theta, incident.x, incident.y)) > 0:
        raise ValueError(
            "got train.mirror with inclined or displaced particles, expected theta = x = y = 0; turn it off"
        )
    fast.check(incident)


def _prepare(fast: FastSim, showers: Showers, config: TrainConfig) -> tuple[_Data, _Data | None]:
    """Fit the transform on the training part and encode both parts."""
    n = len(showers)
    n_validation = int(config.validation * n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed)).numpy()
    kept, held = showers[order[n_validation:]], showers[order[:n_validation]]
    flips = torch.from_numpy(mirrors(fast.geometry) if config.mirror else mirrors(fast.geometry)[:1])
    fast.fit_transform(kept, flips)
    fixed = torch.arange(fast.transform.n_fixed)
    both = torch.cat([fixed.repeat(len(flips), 1), flips + len(fixed)], dim=1)
    data = [_Data(*fast.encode(part), both, part) for part in (kept, held) if len(part)]
    return data[0], data[1] if len(data) > 1 else None


def _optimiser(objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        objective.parameters, lr=config.lr, weight_decay=config.weight_decay, betas=objective.betas, fused=True
    )


def _ema(config: TrainConfig) -> Callable[..., None]:
    """Exponential average whose memory grows with the number of updates up to 1 / (1 - ema)."""

    @torch.no_grad()
    def update(averages: list[Tensor], currents: list[Tensor], n_averaged: Tensor) -> None:
        n = float(n_averaged)
        decay = min(config.ema, (1 + n) / (10 + n))
        torch._foreach_lerp_(averages, currents, 1 - decay)

    return update


def _rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then constant or cosine to 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.lr
    part = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * part))


def _batch(data: _Data, fast: FastSim, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """n random showers: features with fresh dequantisation noise and a random mirror image, and context."""
    index = torch.randint(len(data.x), (n,), generator=generator)
    x = data.x[index]
    if len(data.mirrors) > 1:
        x = x.gather(1, data.mirrors[torch.randint(len(data.mirrors), (n,), generator=generator)])
    uniform = torch.rand(n, fast.geometry.n_voxels, generator=generator)
    device = next(fast.generator.parameters()).device
    return fast.transform.dequantise(x, uniform).to(device), data.c[index].to(device)


def _step(step: int, config: TrainConfig, fast: FastSim, objectives: list[Objective],
          optimisers: list[torch.optim.Optimizer], data: _Data) -> dict[str, float]:  # fmt: skip
    """One update of every objective that is due; returns their losses."""
    random = torch.Generator().manual_seed(_seed(config.seed, step))
    x, c = _batch(data, fast, config.batch, random)
    losses = {}
    for objective, optimiser in zip(objectives, optimisers, strict=True):
        if not objective.due(step):
            continue
        # Dropout draws from the global generator: it gets the step's seed too, and its own state back.
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(_seed(config.seed, step))
            with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=config.bf16):
                loss = objective.loss(x, c, random)
        losses[objective.name] = float(loss.detach())
        if not math.isfinite(losses[objective.name]):
            raise FloatingPointError(
                f"got a loss of {losses[objective.name]} for objective {objective.name!r} at step {step}, expected a "
                "finite number; lower train.lr, or set train.bf16 = false"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(objective.parameters, config.clip)
        for group in optimiser.param_groups:
            group["lr"] = objective.rate * _rate(step, config)
        optimiser.step()
    return losses


def _seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) * 2_654_435_761 % (2**63)


@torch.no_grad()
def _validate(model: nn.Module, fast: FastSim, data: _Data | None, config: TrainConfig) -> dict[str, float]:
    """Losses of the averaged weights on the held-out showers, with the same noise every time."""
    if data is None or config.keep == "separation":
        return {}  # the losses of a GAN say nothing, and its gradient penalties need gradients
    random = torch.Generator().manual_seed(config.seed)
    most = 4096 if config.keep == "best" else config.batch  # similarities within a batch grow with its square
    x, c = _batch(data, fast, min(most, 4 * len(data.x)), random)
    model.eval()
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=config.bf16):
        return {o.name: float(o.loss(x, c, random)) for o in model.objectives()}  # type: ignore[operator]


def _log(folder: str | Path | None, row: dict[str, Any]) -> None:
    if folder:
        with open(Path(folder) / "log.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def _cut_log(path: Path, step: int) -> None:
    """Drop the rows behind ``step``: a resumed run writes them again."""
    if path.exists():
        rows = [row for row in path.read_text().splitlines() if json.loads(row)["step"] <= step]
        path.write_text("".join(row + "\n" for row in rows))


def _separation(model: nn.Module, fast: FastSim, data: _Data | None, config: TrainConfig) -> float:
    """Mean separation power over the observables, of showers that the averaged weights make of held-out particles."""
    from .evaluate import histograms, observables

    assert data is not None  # required by TrainConfig
    truth = data.showers[:MOST_SEPARATED]
    made = FastSim(fast.card, fast.encoder, fast.transform, model.eval()).simulate(truth.incident, seed=config.seed)  # type: ignore[arg-type]
    columns = [observables.observables(s) for s in (truth, made)]
    powers = []
    for name, values in columns[0].items():
        edges = histograms.binning(values)
        p, q = (histograms.fill(column[name], edges) / len(truth) for column in columns)
        powers.append(0.5 * float(((p - q) ** 2 / np.where(p + q > 0, p + q, 1)).sum()))
    return float(np.mean(powers))


class _Best:
    """The parameters of every objective from the step at which its validation loss was lowest.

    whole: of the whole generator instead, with its buffers (running means of normalisations).
    """

    def __init__(self, objectives: list[Objective], generator: nn.Module, whole: bool) -> None:
        self.whole = whole
        place = {id(p): k for k, p in enumerate(_state(generator, whole))}
        self.places = {o.name: [place[id(p)] for p in o.parameters] for o in objectives}
        if whole:
            self.places = {WHOLE: list(range(len(place)))}
        self.found: dict[str, dict[str, Any]] = {}

    def update(self, losses: dict[str, float], average: nn.Module, step: int) -> None:
        """Keep the averaged parameters of the objectives that improved."""
        parameters = _state(average, self.whole)
        for name, loss in losses.items():
            if name not in self.found or loss < self.found[name]["loss"]:
                kept = [parameters[k].detach().clone() for k in self.places[name]]
                self.found[name] = {"loss": loss, "step": step, "parameters": kept}

    @torch.no_grad()
    def restore(self, generator: nn.Module) -> None:
        """Put the kept parameters into ``generator``; objectives without any stay as they are."""
        parameters = _state(generator, self.whole)
        for name, found in self.found.items():
            for k, value in zip(self.places[name], found["parameters"], strict=True):
                parameters[k].copy_(value)


def _state(model: nn.Module, whole: bool) -> list[Tensor]:
    return [*model.parameters(), *(model.buffers() if whole else ())]


@dataclass(frozen=True)
class _State:
    """Everything that changes while training, saved to and loaded from last.pt."""

    generator: nn.Module
    average: AveragedModel
    optimisers: list[torch.optim.Optimizer]
    best: _Best
    path: Path | None
    config: dict[str, Any]

    def save(self, step: int) -> None:
        if self.path is None:
            return
        state = {"step": step, "config": self.config, "generator": self.generator.state_dict()}
        state |= {"average": self.average.state_dict(), "optimisers": [o.state_dict() for o in self.optimisers]}
        state["best"] = self.best.found
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)

    def load(self) -> int:
        """Restore the state; returns the number of steps done."""
        if self.path is None or not self.path.exists():
            raise FileNotFoundError(f"got nothing to resume, expected {self.path}; train without --resume")
        state = torch.load(self.path, weights_only=True)
        changed = [key for key, value in self.config.items() if state["config"].get(key) != value]
        if changed:
            key = changed[0]
            raise ValueError(
                f"got train.{key} = {self.config[key]} to resume a run with {state['config'].get(key)}, expected the "
                "same recipe; keep it or start a new run"
            )
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.best.found.update(state["best"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return int(state["step"])
