"""What a model is: a deterministic map of noise, and the losses that train it.

Notation in all models: x features [g, v] (N, G + V), g of the layers and v of the voxels, c context (N, C), z latent
noise (N, Z) ~ N(0, 1).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import zuko
from torch import Tensor, nn
from torch.nn import functional
from zuko.flows.autoregressive import MaskedAutoregressiveTransform

from ..geometry import Geometry
from ..settings import require_choices

Fast = Literal["density", "decode"]
BOUND, MIN_SLOPE = 5.0, 1e-3  # of the splines of the layer flow
Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Sizes:
    """What the data say about a model: G features of the detector's layers, V voxels, C conditions.

    geometry: the readout mesh, for models that see showers as images. energy: range of the incident energy [MeV], so
    that c[:, 0] can be read as an energy again (``incident_energy``). n_classes: how many of the last columns of c are
    the kinds of particles, one-hot; 0 for one kind.
    """

    n_globals: int
    n_voxels: int
    n_conditions: int
    geometry: Geometry | None = None
    energy: tuple[float, float] = (1.0, 1.0)
    n_classes: int = 0

    def incident_energy(self, c: Tensor) -> Tensor:
        """Incident energies [MeV] (N,) of a context (N, C)."""
        half, middle = self.log_energies
        return torch.exp(c[:, 0] * half + middle)

    @property
    def log_energies(self) -> tuple[float, float]:
        """Half the width and the middle of the range of ln(E / MeV), which c[:, 0] counts in."""
        low, high = (math.log(v) for v in self.energy)
        return 0.5 * (high - low), 0.5 * (high + low)

    def mesh(self, family: str) -> Geometry:
        """The geometry; ValueError where a model that needs one has none."""
        if self.geometry is None:
            raise ValueError(f"got no geometry for {family}, expected the mesh that it makes images of; give one")
        return self.geometry


@dataclass(frozen=True)
class Objective:
    """One loss and the parameters it trains; a GAN has two of them.

    It is taken every ``every`` steps, from step ``since`` on and before step ``until``, with ``rate`` times the
    learning rate and these ``betas`` of Adam.
    """

    name: str
    parameters: list[nn.Parameter]
    loss: Loss
    every: int = 1
    since: int = 0
    until: int | None = None
    rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)

    def due(self, step: int) -> bool:
        """Whether step ``step``, counted from 0, takes this objective."""
        return (
            step >= self.since and (self.until is None or step < self.until) and (step - self.since) % self.every == 0
        )


class Generator(nn.Module, ABC):
    """Base class of all models. Subclasses set ``n_noise`` (Z) and write ``objectives`` and ``decode``.

    helpers: names of the parts that only training needs (a discriminator); a shipped model leaves them out. exact:
    names of the parts that are kept in full precision where a shipped model is halved. sees_voxels: whether the losses
    look at voxels; where they do not, training gives them g alone, which spares the time to prepare v.
    """

    n_noise: int
    sees_voxels: ClassVar[bool] = True
    helpers: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def objectives(self) -> Iterator[Objective]:
        """The losses to minimise, each with its own parameters."""

    @abstractmethod
    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Noise (N, Z) and context (N, C) -> features (N, G + V); the same input gives the same output."""

    def watch(self, transform: nn.Module) -> None:
        """Called before training with the fitted preprocessing, for objectives that look at energies [MeV]."""

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """Exact ln p(x | c) of features (N, G + V), (N,); ValueError for families without it."""
        from . import MODELS  # the table imports the families, and they this file

        family = next((name for name, (_, kind) in MODELS.items() if kind is type(self)), type(self).__name__)
        able = ", ".join(name for name, (_, kind) in MODELS.items() if kind.log_prob is not Generator.log_prob)
        raise ValueError(f"got a likelihood asked of {family}, expected a model with one: {able}; train one of them")

    def loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Sum of all objectives, a scalar."""
        return torch.stack([objective.loss(x, c, generator) for objective in self.objectives()]).sum()


def require_sizes(config: Any, *names: str) -> None:
    """Raise ValueError unless these fields of a configuration are at least 1, width at least 2, 0 <= dropout < 1, and
    its choices among those there are.

    width, dropout and layer_dropout are checked where the configuration has them.
    """
    require_choices(config)
    least = dict.fromkeys(names, 1) | {"width": 2}
    for name, smallest in least.items():
        if getattr(config, name, smallest) < smallest:
            raise ValueError(f"got model.{name} = {getattr(config, name)}, expected at least {smallest}; raise it")
    for name in ("dropout", "layer_dropout"):
        if not 0 <= (value := getattr(config, name, 0.0)) < 1:
            raise ValueError(f"got model.{name} = {value}, expected 0 <= {name} < 1; correct it")


def randn_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)


class LayerFlow(nn.Module):
    """p(g | c): a neural spline flow on the layer features (Durkan et al. 2019, 1906.04032).

    passes: of the slow direction, over groups of features, each given those before it: 2 is a coupling flow, with other
    random halves in every transform; 0 stands for G, an autoregressive flow. More passes describe features that hang
    closely together better, and cost time in the slow direction. fast: the direction that takes one pass, "density" to
    train sooner, "decode" to generate sooner. It computes in float64: g spans many orders of magnitude in energy, and G
    numbers cost little; but for the networks in the slow direction, whose weights are read once a pass. dropout: of the
    hidden units, in training: a flow of some thousand showers otherwise knows them by heart.
    """

    def __init__(
        self, sizes: Sizes, *, hidden: int, transforms: int, bins: int, fast: Fast, passes: int = 2, dropout: float = 0
    ) -> None:
        super().__init__()
        if sizes.n_globals < 1:
            raise ValueError(
                "got preprocessing without layer features, expected preprocess.voxels = 'gaussian' for this family; "
                "set it in the recipe"
            )
        if passes < 0 or passes == 1:
            raise ValueError(f"got layer_passes = {passes}, expected 0 (autoregressive) or at least 2; correct it")
        few = 0 < passes < sizes.n_globals
        self.fast = fast
        self.flow = zuko.flows.NSF(
            sizes.n_globals, sizes.n_conditions, bins=bins, slope=MIN_SLOPE, transforms=transforms,
            passes=passes if few else None, randperm=few, hidden_features=(hidden, hidden),
            activation=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU(),
        ).double()  # fmt: skip
        self._read_orders()
        self.register_load_state_dict_post_hook(lambda flow, _: flow._read_orders())  # type: ignore[no-untyped-call]

    def _read_orders(self) -> None:
        """places: of the features of every transform, group after group; as numbers, which ONNX takes as constants."""
        self.places: list[list[int]] = []
        for part in self.flow.transform.transforms:
            order = part.order.tolist() if isinstance(part, MaskedAutoregressiveTransform) else []
            self.places.append(sorted(range(len(order)), key=order.__getitem__))

    def loss(self, g: Tensor, c: Tensor) -> Tensor:
        """Mean negative log-likelihood per feature: g (N, G), c (N, C)."""
        return -self.log_prob(g, c).mean() / g.shape[1]

    def log_prob(self, g: Tensor, c: Tensor) -> Tensor:
        """ln p(g | c), (N,) float64."""
        with torch.autocast(g.device.type, enabled=False):
            transform, g = self.flow(c.double()).transform, g.double()
            if self.fast == "density":
                z, ladj = transform.call_and_ladj(g)
            else:
                z = transform.inv(g)
                ladj = -transform.call_and_ladj(z)[1]
            log_p: Tensor = ladj - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
            return log_p

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """z (N, G) -> g (N, G)."""
        if self.fast == "decode":
            return torch.as_tensor(self.flow(c.double()).transform(z.double())).to(z.dtype)
        g, c = z.double(), c.double()
        for part, places in zip(reversed(self.flow.transform.transforms), reversed(self.places), strict=True):
            g = _inverse(part, places, g, c) if places else part(c).inv(g)
        return g.to(z.dtype)


def _inverse(flow: MaskedAutoregressiveTransform, places: list[int], y: Tensor, c: Tensor) -> Tensor:
    """x of y = flow(x, c), group of features after group; zuko computes all of them in every pass.

    The networks, masked layers with ReLU between them, compute in float32, whose weights are read twice as fast; the
    splines in the dtype of y.
    """
    first, *hidden, last = (((v.mask * v.weight).float(), v.bias.float()) for v in list(flow.hyper)[::2])
    weight, bias = last[0].unflatten(0, (-1, flow.total)), last[1].unflatten(0, (-1, flow.total))
    known, size = y[:, :0], math.ceil(len(places) / flow.passes)
    context = list(range(len(places), first[0].shape[1]))
    for done in range(0, len(places), size):
        group = places[done : done + size]
        given = torch.cat([known, c], dim=1).float()
        h = functional.relu(functional.linear(given, first[0][:, places[:done] + context], first[1]))
        for layer in hidden:
            h = functional.relu(functional.linear(h, *layer))
        values = functional.linear(h, weight[group].flatten(0, 1), bias[group].flatten()).to(y.dtype)
        known = torch.cat([known, _spline_inverse(y[:, group], values.reshape(-1, len(group), flow.total))], dim=1)
    return known[:, sorted(range(len(places)), key=places.__getitem__)]


def _spline_inverse(y: Tensor, values: Tensor) -> Tensor:
    """Origins x (N, D) of the images y of zuko's splines with parameters (N, D, 3 K - 1), in half as many operations.

    Names as in ``splines``.
    """
    bins = (values.shape[2] + 1) // 3
    limit = torch.full_like(values[0, 0], 1 / math.log(MIN_SLOPE))
    limit = torch.cat([2 * limit[: 2 * bins], limit[2 * bins :]])
    values = values / (1 + (values * limit).abs())
    shares = torch.softmax(values[:, :, : 2 * bins].reshape(-1, y.shape[1], 2, bins), dim=3)
    corners = shares @ torch.ones(bins, bins + 1).triu(1).to(y) * (2 * BOUND) - BOUND  # x_k and y_k, (N, D, 2, K + 1)
    slopes = torch.exp(functional.pad(values[:, :, 2 * bins :], (1, 1)))
    inside = y.clamp(-BOUND, BOUND)
    k = (corners[:, :, 1, 1:-1] < inside[:, :, None]).sum(2)
    ends = torch.stack([k, k + 1], dim=2)[:, :, None].expand(-1, -1, 3, -1)
    start, end = torch.cat([corners, slopes[:, :, None]], dim=2).gather(3, ends).unbind(3)
    (x_k, y_k, d_0), (x_next, y_next, d_1) = start.unbind(2), end.unbind(2)
    w, h, eta = x_next - x_k, y_next - y_k, inside - y_k
    s = h / w
    b, c = h * d_0 - eta * (d_0 + d_1 - 2 * s), s * eta
    root = (b.square() + 4 * (h * s - b) * c).clamp_min(0.0).sqrt()
    return x_k + 2 * c / (b + root) * w + (y - inside)


class ResidualMLP(nn.Module):
    """MLP with ``depth`` residual blocks of ``width``, each scaled and shifted by the context (FiLM / adaLN).

    One modulation is shared by all blocks, with an offset per block (PixArt style). The last layer starts at zero.
    """

    def __init__(self, n_in: int, n_context: int, n_out: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        n = width // 2
        self.enter = nn.Linear(n_in, width)
        self.context = nn.Sequential(nn.Linear(n_context, n), nn.SiLU(), nn.Linear(n, n), nn.SiLU())
        self.modulate = nn.Linear(n, 2 * width)
        self.offsets = nn.Parameter(torch.zeros(depth, 2 * width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(depth + 1))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        self.leave = nn.Linear(width, n_out)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (N, n_in), context (N, n_context) -> (N, n_out)."""
        modulation = self.modulate(self.context(context))
        h = self.enter(x)
        for k, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            # One dtype throughout: under autocast a float32 offset would turn the whole block back to float32.
            scale, shift = (modulation + self.offsets[k].to(modulation.dtype)).chunk(2, dim=1)
            y = torch.addcmul(shift, self.norms[k](h).to(h.dtype), 1 + scale)
            h = h + down(self.dropout(nn.functional.silu(up(y))))
        out: Tensor = self.leave(self.norms[-1](h))
        return out
