"""One step from noise to showers: a small student of any teacher on Gaussianised features (``distill``).

At batch 1 a shower costs about a microsecond per operation plus the time to read every weight once. The student does in
few operations what its teacher's networks and preprocessing do in many. With the teacher's noise z = [z_g, z_v]:

    g = z_g + F(z_g, c)                   features of the layers; tables turn them into energies E_l and numbers n_l
    m = mu + exp(rho) z_v R + shift       margin of a voxel over its threshold; mu and rho depend on g and c
    e = exp q(m, ln E_l)                  of filled voxels, m > 0, and then closed to E_l; q are the teacher's tables

shift moves the margins of a layer so that about n_l voxels are filled, and one at least. Where moments are imposed
(``tilt``), the excess over the threshold is multiplied by exp(lambda b), b = (x, y, x^2, y^2, xy), or (r, r^2), with
lambda = J (what is asked for - what is there): one Newton step with a J that depends on g, c and the moments there are,
up to those of fourth order, which make the derivatives. Where its share is imposed too, the brightest voxel of a layer
takes that then, and the others are tilted for what is left: once more, or (``twice`` = false) only then. R is the
teacher's; F, mu, rho and J are trained in one or two phases: by regression of g and m on pairs of noise and teacher
output (J: of the exact lambda), F on many more of them than the rest, as its teacher's layer flow is cheap; and then,
with more steps than ``pair_steps``, F alone on real showers by distribution matching: an energy distance (Szekely and
Rizzo, J. Stat. Plan. Inference 143, 2013) between whitened observables of real and generated showers of the same
particles, along random directions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..transforms import FEW_LAYERS, LARGEST_COVARIANCE, LEAST_REST, WITH_LARGEST, Layers, Members
from .base import Fast, Generator, LayerFlow, Objective, Sizes, randn_like, require_sizes
from .matching import energy_distance, whitened
from .moments import LARGEST, N_PLANAR, N_RADIAL, LayerMoments
from .rings import Rings

EMPTY = -40.0  # ln of the energy of an empty voxel
REACH = 9.0  # largest margin of the tables
G_MAX = 4.5  # largest feature of a layer
BELOW = 1.5  # how far below the threshold a margin still counts in the regression
N_BRIGHTEST = 2
LEAST = 1e-4  # margin of the voxel nearest to its threshold in a layer
LAYER_BATCH = 4  # pairs of the layers for each one of voxels
Activation = Literal["relu", "tanh", "silu"]
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}
LEAST_PART = 0.01  # of a layer's energy in all but its brightest voxel, where that is all but everything
LEAST_EXCESS = 1e-6  # of a voxel over the threshold, in units of it
TOTAL_WEIGHT = 0.1  # of the total energy beside the features of the layers
SHARPNESS = 6.0  # of the sigmoid that stands for "filled" where voxels are counted
SHARPER = 24.0  # the same in the second count
LEAST_SLOPE, MOST = 0.25, 0.3  # of its derivative, and largest step: without them a few layers end far off
JUDGE_GAMMA = 0.1  # gradient penalty of the discriminator


@dataclass(frozen=True)
class OneStepConfig:
    """per_layer: numbers per layer in the teacher's g, 4, or 7 with imposed moments of x and y, and one more with
    brightest, the imposed share of the brightest voxel; radial: whether moments of r are imposed; layers: how they hold
    the layer energies, correlate: whether R is more than a diagonal (``PreprocessConfig``); impose: whether the student
    too imposes moments, or only knows them; twice: with brightest, whether also before that voxel is chosen, which
    takes more time; centred: with b about the centre that is there, for showers off the axis;
    width, depth: hidden layers for mu, rho and J; layer_width, layer_depth, layer_activation: for F, whose regression
    has ``layer_rate`` times the learning rate; layers_by: "flow" keeps the teacher's layer flow in place of F, exact
    and slower, with ``layer_depth`` transforms of ``layer_width`` hidden units, layer_bins, layer_passes and
    layer_fast, all of which distill sets; rings: whether voxels that the rotations of a polar mesh exchange share mu,
    rho and q; recount: whether the filled voxels are counted a second time, which brings their number nearer to n_l;
    n_nodes, n_knots: layer energies and margins in the tables q; n_read: knots in the tables of g; pair_steps: steps of
    the first phase; pair_weight: of the regression in the second; n_slices: random directions. judge_width: of a
    discriminator of the whitened observables beside the energy distance, 0 for none; judge_weight: of its loss."""

    per_layer: int = 4
    brightest: bool = False
    radial: bool = False
    layers: Layers = "fractions"
    correlate: bool = True
    impose: bool = True
    twice: bool = True
    centred: bool = False
    width: int = 192
    depth: int = 2
    layer_width: int = 96
    layer_depth: int = 2
    layer_activation: Activation = "relu"
    layer_rate: float = 1.0
    layers_by: Literal["regression", "flow"] = "regression"
    layer_bins: int = 12
    layer_passes: int = 5
    layer_fast: Fast = "density"
    rings: bool = False
    recount: bool = False
    n_nodes: int = 12
    n_knots: int = 48
    n_read: int = 246
    pair_steps: int = 2000
    pair_weight: float = 0.1
    n_slices: int = 128
    judge_width: int = 0
    judge_weight: float = 0.1

    def __post_init__(self) -> None:
        require_sizes(
            self, "per_layer", "depth", "layer_width", "layer_depth", "layer_bins", "n_nodes", "n_knots", "n_read",
            "pair_steps", "n_slices",
        )  # fmt: skip
        if self.n_knots < 3 or self.n_read < 3 or self.n_nodes < 2 or self.pair_weight < 0 or not self.layer_rate > 0:
            raise ValueError(
                f"got {self}, expected tables of 3 knots and 2 nodes, pair_weight >= 0 and layer_rate > 0; raise them"
            )


@dataclass
class Pairs:
    """What the teacher made of noise: z (M, G + V), c (M, C), g (M, G) and margins m (M, V), below 0 where empty; and
    of its layer flow alone, which is cheap, more of z_g (K, G), c (K, C) and g (K, G)."""

    z: Tensor
    c: Tensor
    g: Tensor
    m: Tensor
    layers: tuple[Tensor, Tensor, Tensor]

    def __deepcopy__(self, memo: Any) -> "Pairs":
        return self  # a weight average copies the student, and needs no pairs of its own


@dataclass(frozen=True)
class Decoded:
    """Of one decoding: g (N, G), m and e [MeV] (N, V), given (N, G + C), and of every tilt the network, excess (N, V)
    and wanted (N, K, L)."""

    g: Tensor
    m: Tensor
    e: Tensor
    given: Tensor
    tilts: list[tuple[nn.Sequential, Tensor, Tensor]]


class OneStep(Generator):
    """Student with the teacher's tables; its features x are voxel energies [MeV], (N, V)."""

    helpers = ("judge",)
    exact = ("threshold", "ceiling", "lowest", "per_g", "read", "first", "per_node", "units")  # where there are such

    places: Tensor  # of the voxels, (2, V) [mm]
    shares: Tensor
    largest: Tensor  # the layer that holds most on average, one-hot (L,)
    root: Tensor  # R, (V, V), or its diagonal (V,) for many or uncorrelated voxels
    units: Tensor  # of the moments
    threshold: Tensor
    ceiling: Tensor
    lowest: Tensor
    per_g: Tensor
    read: Tensor
    first: Tensor
    per_node: Tensor
    q: Tensor
    log_e: Tensor  # interpolation coefficients of q
    first_g: Tensor
    first_v: Tensor

    def __init__(self, config: OneStepConfig, sizes: Sizes) -> None:
        super().__init__()
        if sizes.n_globals:
            raise ValueError(
                "got preprocessing with layer features for one_step, expected voxels = 'linear' with scale_mev = 1, as "
                "distill sets it; use distill"
            )
        self.config, self.sizes = config, sizes
        geometry = sizes.mesh("one_step")
        n_layers, n_voxels = geometry.n_layers, sizes.n_voxels
        self.n_layers, self.n_globals = n_layers, config.per_layer * n_layers
        planar = config.per_layer - config.brightest == 2 + N_PLANAR
        self.n_moments = N_RADIAL if config.radial else N_PLANAR if planar else 0
        self.n_noise = self.n_globals + n_voxels
        self.pairs: Pairs | None = None
        self.members = Members(geometry)
        self._make_tables(torch.from_numpy(geometry.centres()[:, :2].T.copy()).float())
        n_c = sizes.n_conditions
        if config.layers in WITH_LARGEST:
            self.register_buffer("largest", functional.one_hot(torch.tensor(0), n_layers).float())
        n_in = self.n_globals + n_c
        self.layers: LayerFlow | nn.Sequential
        self.order = feature_order(n_layers, config.per_layer, self.n_moments > 0 or config.brightest).tolist()
        if config.layers_by == "flow":
            self.layers = LayerFlow(
                replace(sizes, n_globals=self.n_globals), hidden=config.layer_width, transforms=config.layer_depth,
                bins=config.layer_bins, fast=config.layer_fast, passes=config.layer_passes,
            )  # fmt: skip
        else:
            self.layers = _mlp(n_in, config.layer_width, config.layer_depth, self.n_globals, config.layer_activation)
        full = config.correlate and n_voxels <= LARGEST_COVARIANCE
        self.register_buffer("root", torch.eye(n_voxels) if full else torch.ones(n_voxels))
        self.judge: nn.Sequential | None = None
        if config.judge_width:
            n_observables = n_c + 1 + n_layers * (6 + N_BRIGHTEST)
            self.judge = _mlp(n_observables, config.judge_width, 2, 1, "silu")
        self.imposes = config.impose and self.n_moments > 0
        self.voxels = _mlp(n_in, config.width, config.depth, 2 * self.rings.n + n_layers)
        self.newton: nn.Sequential | None = None
        self.newton_rest: nn.Sequential | None = None
        if self.imposes:
            shape = (n_in + self.moments.n_known * n_layers, config.width, 2, self.n_moments**2 * n_layers)
            if config.twice or not config.brightest:
                self.newton = _mlp(*shape)
            if config.brightest:
                self.newton_rest = _mlp(*shape)

    def _make_tables(self, places: Tensor) -> None:
        config, n_layers = self.config, self.n_layers
        fixed = {"places": places}
        fixed["first_g"] = torch.arange(self.n_globals) * (config.n_read - 1)
        self.rings = Rings(self.sizes.mesh("one_step"), config.rings)
        fixed["first_v"] = (self.rings.ring * (config.n_nodes * (config.n_knots + 1))).int()
        fixed["shares"] = _shares(n_layers)
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        g = torch.linspace(-G_MAX, G_MAX, config.n_read).repeat(self.n_globals, 1)
        variances = slice(3 * n_layers, 4 * n_layers) if config.radial else slice(4 * n_layers, 6 * n_layers)
        g[variances] = g[variances].exp()  # if there are any
        q = torch.linspace(0, REACH, config.n_knots).repeat(config.n_nodes, self.rings.n, 1)
        nodes = torch.linspace(0, 10, config.n_nodes).repeat(n_layers, 1)
        for name in ("threshold", "ceiling", "lowest", "per_g", "read", "first", "per_node", "q"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("log_e", torch.zeros(()), persistent=False)
        self.register_load_state_dict_post_hook(lambda model, _: model.adopt_q(model.q))  # type: ignore[no-untyped-call]
        if self.n_moments:
            self.moments = LayerMoments(self.members, self.places, radial=config.radial, centred=config.centred)
            self.register_buffer("units", torch.ones(()))
            self.register_load_state_dict_post_hook(lambda model, _: model.adopt_units(model.units))  # type: ignore[no-untyped-call]
            self.adopt_units(torch.full((1 if config.radial else 2, n_layers), 10.0))
        self.adopt_tables(1e-3, 1.0, torch.full((self.n_globals,), -G_MAX), g, nodes, q)

    def adopt_units(self, units: Tensor) -> None:
        """Count moments along x and y, or of r, in these lengths [mm], (2, L) or (1, L)."""
        self.units = units.to(self.places)
        self.moments.count_in(self.units)

    def adopt_tables(
        self, threshold: float, ceiling: float, lowest: Tensor, g: Tensor, nodes: Tensor, q: Tensor
    ) -> None:
        """Set the tables.

        threshold: of voxels [MeV]; ceiling: largest E_tot/E_inc; g: raw layer features (G, n_read) at regular values
        from ``lowest`` (G,) to G_MAX; nodes: regular ln(E_l/MeV), (L, n_nodes); q: ln of the energy of a voxel [MeV],
        (n_nodes, K, n_knots), at regular margins from 0 to REACH.
        """
        self.threshold, self.ceiling = torch.tensor(threshold), torch.tensor(float(ceiling))
        self.lowest, self.per_g = lowest.float(), ((self.config.n_read - 1) / (G_MAX - lowest)).float()
        self.read = torch.stack([g[:, :-1], g.diff(dim=1)], dim=2).flatten(0, 1).float()
        self.first, self.per_node = nodes[:, 0].float(), (1 / (nodes[:, 1] - nodes[:, 0])).float()
        self.adopt_q(q)

    def adopt_q(self, q: Tensor) -> None:
        """Set the tables q (n_nodes, K, n_knots)."""
        self.q = q.float()
        # Rows (a, b, c, d) of a + b p + c f + d p f: p along the margins, f along the nodes. Cell 0 is the empty voxel.
        upper = torch.cat([q[1:], q[-1:]])
        low, high = (torch.cat([torch.full_like(v[..., :1], EMPTY), v], dim=2) for v in (q, upper))
        zero = torch.zeros_like(q[..., :1])
        slope, slope_high = (torch.cat([zero, v.diff(dim=2), zero], dim=2) for v in (q, upper))
        rows = torch.stack([low, slope, high - low, slope_high - slope], dim=3)
        self.log_e = rows.transpose(0, 1).flatten(0, 2).float()

    def objectives(self) -> Iterator[Objective]:
        layers, voxels = list(self.layers.parameters()), list(self.voxels.parameters())
        steps = self.config.pair_steps if self.pairs is not None else None
        by_flow = self.config.layers_by == "flow"
        if steps is not None:
            if not by_flow:
                yield Objective("layers", layers, self._layer_loss, until=steps, rate=self.config.layer_rate)
            yield Objective("pairs", voxels, self._pair_loss, until=steps)
        if self.imposes:
            networks = [v for v in (self.newton, self.newton_rest) if v is not None]
            yield Objective("tilt", [p for v in networks for p in v.parameters()], self._tilt_loss, every=2)
        if self.judge is not None:
            judge = list(self.judge.parameters())
            yield Objective("discriminator", judge, self._judge_loss, since=steps or 0, betas=(0.0, 0.99))
        if steps is None:
            yield Objective("showers", layers + voxels, self._shower_loss)
        elif not by_flow:
            yield Objective("showers", layers, self._shower_loss, since=steps)

    def _layer_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Pseudo-Huber distance of g from the teacher's, and of the total energy where no feature holds it."""
        assert self.pairs is not None
        index = torch.randint(len(self.pairs.layers[0]), (LAYER_BATCH * len(x),), generator=generator)
        z, c, g = (v[index].to(x) for v in self.pairs.layers)
        made = self._layer_features(z, c)
        loss = _pseudo_huber(made - g).mean()
        if self.config.layers != "logs":
            return loss
        total, wanted = (torch.logsumexp(self._layers_of(v, c)[1], dim=1) for v in (made, g))
        spread = (wanted - torch.log(self.sizes.incident_energy(c).to(wanted))).std().clamp_min(1e-6)
        return loss + TOTAL_WEIGHT * _pseudo_huber((total - wanted) / spread).mean()

    def _pair_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Pseudo-Huber distance of m from the teacher's, given its g."""
        assert self.pairs is not None
        pairs = self.pairs
        index = torch.randint(len(pairs.z), (len(x),), generator=generator)
        z, c, g, wanted = (v[index].to(x) for v in (pairs.z, pairs.c, pairs.g, pairs.m))
        m, value = self._margins(z, torch.cat([g, c], dim=1), self._layers_of(g, c)[0])
        m = torch.where(m >= 0, value, m)
        # How far below does not matter, but only where it belongs there: elsewhere the way back needs its gradient.
        m = torch.where(wanted < -BELOW, m.clamp_min(-BELOW), m)
        return _pseudo_huber(m - wanted.clamp_min(-BELOW)).mean()

    def _tilt_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Pseudo-Huber distance of lambda b from the exact one, by energy, in layers that can have their moments."""
        with torch.autocast(x.device.type, enabled=False):
            return self._off_tilt(x.float(), c.float(), generator)

    def _off_tilt(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            made = self._decoded(randn_like(x.new_empty(len(x), self.n_noise), generator), c)
        loss = x.new_zeros(())
        for network, excess, wanted in made.tilts:
            with torch.no_grad():
                exact, reached = self.moments.exact(excess, wanted)
                exact = exact.clamp(-LARGEST, LARGEST)
                energy = excess * torch.exp(exact)
                energy = energy * self.members.spread(reached / self.members.sums(energy).clamp_min(1e-9))
            off = self._tilt(network, excess, wanted, made.given) - exact
            loss = loss + (energy * _pseudo_huber(off, 0.1)).sum(1).mean() / 0.1**2
        return loss

    def _shower_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        real, fake = self._observed(x, c, generator)
        loss = energy_distance(real, fake, self.config.n_slices, generator)
        if self.judge is not None:
            loss = loss + self.config.judge_weight * functional.softplus(-self.judge(fake)).mean()
        if self.pairs is not None and self.config.pair_weight:
            loss = loss + self.config.pair_weight * self._layer_loss(x, c, generator)
        return loss

    def _judge_loss(self, x: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        """Real against generated observables, with a gradient penalty (R1, Mescheder et al. 2018, 1801.04406)."""
        assert self.judge is not None
        with torch.no_grad():
            real, fake = self._observed(x, c, generator)
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            real, fake = real.float().requires_grad_(), fake.float()
            of_real = self.judge(real)
            slope = torch.autograd.grad(of_real.sum(), real, create_graph=True)[0]
            loss = functional.softplus(-of_real).mean() + functional.softplus(self.judge(fake)).mean()
            return torch.as_tensor(loss + 0.5 * JUDGE_GAMMA * slope.square().sum(1).mean())

    def _observed(self, x: Tensor, c: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Whitened observables of real showers and of new ones of the same particles, (N, D) each."""
        made = self._decoded(randn_like(x.new_empty(len(x), self.n_noise), generator), c)
        real = self._observables(x, (x > 0).to(x.dtype), c)
        soft = torch.sigmoid(SHARPNESS * made.m)
        filled = (made.m > 0).to(x.dtype) + soft - soft.detach()
        return whitened(real, self._observables(made.e, filled, c))

    def _observables(self, e: Tensor, filled: Tensor, c: Tensor) -> Tensor:
        """Conditions, and each layer's energy, number of filled voxels, centre, widths and brightest voxels: (N, D)."""
        sums = self.members.sums
        energy = sums(e).clamp_min(self.threshold)
        out = [c, torch.log(energy), torch.log(e.sum(1, keepdim=True).clamp_min(self.threshold)), sums(filled)]
        for place in self.places:
            place = place / place.std().clamp_min(1e-9)
            mean = sums(e * place) / energy
            variance = sums(e * place**2) / energy - mean**2
            out += [mean, torch.log(variance.clamp_min(0) + 1e-4)]
        for layer in range(self.n_layers):
            part = e[:, self.members.index == layer]
            top = part.topk(min(N_BRIGHTEST, part.shape[1]), dim=1).values
            out.append(torch.log(top.clamp_min(self.threshold)) - torch.log(energy[:, layer : layer + 1]))
        return torch.cat(out, dim=1)

    def _layer_features(self, z: Tensor, c: Tensor) -> Tensor:
        z_g = z[:, : self.n_globals]
        # Beyond, layers that hold next to nothing are common, where the tables of logarithms are steep.
        exact = self.config.layers in ("logs", "ratios") and self.n_layers > FEW_LAYERS
        if isinstance(self.layers, LayerFlow):
            z_g = z_g.double() if exact else z_g
            if self.order == sorted(self.order):
                return self.layers.decode(z_g, c)
            back = sorted(range(len(self.order)), key=self.order.__getitem__)
            return self.layers.decode(z_g[:, back], c)[:, self.order]
        given = torch.cat([z_g, c], dim=1)
        if self.training or not exact:
            return torch.as_tensor(z_g + self.layers(given))
        h = given.double()
        for step in self.layers:
            h = (
                functional.linear(h, step.weight.double(), step.bias.double())
                if isinstance(step, nn.Linear)
                else step(h)
            )
        return z_g + h

    def _decoded(self, z: Tensor, c: Tensor, g: Tensor | None = None) -> Decoded:
        """All steps of the module's docstring; g: features of the layers to use instead of its own."""
        g = self._layer_features(z, c) if g is None else g
        raw, log_layers = self._layers_of(g, c)
        g = g.to(z.dtype)
        given = torch.cat([g, c], dim=1)
        m, value = self._margins(z, given, raw)
        filled, layers = (m >= 0).to(z.dtype), torch.exp(log_layers)
        made = torch.exp(self._log_energy(value, log_layers)) - self.threshold
        made = made.clamp_min(LEAST_EXCESS * self.threshold) * filled
        tilts, n, others, e = [], self.members.sums(filled), filled, None
        if self.newton is not None:
            tilts.append((self.newton, made, self._wanted(raw)))
            made = self._tilted(*tilts[0], given)
        if self.config.brightest:
            top = (made >= self.members.spread(self.members.largest(made))).to(z.dtype)
            top = top * filled if self.config.layers == "fractions" else top  # elsewhere no layer is empty
            part = torch.where(n > 1, raw[:, -self.n_layers :], 1.0)
            e = self.members.spread(part * layers / self.members.sums(top).clamp_min(1.0)) * top
            n, others, layers = n - 1, filled - top, layers * (1 - part)
            made = made * others
            if self.newton_rest is not None:
                part, there = part[:, None], self.moments.of(top)
                wanted = (self._wanted(raw) - part * there) / (1 - part).clamp_min(LEAST_PART)
                tilts.append((self.newton_rest, made, wanted))
                made = self._tilted(*tilts[-1], given)
        n = n.clamp_min(1.0)
        base = torch.minimum(layers / n, 1.00001 * self.threshold)
        share = (layers - n * base) / self.members.sums(made).clamp_min(1e-9)
        rest = self.members.spread(base) * others + self.members.spread(share) * made
        m = torch.where(m >= 0, value, m)
        return Decoded(g, m, rest if e is None else e + rest, given, tilts)

    def _layers_of(self, g: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Layer features before they were Gaussianised (N, G), and ln(E_l/MeV) (N, L)."""
        place = ((g - self.lowest) * self.per_g).clamp(0.0, self.config.n_read - 1 - 1e-3)
        left = place.floor()
        row = left.long() + self.first_g
        raw = (self.read[:, 0][row] + (place - left) * self.read[:, 1][row]).to(c.dtype)
        u = raw[:, : self.n_layers]
        half, middle = self.sizes.log_energies
        log_most = c[:, :1] * half + (middle + torch.log(self.ceiling))  # ln of the largest E_tot [MeV]
        if self.config.layers == "logs":
            return raw, u - (torch.log(torch.exp(u).sum(1, keepdim=True)) - log_most).clamp_min(0.0)
        if self.config.layers == "ratios":
            log_total = log_most + functional.logsigmoid(u @ self.largest[:, None])
            return raw, log_total + torch.log_softmax(u * (1 - self.largest), dim=1)
        if self.config.layers == "rest":
            largest, layers = self.largest[:, None], torch.exp(u)
            total = torch.exp(log_most) * torch.sigmoid(u @ largest)
            others = layers @ (1 - largest)
            scale = ((1 - LEAST_REST) * total / others.clamp_min(1e-9)).clamp_max(1.0)
            return raw, torch.log(torch.where(self.largest > 0, total - scale * others, scale * layers))
        return raw, log_most + functional.softplus(torch.cat([-u, u], dim=1)) @ self.shares

    def _margins(self, z: Tensor, given: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Margins shifted in every layer for the number of filled voxels in ``raw``, which choose the voxels, and those
        that their energies are read at, (N, V) each: a voxel filled without the shift does not take its value from it.
        """
        n_layers, z_v = self.n_layers, z[:, self.n_globals :]
        mu, rho, rate = torch.split(self.voxels(given), [self.rings.n, self.rings.n, n_layers], 1)
        mu, width = self.rings.spread(mu), self.rings.spread(torch.exp(rho.clamp(-4.0, 2.0)))
        own = mu + width * (z_v @ self.root if self.root.dim() == 2 else z_v * self.root)
        wanted, sums, spread = raw[:, n_layers : 2 * n_layers], self.members.sums, self.members.spread
        m = own + spread((wanted - sums(torch.sigmoid(SHARPNESS * own))) * rate)
        if self.config.recount:
            filled = torch.sigmoid(SHARPER * m)
            slope = SHARPER * sums(filled * (1 - filled)).clamp_min(LEAST_SLOPE)
            m = m + spread(((wanted.floor().clamp_min(1.0) - sums(filled)) / slope).clamp(-MOST, MOST))
        if self.config.layers != "fractions":  # in which the border of an empty layer is smeared: it may stay empty
            # One voxel at least to hold the layer's energy.
            m = m + spread((LEAST - self.members.largest(m)).clamp_min(0.0))
        return m, torch.where(own >= 0, own, m)

    def _log_energy(self, m: Tensor, log_layers: Tensor) -> Tensor:
        """q(m, ln E_l), (N, V)."""
        n_nodes, n_knots = self.config.n_nodes, self.config.n_knots
        at = ((log_layers - self.first) * self.per_node).clamp(0.0, n_nodes - 1 - 1e-3)
        place = (m * ((n_knots - 1) / REACH) + 1).clamp(0.0, n_knots - 1e-3)
        node, left = at.floor(), place.floor()
        row = (self.members.spread(node * (n_knots + 1)) + left).int() + self.first_v
        q = functional.embedding(row, self.log_e)
        a, b, slope, slope_b = q[..., 0], q[..., 1], q[..., 2], q[..., 3]  # unbind takes ONNX Runtime longer
        p, f = place - left, self.members.spread(at - node)
        return a + p * b + f * (slope + p * slope_b)

    def _wanted(self, raw: Tensor) -> Tensor:
        """Means of the functions b in every layer that the layer features ask for, (N, K, L)."""
        return self.moments.of_features(raw[:, 2 * self.n_layers : (2 + self.n_moments) * self.n_layers])

    def _tilted(self, network: nn.Sequential, excess: Tensor, wanted: Tensor, given: Tensor) -> Tensor:
        return excess * torch.exp(self._tilt(network, excess, wanted, given).clamp(-LARGEST, LARGEST))

    def _tilt(self, network: nn.Sequential, excess: Tensor, wanted: Tensor, given: Tensor) -> Tensor:
        """lambda b (N, V) of one Newton step towards the moments that are wanted."""
        k, means = self.n_moments, self.moments.means(excess)
        j = network(torch.cat([given, torch.asinh(means).flatten(1)], dim=1)).reshape(-1, k, k, self.n_layers)
        return self.moments.step(j, means, wanted)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        return self._decoded(z, c).e


def _mlp(n_in: int, width: int, depth: int, n_out: int, activation: Activation = "relu") -> nn.Sequential:
    """A network whose last layer starts at zero."""
    sizes = [n_in, *([width] * depth)]
    steps: list[nn.Module] = []
    for a, b in pairwise(sizes):
        steps += [nn.Linear(a, b), ACTIVATIONS[activation]()]
    last = nn.Linear(width, n_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*steps, last)


def feature_order(n_layers: int, per_layer: int, imposed: bool) -> Tensor:
    """Where the student's layer features stand among its teacher's: (G,).

    Imposed moments and what follows them stand one kind after the other, not by layers.
    """
    if not imposed:
        return torch.arange(per_layer * n_layers)
    first, kind = torch.arange(2 * n_layers), torch.arange(per_layer - 2)[:, None]
    return torch.cat([first, 2 * n_layers + ((per_layer - 2) * torch.arange(n_layers) + kind).flatten()])


def _shares(n_layers: int) -> Tensor:
    """(2 L, L): ln E_l - ln(ceiling E_inc) = [-ln u, -ln(1 - u)] @ this, of the layer fractions u (``transforms``)."""
    shares = torch.zeros(2 * n_layers, n_layers)
    shares[0] = 1
    for layer in range(n_layers):
        if layer < n_layers - 1:
            shares[layer + 1, layer] = 1
        shares[n_layers + 1 : n_layers + 1 + layer, layer] = 1
    return -shares


def _pseudo_huber(x: Tensor, scale: float = 0.3) -> Tensor:
    return scale**2 * ((1 + (x / scale) ** 2).sqrt() - 1)
