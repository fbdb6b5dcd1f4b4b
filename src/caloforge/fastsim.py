"""FastSim: a fast simulation in physical units, built around a generator. The place where numpy meets torch.

On disk it is a folder: card.json (what it is, for which particles, how it was made and scored) and
weights.safetensors. Format 2; format 1 is read as what it was: conditions "polar".
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ._version import __version__
from .fractions import FractionTransform
from .geometry import Array, Geometry
from .models import MODELS, Generator, ModelConfig, Sizes, family_of
from .preprocess import CONDITIONS, ConditionEncoder, PreprocessConfig, ShowerTransform
from .showers import Incident, Showers
from .simulate.gun import Gun
from .voxelwise import VoxelTransform

FORMAT, VERSION = "caloforge-model", 2
MASK = ".mask"  # of masked layers, in their weights
CHUNK = 1000
Transform = ShowerTransform | VoxelTransform | FractionTransform


@dataclass(frozen=True)
class Card:
    """What a model is: family, configuration, geometry, valid range of incident particles, origin and scores.

    valid: (low, high) of energy [MeV], theta, phi [rad], x, y [mm]; pdg: the particles it was made for.
    """

    family: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    geometry: Geometry
    valid: dict[str, tuple[float, float]]
    pdg: tuple[int, ...]
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    licence: str = "BSD-3-Clause"

    def to_dict(self) -> dict[str, Any]:
        values = {k: v for k, v in asdict(self).items() if k != "geometry"}
        head = {"format": FORMAT, "format_version": VERSION, "caloforge": __version__}
        return head | values | {"geometry": self.geometry.to_dict(), "geometry_digest": self.geometry.digest()}


class FastSim(nn.Module):
    """Condition encoder + transform + generator + card; a Simulator like Geant4."""

    def __init__(self, card: Card, encoder: ConditionEncoder, transform: Transform, generator: Generator) -> None:
        super().__init__()
        self.card, self.encoder, self.transform, self.generator = card, encoder, transform, generator

    @staticmethod
    def create(
        geometry: Geometry,
        config: ModelConfig,
        *,
        valid: Gun | Incident,
        preprocess: PreprocessConfig | None = None,
        seed: int = 0,
    ) -> "FastSim":
        """An untrained model. valid: gun or particles whose range it is made for; seed: initial weights."""
        ranges, pdg = _valid_range(valid)
        card = Card(family_of(config), asdict(config), asdict(preprocess or PreprocessConfig()), geometry, ranges, pdg)
        return FastSim.from_card(card, seed=seed)

    @staticmethod
    def from_card(card: Card, *, seed: int = 0) -> "FastSim":
        """An untrained model with this card; seed: initial weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _assemble(card).eval()

    @property
    def geometry(self) -> Geometry:
        return self.card.geometry

    @property
    def n_noise(self) -> int:
        return self.generator.n_noise

    @property
    def inputs(self) -> tuple[str, ...]:
        """Arguments of ``forward`` beside the noise: CONDITIONS, and pdg where the kind of particle counts."""
        return (*CONDITIONS, "pdg") if self.encoder.n_classes else CONDITIONS

    def forward(
        self, z: Tensor, energy: Tensor, theta: Tensor, phi: Tensor, x: Tensor, y: Tensor, pdg: Tensor | None = None
    ) -> Tensor:
        """z (N, Z), energy [MeV], theta, phi [rad], x, y [mm], PDG id, each (N,) -> voxel energies [MeV] (N, V)."""
        c = self.encoder(energy, theta, phi, x, y, pdg)
        return self.transform.inverse(self.generator.decode(z, c), energy, self._given(c))

    def _given(self, c: Tensor) -> Tensor | None:
        return c[:, 1:] if self.encoder.n_given else None

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        """Showers of the given particles; the same seed gives the same showers."""
        return Showers.concat(list(self.stream(incident, seed=seed)))

    def stream(self, incident: Incident, *, seed: int, chunk: int = CHUNK) -> Iterator[Showers]:
        """The same in parts of ``chunk`` showers, for constant memory; another chunk draws other noise."""
        self.check(incident)
        for k, start in enumerate(range(0, len(incident), chunk)):
            yield self.block(incident[start : start + chunk], seed=seed, index=k)

    def block(self, incident: Incident, *, seed: int, index: int) -> Showers:
        """Showers of part ``index`` of a stream: its noise comes from (seed, index)."""
        z = self.noise(len(incident), [seed, index])
        with torch.inference_mode():
            energy = self(z, *self._arguments(incident)).cpu().numpy()
        return Showers(self.geometry, incident, energy, None, self.provenance() | {"seed": seed})

    def noise(self, n: int, seed: int | list[int]) -> Tensor:
        """Latent noise of n showers, (n, Z)."""
        rng = np.random.default_rng(seed)
        return torch.from_numpy(rng.standard_normal((n, self.n_noise), dtype=np.float32)).to(self._device())

    def provenance(self) -> dict[str, Any]:
        """What every file made with this model records."""
        return {"engine": f"caloforge {__version__} {self.card.family}", "valid": self.card.valid}

    def check(self, incident: Incident) -> None:
        """Raise ValueError unless there are particles and every one lies in the valid range of the card."""
        if len(incident) == 0:
            raise ValueError("got no incident particles, expected at least one; check the selection")
        units = {"energy": "MeV", "theta": "rad", "phi": "rad", "x": "mm", "y": "mm"}
        for name in CONDITIONS:
            (low, high), values = self.card.valid[name], getattr(incident, name)
            margin = 1e-6 * max(abs(low), abs(high))
            outside = values[(values < low - margin) | (values > high + margin)]
            if len(outside):
                raise ValueError(
                    f"got incident {name} {outside[0]:g} {units[name]}, expected {low:g}..{high:g} {units[name]}, the "
                    "range this model was made for; choose particles in it or train on a wider sample"
                )
        unknown = set(np.unique(incident.pdg)) - set(self.card.pdg)
        if unknown:
            raise ValueError(
                f"got particles with PDG {sorted(int(p) for p in unknown)}, expected {list(self.card.pdg)}; use a "
                "model trained on them"
            )

    def fit_transform(self, showers: Showers, mirrors: Tensor | None = None) -> None:
        """Set the statistics of the preprocessing from training showers."""
        arguments = self._arguments(showers.incident)
        self.encoder.fit(*arguments[: len(CONDITIONS)])
        self.transform.fit(torch.tensor(showers.energy), arguments[0], mirrors, self._given(self.encoder(*arguments)))

    def encode(self, showers: Showers) -> tuple[Tensor, Tensor]:
        """Encoded showers (N, F + V), -inf in empty voxels, and context (N, C)."""
        arguments = self._arguments(showers.incident)
        c = self.encoder(*arguments)
        return self.transform(torch.tensor(showers.energy), arguments[0], self._given(c)), c

    def log_likelihood(self, showers: Showers, *, seed: int = 0) -> Array:
        """ln p(x | c) of every shower, (N,) float64; ValueError for families without an exact likelihood.

        It is a density of the features x, per unit of feature space: after dequantisation, with the noise of ``seed``
        in empty voxels (that of layer features is always the same), and without the Jacobian of the preprocessing,
        which is common to all models with the same fitted preprocessing. Between those, and only those, differences
        are log-likelihood ratios.
        """
        self.geometry.require_same(showers.geometry, "showers")
        self.check(showers.incident)
        parts = []
        for k, start in enumerate(range(0, len(showers), CHUNK)):
            x, c = self.encode(showers[start : start + CHUNK])
            uniform = np.random.default_rng([seed, k]).random((len(x), self.transform.n_voxels), dtype=np.float32)
            with torch.inference_mode():
                x = self.transform.dequantise(x, torch.from_numpy(uniform).to(x.device))
                parts.append(self.generator.log_prob(x, c).double().cpu().numpy())
        return np.concatenate(parts)

    def _arguments(self, incident: Incident) -> list[Tensor]:
        device = self._device()
        return [torch.tensor(getattr(incident, n), dtype=torch.float32, device=device) for n in self.inputs]

    def _device(self) -> torch.device:
        return self.encoder.low.device

    def save(self, folder: str | Path, *, half: bool = False, helpers: bool = True) -> None:
        """Write card.json and weights.safetensors into the folder.

        half: networks as float16 without the masks of masked layers, the rest as it is; helpers: also what only
        training needs (a discriminator).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            k: v.detach().cpu().contiguous()
            for k, v in self.state_dict().items()
            if helpers or not k.startswith(self._helpers())
        }
        if half:
            for name in [k for k in state if k.endswith(MASK)]:
                state[_masked(name)] = state[_masked(name)] * state.pop(name)
            exact = tuple(f"generator.{name}" for name in self.generator.exact)
            state = {
                k: v.half() if k.startswith("generator.") and not k.startswith(exact) and v.is_floating_point() else v
                for k, v in state.items()
            }
        weights = save_tensors(state)
        card = self.card.to_dict() | {"weights_sha256": hashlib.sha256(weights).hexdigest()}
        for name, content in (("weights.safetensors", weights), ("card.json", json.dumps(card, indent=1).encode())):
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(content)
            temporary.replace(folder / name)

    @staticmethod
    def load(folder: str | Path) -> "FastSim":
        """The model in a folder; ValueError when a file is missing, changed or of a newer format."""
        card, digest = read_card(folder)
        weights = (Path(folder) / "weights.safetensors").read_bytes()
        if hashlib.sha256(weights).hexdigest() != digest:
            raise ValueError(
                f"got weights in {folder} that differ from their card, expected sha256 {digest}; copy it again"
            )
        state = {k: v.float() if v.dtype == torch.float16 else v for k, v in load_tensors(weights).items()}
        try:
            fast = _assemble(card)
            masks = {k: _masked(k) for k in fast.state_dict() if k.endswith(MASK) and k not in state}
            state |= {mask: state[weight] != 0 for mask, weight in masks.items() if weight in state}
            missing, unknown = fast.load_state_dict(state, strict=False)
            if unknown or any(not key.startswith(fast._helpers()) for key in missing):
                raise RuntimeError
        except (RuntimeError, TypeError) as error:  # torch lists every tensor: too long for one sentence
            raise ValueError(
                f"got {folder}/card.json, expected settings that fit the weights beside it; copy the model again"
            ) from error
        return fast.eval()

    def _helpers(self) -> tuple[str, ...]:
        return tuple(f"generator.{name}." for name in self.generator.helpers)

    def with_card(self, **changes: Any) -> "FastSim":
        """The same networks with fields of the card replaced."""
        return FastSim(replace(self.card, **changes), self.encoder, self.transform, self.generator).eval()


def _masked(name: str) -> str:
    """The weight that a mask belongs to."""
    return name.removesuffix(MASK) + ".weight"


def read_card(folder: str | Path) -> tuple[Card, str]:
    """Card of a model folder and the sha256 of its weights; needs no weights to be loaded."""
    folder = Path(folder)
    for name in ("card.json", "weights.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"got {folder}, expected a model folder with {name}; check the name or train a model"
            )
    try:
        data = json.loads((folder / "card.json").read_text())
        if data.get("format") != FORMAT or data["format_version"] > VERSION:
            raise ValueError(
                f"got {folder}/card.json of format {data.get('format')} {data.get('format_version')}, expected "
                f"{FORMAT} up to {VERSION}; update caloforge"
            )
        geometry = Geometry.from_json(json.dumps(data["geometry"]))
        digest = data["weights_sha256"]
        valid = {k: (float(v[0]), float(v[1])) for k, v in data["valid"].items()}
        preprocess = ({"conditions": "polar"} if data["format_version"] < 2 else {}) | data["preprocess"]
        card = Card(
            data["family"], data["config"], preprocess, geometry, valid, tuple(data["pdg"]), data["training"],
            data["scores"], data["licence"],
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"got {folder}/card.json, expected a model card ({error!r}); copy the model again") from None
    if geometry.digest() != data["geometry_digest"]:
        raise ValueError(f"got {folder}/card.json, whose geometry does not match its digest; copy the model again")
    return card, digest


def _assemble(card: Card) -> FastSim:
    if card.family not in MODELS:
        raise ValueError(f"got model family {card.family!r}, expected one of {', '.join(MODELS)}; update caloforge")
    kind, model = MODELS[card.family]
    config = PreprocessConfig(**card.preprocess)
    encoder = ConditionEncoder(card.valid, card.pdg, config)
    transform: Transform
    if config.voxels == "gaussian":
        transform = ShowerTransform(card.geometry, config, encoder.n_given)
    elif config.voxels in ("fractions", "ratio"):
        transform = FractionTransform(card.geometry, config)
    else:
        scale = config.scale_mev if config.voxels == "linear" else None
        transform = VoxelTransform(card.geometry, threshold=config.threshold_mev, scale=scale)
    sizes = Sizes(
        transform.n_globals, transform.n_voxels, encoder.n_conditions, card.geometry, card.valid["energy"],
        encoder.n_classes,
    )  # fmt: skip
    return FastSim(card, encoder, transform, model(kind(**card.config), sizes))


def _valid_range(valid: Gun | Incident) -> tuple[dict[str, tuple[float, float]], tuple[int, ...]]:
    if isinstance(valid, Gun):
        limits = valid.limits()
        return {n: limits[n] for n in CONDITIONS}, (valid.pdg,)
    ranges = {n: (float(getattr(valid, n).min()), float(getattr(valid, n).max())) for n in CONDITIONS}
    return ranges, tuple(int(p) for p in np.unique(valid.pdg))
