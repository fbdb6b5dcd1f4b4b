"""One training loop for every model family.

All randomness of step k comes from (seed, k): a resumed run continues bit for bit. A run folder holds recipe.toml,
log.jsonl (one JSON object per log step), last.pt (checkpoint), and at the end the model itself.

A batch may be computed in pieces, one after the other or shared by processes (``parallel``). Every piece k has random
numbers of its own, drawn from (seed, step, k), and starts from the same buffers; gradients, losses and changes of
buffers are averaged over the pieces. So any number of processes that divides ``parts`` trains the same model, up to
rounding. What a loss reads across a batch (similarities, running means of normalisations) it reads within a piece.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .fastsim import FastSim
from .geometry import mirrors
from .keep import WHOLE, Best, State
from .models import Generator, Objective
from .parallel import Processes, choose_device, has_fast_bf16, join, require_divisor
from .preprocess import ShowerTransform
from .settings import require_choices
from .showers import Showers

Progress = Callable[[int, int, str], None]
ALL = slice(None)
MOST_SEPARATED = 3000  # held-out showers that choose a step
MOST_IMAGES = 8  # of one shower, where every image is a shower of its own
MOST_IMAGED = 250_000_000  # voxels of all images together: 1 GB, of which training holds some copies


@dataclass(frozen=True)
class TrainConfig:
    """One default per number.

    steps of ``batch`` showers, computed in ``parts`` equal pieces, for less memory or for several processes; lr:
    peak rate of AdamW after ``warmup`` steps, then by ``schedule`` cosine to 0 or constant; ema: decay of the
    weight average that becomes the model; clip: gradient norm; bf16: autocast, except on a CPU that is slow in it
    (the log says "precision"); mirror: augment with the mirror images (and rotations, of a polar mesh) of a
    detector hit in its centre; validation: fraction of the showers kept out of training; keep: each objective's
    averaged weights from its best validation loss ("best": early stopping), all averaged weights from the log step
    at which showers of the held-out particles had the lowest mean separation power ("separation", for GANs, whose
    losses say nothing), or from the end ("last"); log_every and checkpoint_every in steps; device: "auto" takes a
    GPU where there is one.
    """

    steps: int = 20_000
    batch: int = 1024
    parts: int = 1
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
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        require_choices(self)
        if min(self.steps, self.batch, self.parts, self.log_every, self.checkpoint_every) < 1:
            raise ValueError(
                f"got {self}, expected steps, batch, parts, log_every and checkpoint_every >= 1; raise them"
            )
        if self.batch % self.parts:
            raise ValueError(
                f"got train.batch = {self.batch} in train.parts = {self.parts}, expected equal pieces; choose a divisor"
            )
        if not (0 <= self.validation < 1 and 0 <= self.ema < 1 and min(self.lr, self.clip) > 0 <= self.weight_decay):
            raise ValueError(
                f"got {self}, expected 0 <= validation, ema < 1, lr, clip > 0 and weight_decay >= 0; correct them"
            )
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
    keep_transform: bool = False,
    progress: Progress | None = None,
) -> None:
    """Train ``fast`` on the showers, in place; afterwards it holds the averaged weights, on the CPU.

    folder: an existing run folder for log.jsonl and last.pt, which the first of several processes writes; resume:
    continue from its last.pt; keep_transform: the statistics of the preprocessing stay as they are in ``fast``, as for
    a student that takes over its teacher's. Raises FloatingPointError, naming objective and step, when a loss is not
    finite; last.pt is then from before that step.
    """  # fmt: skip
    require_trainable(fast, showers, config)
    data = _prepare(fast, showers, config, keep_transform)
    processes = join(choose_device(config.device))
    try:
        fast.to(processes.device)
        fast.generator.watch(fast.transform)
        processes.broadcast(fast.generator)
        state = _state(fast.generator, config, showers, Path(folder) if folder else None)
        _train(fast, *data, config, processes, state, state.load() if resume else 0, progress)
        processes.broadcast(fast.generator)
    finally:
        fast.to("cpu")
    fast.generator.eval()


def _train(fast: FastSim, train: _Data, validation: _Data | None, config: TrainConfig, processes: Processes,
           state: State, start: int, progress: Progress | None) -> None:  # fmt: skip
    """The steps from ``start`` on. Only the first process judges, logs and saves, and so has the weights to keep."""
    generator, average, best = state.generator, state.average, state.best
    config = replace(config, bf16=config.bf16 and has_fast_bf16(processes.device))
    first, log = processes.rank == 0, state.path.with_name("log.jsonl") if state.path else None
    if first and log:
        _cut_log(log, start)
    generator.train()
    losses: dict[str, float] = {}  # the latest of every objective
    started = time.monotonic()
    for step in range(start, config.steps):
        losses |= _step(step, config, fast, state, train, processes)
        average.update_parameters(generator)
        done = step + 1
        if first and (done % config.log_every == 0 or done == config.steps):
            rate = (done - start) * config.batch / (time.monotonic() - started)
            row: dict[str, Any] = {"step": done, "lr": _rate(step, config), "showers_per_s": round(rate)}
            row["precision"] = "bfloat16" if config.bf16 else "float32"
            held = _validate(average.module, fast, validation, config)
            row |= {f"loss/{k}": v for k, v in losses.items()} | {f"validation/{k}": v for k, v in held.items()}
            if config.keep == "best":
                best.update(held, average.module, done)
            elif config.keep == "separation":
                row["separation"] = _separation(average.module, fast, validation, config)
                best.update({WHOLE: row["separation"]}, average.module, done)
            _log(log, row)
            if progress:
                shown = {k: v for k, v in row.items() if "/" in k or k == "separation"}
                progress(done, config.steps, "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
        if first and (done % config.checkpoint_every == 0 or done == config.steps):
            state.save(done)
    generator.load_state_dict(average.module.state_dict())
    best.restore(generator)


def require_trainable(fast: FastSim, showers: Showers, config: TrainConfig) -> None:
    """Raise ValueError unless these showers can train this model here: device, geometry, range, number, symmetry."""
    choose_device(config.device)
    require_divisor(config.parts)
    fast.geometry.require_same(showers.geometry, "training showers")
    n, incident = len(showers), showers.incident
    if n - int(config.validation * n) < 2:
        raise ValueError(
            f"got {n} showers with validation {config.validation}, expected at least 2 to train on; add some"
        )
    if config.mirror and max(abs(v).max() for v in (incident.theta, incident.x, incident.y)) > 0:
        raise ValueError(
            "got train.mirror with inclined or displaced particles, expected theta = x = y = 0; turn it off"
        )
    fast.check(incident)


def _prepare(fast: FastSim, showers: Showers, config: TrainConfig, keep: bool) -> tuple[_Data, _Data | None]:
    """Fit the transform on the training part, unless it is to ``keep`` its statistics, and encode both parts."""
    n = len(showers)
    n_validation = int(config.validation * n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(config.seed)).numpy()
    kept, held = showers[order[n_validation:]], showers[order[:n_validation]]
    images = mirrors(fast.geometry) if config.mirror else mirrors(fast.geometry)[:1]
    preprocess = fast.card.preprocess
    turns = preprocess["voxels"] == "gaussian" and fast.geometry.layers[0].kind == "polar"
    if preprocess["impose"] != "none" or turns:  # layer features change with the image: the images become showers
        most = min(MOST_IMAGES, max(1, MOST_IMAGED // kept.energy.size))
        images = images[:: -(-len(images) // most)]
        kept = Showers.concat([replace(kept, energy=kept.energy[:, image]) for image in images])
        images = images[:1]
    flips = torch.from_numpy(images)
    if not keep:
        fast.fit_transform(kept, flips)
    fixed = torch.arange(fast.transform.n_fixed)
    both = torch.cat([fixed.repeat(len(flips), 1), flips + len(fixed)], dim=1)
    data = [_Data(*fast.encode(part), both, part) for part in (kept, held) if len(part)]
    return data[0], data[1] if len(data) > 1 else None


def _optimiser(objective: Objective, config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        objective.parameters, lr=config.lr, weight_decay=config.weight_decay, betas=objective.betas, fused=True
    )


def _state(generator: Generator, config: TrainConfig, showers: Showers, folder: Path | None) -> State:
    """The state before the first step."""
    objectives = list(generator.objectives())
    return State(
        generator, objectives, [_optimiser(o, config) for o in objectives],
        AveragedModel(generator, multi_avg_fn=_ema(config)),
        Best(objectives, generator, config.keep == "separation"), folder / "last.pt" if folder else None,
        asdict(config) | {"showers": hashlib.sha256(showers.energy.tobytes()).hexdigest()[:16]},
    )  # fmt: skip


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


def _batch(data: _Data, fast: FastSim, n: int, generator: torch.Generator, part: slice = ALL) -> tuple[Tensor, Tensor]:
    """Of n random showers a part: features with fresh dequantisation noise and a random mirror image, and context."""
    index = torch.randint(len(data.x), (n,), generator=generator)[part]
    device = next(fast.generator.parameters()).device
    if isinstance(fast.transform, ShowerTransform) and not fast.generator.sees_voxels:
        return data.x[index, : fast.transform.n_globals].to(device), data.c[index].to(device)
    x = data.x[index]
    if len(data.mirrors) > 1:
        x = x.gather(1, data.mirrors[torch.randint(len(data.mirrors), (n,), generator=generator)[part]])
    uniform = torch.rand(n, fast.geometry.n_voxels, generator=generator)[part]
    return fast.transform.dequantise(x.to(device), uniform.to(device)), data.c[index].to(device)


@dataclass(frozen=True)
class _Piece:
    """A piece of a batch, x (N, G + V) and c (N, C), with random numbers of its own; seed: that of dropout."""

    x: Tensor
    c: Tensor
    random: torch.Generator
    seed: int


def _pieces(step: int, config: TrainConfig, fast: FastSim, data: _Data, processes: Processes) -> list[_Piece]:
    """The pieces of a step's batch that this process computes."""
    random, share = torch.Generator().manual_seed(_seed(config.seed, step)), processes.share(config.parts)
    size = config.batch // config.parts
    x, c = _batch(data, fast, config.batch, random, slice(size * share.start, size * share.stop))
    if config.parts == 1:
        return [_Piece(x, c, random, _seed(config.seed, step))]
    seeds = torch.randint(2**62, (config.parts, 2), generator=random)[share.start : share.stop].tolist()
    pairs = zip(seeds, torch.split(x, size), torch.split(c, size), strict=True)
    return [_Piece(a, b, torch.Generator().manual_seed(seed), other) for (seed, other), a, b in pairs]


def _step(step: int, config: TrainConfig, fast: FastSim, state: State, data: _Data,
          processes: Processes) -> dict[str, float]:  # fmt: skip
    """One update of every objective that is due; returns their losses."""
    pieces = _pieces(step, config, fast, data, processes)
    losses = {}
    for objective, optimiser in zip(state.objectives, state.optimisers, strict=True):
        if not objective.due(step):
            continue
        optimiser.zero_grad(set_to_none=True)
        loss = _gradients(objective, pieces, fast.generator, config, processes)
        norm = float(nn.utils.clip_grad_norm_(objective.parameters, config.clip))
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"got a {what} of {value} for objective {objective.name!r} at step {step}, expected a finite "
                    "number; lower train.lr, or set train.bf16 = false"
                )
        losses[objective.name] = loss
        for group in optimiser.param_groups:
            group["lr"] = objective.rate * _rate(step, config)
        optimiser.step()
    return losses


def _gradients(objective: Objective, pieces: list[_Piece], generator: nn.Module, config: TrainConfig,
               processes: Processes) -> float:  # fmt: skip
    """Leave the mean gradient over all pieces of the batch in the parameters; returns the mean loss.

    Buffers change by the mean of what the pieces change, each from the same start.
    """
    buffers = [b for b in generator.buffers() if b.dtype != torch.bool] if config.parts > 1 else []
    before = [b.clone() for b in buffers]
    changes = [torch.zeros_like(b, dtype=torch.float64) for b in buffers]
    total = torch.zeros((), dtype=torch.float64, device=processes.device)
    for piece in pieces:
        # Dropout draws from the global generator: it gets the piece's seed too, and its own state back.
        with torch.random.fork_rng([piece.x.device] if piece.x.is_cuda else []):
            torch.manual_seed(piece.seed)
            with torch.autocast(piece.x.device.type, dtype=torch.bfloat16, enabled=config.bf16):
                loss = objective.loss(piece.x, piece.c, piece.random) / config.parts
        loss.backward(inputs=objective.parameters)  # type: ignore[no-untyped-call]
        total += loss.detach()
        for buffer, old, change in zip(buffers, before, changes, strict=True):
            change += buffer - old
            buffer.copy_(old)
    processes.add([total, *changes])
    processes.add_gradients(objective.parameters)
    for buffer, change in zip(buffers, changes, strict=True):
        buffer += (change / config.parts).to(buffer.dtype)
    return float(total)


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


def _log(path: Path | None, row: dict[str, Any]) -> None:
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


def _cut_log(path: Path, step: int) -> None:
    """Drop the rows behind ``step``: a resumed run writes them again."""
    if path.exists():
        rows = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]  # whole ones
        path.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))


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
