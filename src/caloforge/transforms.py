"""Invertible maps between energies and features: forward and inverse side by side, statistics as buffers.

N showers, V voxels, L layers. The layer fractions are those of CaloFlow (Krause & Shih 2021, 2106.05285):

    u_0 = E_tot / (c E_inc),    u_l = E_{l-1} / sum_{k >= l-1} E_k   (l = 1 .. L-1)

and every voxel is taken relative to the energy of its layer, w = ln(e / E_l).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Geometry

Layers = Literal["fractions", "logs", "rest", "ratios"]
WITH_LARGEST = ("rest", "ratios")  # in which one layer is special

FEW_LAYERS = 8  # beyond, a detector is deep: far layers say little of one another, and some hold next to nothing
MANY = 16_384  # table entries that are searched instead of compared
LARGEST_COVARIANCE = 2048  # voxels
LARGEST_LOG = 30.0  # of an energy in MeV
GAP = 1e-3  # between empty layers and the threshold, so that a small error of a ratio does not fill them
LEAST_REST = 0.01  # of the energy of a shower, left for the layer that takes the rest
H_MAX = 2.5  # beyond it a regression on standard normal numbers is an extrapolation


class Members(nn.Module):
    """Which voxels a layer has: sums over them, and what their layer has for each of them.

    Both are products with a one-hot matrix, unless all layers have as many voxels: ONNX Runtime takes them many times
    faster than it gathers and scatters.
    """

    index: Tensor  # layer of each voxel, (V,)
    member: Tensor  # the same one-hot, (V, L)

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        index = torch.from_numpy(geometry.layer_index.copy())
        self.register_buffer("index", index, persistent=False)
        member = nn.functional.one_hot(index, geometry.n_layers).float()
        self.register_buffer("member", member, persistent=False)
        self.sizes = [layer.n_voxels for layer in geometry.layers]
        self.alike = len(set(self.sizes)) == 1

    def sums(self, values: Tensor) -> Tensor:
        """Sum over the voxels of each layer: (N, V) -> (N, L)."""
        if self.alike:
            return self._by_layer(values).sum(2) if len(self.sizes) > 1 else values.sum(1, keepdim=True)
        if torch.is_autocast_enabled(values.device.type):  # in which a product is rounded
            return values.new_zeros(values.shape[0], self.member.shape[1]).index_add_(1, self.index, values)
        return values @ self.member.to(values.dtype)

    def spread(self, values: Tensor) -> Tensor:
        """Finite values of the layers at their voxels: (N, L) -> (N, V)."""
        if self.alike:  # by a product: the shape of an expansion takes ONNX operations
            ones = self.member[: self.sizes[0], 0].to(values.dtype)
            return (values[:, :, None] * ones).reshape(-1, len(self.index)) if len(self.sizes) > 1 else values * ones
        if torch.is_autocast_enabled(values.device.type):
            return values.index_select(1, self.index)
        return values @ self.member.T.to(values.dtype)

    def largest(self, values: Tensor) -> Tensor:
        """Largest value of each layer: (N, V) -> (N, L)."""
        if self.alike:
            return self._by_layer(values).amax(2)
        return torch.cat([part.amax(1, keepdim=True) for part in torch.split(values, self.sizes, 1)], dim=1)

    def _by_layer(self, values: Tensor) -> Tensor:
        return values.reshape(-1, len(self.sizes), self.sizes[0])


class LayerFractions(nn.Module):
    """Voxel energies [MeV] <-> logit(u), (N, L), and w, (N, V), with w = -inf in empty voxels.

    threshold: voxels below it [MeV] are empty, in both directions. ceiling: c, so that u_0 < 1; kind: "fractions", or
    "logs" for ln(E_l / MeV) in place of logit(u_l), capped to the ceiling on the way back, or "rest", the same but
    logit(u_0) in place of the layer that holds most on average, ``largest``, which then takes what the others leave, or
    "ratios", logit(u_0) in the same place and ln(E_l / E_largest) of the others.
    Layer energies below the threshold are dequantised to threshold * ``fill`` with fill (N, L) in (0, 1], times GAP in
    "ratios".
    """

    layer_index: Tensor
    ceiling: Tensor
    largest: Tensor  # one-hot, (L,)

    def __init__(self, geometry: Geometry, threshold: float, kind: Layers = "fractions") -> None:
        super().__init__()
        self.threshold, self.n_layers, self.kind = threshold, geometry.n_layers, kind
        if kind in WITH_LARGEST:
            self.register_buffer("largest", nn.functional.one_hot(torch.tensor(0), geometry.n_layers).float())
        self.register_buffer("layer_index", torch.from_numpy(geometry.layer_index.copy()))
        self.members = Members(geometry)
        self.register_buffer("ceiling", torch.ones(()))

    def fit(self, energy: Tensor, incident: Tensor) -> None:
        """Set c from the largest response seen: energy (N, V), incident (N,), in MeV."""
        self.ceiling = (1.02 * (energy.sum(1) / incident).max()).to(torch.float32)
        if self.kind in WITH_LARGEST:
            most = self.layer_sums(energy).mean(0).argmax()
            self.largest = nn.functional.one_hot(most, self.n_layers).to(self.largest)

    def layer_sums(self, values: Tensor) -> Tensor:
        """Sum over the voxels of each layer: (N, V) -> (N, L)."""
        return self.members.sums(values)

    def forward(self, energy: Tensor, incident: Tensor, fill: Tensor) -> tuple[Tensor, Tensor]:
        energy = torch.where(energy < self.threshold, 0.0, energy)
        layers = self.layer_sums(energy)
        w = torch.log(energy) - self.members.spread(torch.log(layers.clamp_min(self.threshold)))
        empty = self.threshold * (GAP if self.kind == "ratios" else 1.0)
        layers = torch.where(layers < self.threshold, empty * fill, layers)
        if self.kind == "logs":
            return torch.log(layers), w
        rest = layers.flip(1).cumsum(1).flip(1)  # rest[:, l] = sum_{k >= l} E_k
        total = rest[:, 0]
        top = (self.ceiling * incident - total).clamp_min(1e-6 * total)
        if self.kind in WITH_LARGEST:
            others = torch.log(layers)
            if self.kind == "ratios":
                others = others - (others * self.largest).sum(1, keepdim=True)
            return torch.where(self.largest > 0, torch.log(total / top)[:, None], others), w
        # logit(u_l) = ln E_{l-1} - ln sum_{k >= l} E_k: as a difference of logarithms it keeps tiny layers exact.
        logits = torch.cat([torch.log(total / top)[:, None], torch.log(layers[:, :-1] / rest[:, 1:])], dim=1)
        return logits, w

    def inverse(self, logits: Tensor, w: Tensor, incident: Tensor) -> Tensor:
        """Voxel energies [MeV], (N, V); each layer sums to the energy that ``logits`` give it."""
        layers = self.layer_energies(logits, incident).to(w.dtype)
        filled = torch.isfinite(w)
        n = self.layer_sums(filled.to(w.dtype))
        # Every filled voxel holds the threshold; what is left of the layer is shared in proportion to the excesses.
        base = torch.minimum(layers / n.clamp_min(1.0), layers.new_tensor(self.threshold))
        whole = torch.exp(w) * self.members.spread(layers)
        excess = torch.where(filled, (whole - self.threshold).clamp_min(1e-6 * self.threshold), 0.0)
        share = (layers - n * base).clamp_min(0.0) / self.layer_sums(excess).clamp_min(1e-20)
        energy = self.members.spread(base) + excess * self.members.spread(share)
        return torch.where(filled, energy, 0.0)

    def layer_energies(self, logits: Tensor, incident: Tensor) -> Tensor:
        """Layer energies [MeV], (N, L); below the threshold they are 0. Best with float64 logits."""
        if self.kind != "fractions":
            layers = self._layers_of_logs(logits, (self.ceiling * incident).to(logits.dtype)[:, None])
            return torch.where(layers < self.threshold, 0.0, layers)
        log_keep = nn.functional.logsigmoid(logits)  # ln u_l
        log_pass = nn.functional.logsigmoid(-logits)[:, 1:].cumsum(1)  # ln prod (1 - u_k)
        total = torch.log(self.ceiling * incident).to(logits.dtype)[:, None] + log_keep[:, :1]
        before = torch.cat([torch.zeros_like(total), log_pass], dim=1)  # energy left in front of layer l
        own = torch.cat([log_keep[:, 1:], torch.zeros_like(total)], dim=1)  # the last layer keeps all that is left
        layers = torch.exp(total + before + own)
        return torch.where(layers < self.threshold, 0.0, layers)

    def _layers_of_logs(self, logits: Tensor, most: Tensor) -> Tensor:
        """Layer energies that sum to ``most`` (N, 1) or less, or to a part of it where ``largest`` takes the rest."""
        if self.kind == "logs":
            layers = torch.exp(logits)
            return layers * (most / layers.sum(1, keepdim=True)).clamp_max(1.0)
        total = most * torch.sigmoid((logits * self.largest).sum(1, keepdim=True))
        if self.kind == "ratios":
            return total * torch.softmax(logits * (1 - self.largest), dim=1)
        others = torch.exp(logits.clamp_max(LARGEST_LOG)) * (1 - self.largest)
        others = others * ((1 - LEAST_REST) * total / others.sum(1, keepdim=True).clamp_min(1e-9)).clamp_max(1.0)
        return others + (total - others.sum(1, keepdim=True)) * self.largest


class Gaussianize(nn.Module):
    """Each feature mapped to a standard normal by its own quantiles; empty entries fill the lowest quantiles.

    Feature v is empty (-inf) with probability p_v. With F_v the distribution of its other values and Phi the normal
    one, x = Phi^-1(p_v + (1 - p_v) F_v(w)) where it is not empty and x = Phi^-1(p_v U), U uniform in (0, 1), where it
    is: dequantisation below the threshold b_v = Phi^-1(p_v). The inverse is a table of K values on a regular grid
    from b_v to x_max, read with linear interpolation; x < b_v is empty again.
    """

    border: Tensor
    table: Tensor

    X_MAX = 4.5

    def __init__(self, n_features: int, n_knots: int = 65) -> None:
        super().__init__()
        self.n_knots = n_knots
        self.register_buffer("border", torch.full((n_features,), -self.X_MAX))
        self.register_buffer("table", torch.linspace(-self.X_MAX, self.X_MAX, n_knots).repeat(n_features, 1))

    def fit(self, w: Tensor) -> None:
        """Set the tables from values w (N, F), -inf where empty."""
        for v in range(w.shape[1]):
            full = w[:, v][torch.isfinite(w[:, v])].double()
            if len(full) == 0:  # never filled: always empty
                self.border[v], self.table[v] = 2 * self.X_MAX, 0.0
                continue
            p = 1 - len(full) / len(w)
            border = float(torch.special.ndtri(torch.tensor(p)).clamp(-self.X_MAX, self.X_MAX - 0.5))
            grid = torch.linspace(border, self.X_MAX, self.n_knots, dtype=torch.float64)
            rank = ((torch.special.ndtr(grid) - p) / (1 - p)).clamp(0, 1)
            values = torch.from_numpy(np.quantile(full.numpy(), rank.numpy()))
            values += 1e-7 * torch.arange(self.n_knots)  # strictly rising, so that the forward map exists
            self.border[v], self.table[v] = border, values.float()

    def _step(self) -> Tensor:
        return (self.X_MAX - self.border).clamp_min(1e-3) / (self.n_knots - 1)

    def forward(self, w: Tensor) -> Tensor:
        """w (N, F) -> x (N, F); empty entries stay -inf, ``dequantise`` fills them."""
        columns = w.T.contiguous()
        right = self._rank(columns).clamp(1, self.n_knots - 1)
        low, high = self.table.gather(1, right - 1), self.table.gather(1, right)
        place = right - 1 + ((columns - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        x = (self.border[:, None] + self._step()[:, None] * place).T
        return torch.where(torch.isfinite(w), x, w)

    def _rank(self, columns: Tensor) -> Tensor:
        """Number of table entries below each value: (F, N) -> (F, N)."""
        if self.table.numel() > MANY:
            return torch.searchsorted(self.table, columns)
        return (self.table[:, None, :] < columns[:, :, None]).sum(2)  # the same, and ONNX can say it

    def dequantise(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Replace -inf by a draw from the normal distribution below the border; uniform (N, F) in [0, 1)."""
        p = torch.special.ndtr(self.border)
        below = torch.special.ndtri((p * uniform).clamp_min(1e-6))
        return torch.where(torch.isinf(x), below, x)

    def inverse(self, x: Tensor) -> Tensor:
        """x (N, F) -> w (N, F), -inf where x is below the border."""
        return torch.where(x < self.border, -torch.inf, self.read(x))

    def read(self, x: Tensor) -> Tensor:
        """The table at x (N, F); below the border its lowest value."""
        place = ((x - self.border) / self._step()).clamp_min(0.0).clamp_max(self.n_knots - 1 - 1e-4)
        left = place.floor()
        index = left.long() + torch.arange(x.shape[1], device=x.device) * self.n_knots
        flat = self.table.reshape(-1)
        low, high = flat[index], flat[index + 1]
        return low + (place - left) * (high - low)


class ConditionalGaussianize(nn.Module):
    """Gaussianize for voxels, with tables that depend on s, the scale of the voxel's layer.

    s (N, L) is about standard normal. Borders (J, V) and tables (J, V, K) are made at J regular nodes of s, from the
    showers nearest to each node, and interpolated linearly in between: at every s the marginals are standard normal.
    """

    border: Tensor
    table: Tensor

    S_MAX = 2.4
    FEWEST = 400  # showers that a table is made of, if there are as many

    def __init__(self, geometry: Geometry, n_knots: int, n_nodes: int) -> None:
        super().__init__()
        self.n_knots, self.n_nodes = n_knots, n_nodes
        self.members = Members(geometry)
        one = Gaussianize(geometry.n_voxels, n_knots)
        self.register_buffer("border", one.border.repeat(n_nodes, 1))
        self.register_buffer("table", one.table.repeat(n_nodes, 1, 1))

    def fit(self, w: Tensor, s: Tensor) -> None:
        """Set the tables from w (N, V), -inf where empty, and s (N, L)."""
        nodes = torch.linspace(-self.S_MAX, self.S_MAX, self.n_nodes)
        half = self.S_MAX / (self.n_nodes - 1) if self.n_nodes > 1 else 2 * self.S_MAX
        border, table = torch.empty_like(self.border), torch.empty_like(self.table)
        for layer in range(s.shape[1]):
            voxels = (self.members.index == layer).nonzero()[:, 0]
            for j, node in enumerate(nodes):
                distance = (s[:, layer].clamp(-self.S_MAX, self.S_MAX) - node).abs()
                n = max(int((distance <= half).sum()), min(self.FEWEST, len(s)))
                near = distance.argsort(stable=True)[:n]
                one = Gaussianize(len(voxels), self.n_knots)
                one.fit(w[near][:, voxels])
                border[j, voxels], table[j, voxels] = one.border, one.table
        self.border, self.table = border, table

    def _place(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Node below and distance from it in units of the spacing, at each voxel: (N, L) -> (N, V) twice."""
        if self.n_nodes == 1:
            zero = self.members.spread(torch.zeros_like(s))
            return zero.long(), zero
        place = (s.clamp(-self.S_MAX, self.S_MAX) + self.S_MAX) / (2 * self.S_MAX) * (self.n_nodes - 1)
        place = self.members.spread(place.clamp_max(self.n_nodes - 1 - 1e-4))
        below = place.floor()
        return below.long(), place - below

    def _mix(self, values: Tensor, index: Tensor, stride: int, f: Tensor) -> Tensor:
        """values[index] and its neighbour at the next node, interpolated; values flat, index and f (N, V)."""
        upper = index + (stride if self.n_nodes > 1 else 0)
        return values[index] * (1 - f) + values[upper] * f

    def borders(self, s: Tensor) -> Tensor:
        """Threshold of each voxel at s (N, L): (N, V)."""
        node, f = self._place(s)
        n_voxels = self.border.shape[1]
        index = node * n_voxels + torch.arange(n_voxels, device=s.device)
        return self._mix(self.border.reshape(-1), index, n_voxels, f)

    def forward(self, w: Tensor, s: Tensor) -> Tensor:
        """w (N, V) -> x (N, V); empty entries stay -inf, ``dequantise`` fills them."""
        return torch.cat([self._forward(a, b) for a, b in zip(torch.split(w, 256), torch.split(s, 256), strict=True)])

    def _forward(self, w: Tensor, s: Tensor) -> Tensor:
        (node, f), border = self._place(s), self.borders(s)
        voxel = torch.arange(w.shape[1], device=w.device)
        upper = (node + 1).clamp_max(self.n_nodes - 1)
        tables = torch.lerp(self.table[node, voxel], self.table[upper, voxel], f[:, :, None].to(self.table.dtype))
        value = w[:, :, None].to(tables.dtype).contiguous()
        right = torch.searchsorted(tables, value).clamp(1, self.n_knots - 1)
        low, high = tables.gather(2, right - 1), tables.gather(2, right)
        place = (right - 1 + ((value - low) / (high - low).clamp_min(1e-12)).clamp(0, 1))[:, :, 0]
        return torch.where(torch.isfinite(w), border + self._step(border) * place, w)

    def _step(self, border: Tensor) -> Tensor:
        return (Gaussianize.X_MAX - border).clamp_min(1e-3) / (self.n_knots - 1)

    def dequantise(self, x: Tensor, s: Tensor, uniform: Tensor) -> Tensor:
        """Replace -inf by a draw from the normal distribution below the border; uniform (N, V) in [0, 1)."""
        p = torch.special.ndtr(self.borders(s))
        return torch.where(torch.isinf(x), torch.special.ndtri((p * uniform).clamp_min(1e-6)), x)

    def inverse(self, x: Tensor, s: Tensor) -> Tensor:
        """x (N, V) -> w (N, V), -inf where x is below the border."""
        (node, f), border = self._place(s), self.borders(s)
        place = ((x - border) / self._step(border)).clamp_min(0.0).clamp_max(self.n_knots - 1 - 1e-4)
        left = place.floor()
        n_voxels = self.border.shape[1]
        voxel = torch.arange(n_voxels, device=x.device)
        index = (node * n_voxels + voxel) * self.n_knots + left.long()
        flat, stride = self.table.reshape(-1), n_voxels * self.n_knots
        low, high = self._mix(flat, index, stride, f), self._mix(flat, index + 1, stride, f)
        return torch.where(x < border, -torch.inf, low + (place - left) * (high - low))


class Decorrelate(nn.Module):
    """v (N, V) <-> y = (v - mu(h)) / sigma(h) C^-1/2: what is left of v given h (N, H), with unit covariance.

    mu and ln sigma^2 are regressions on phi(h): 1, h, the products of two of them (their squares only, for more than
    16) and hinges max(h - k, 0) at fixed knots k. C: covariance of (v - mu)/sigma; only its diagonal for more than
    2048 voxels, or where they are not to be ``correlate``d. near: which of the H numbers the regressions of some voxels
    see, by default all of them. Independent normal y are then a Gaussian copula with the right means, widths and
    correlations, and a network has to learn only what differs from it.
    """

    slopes: Tensor
    widths: Tensor
    root: Tensor
    white: Tensor
    knots: Tensor

    def __init__(self, n_features: int, n_given: int, correlate: bool = True) -> None:
        super().__init__()
        self.full = correlate and n_features <= LARGEST_COVARIANCE
        self.register_buffer("knots", torch.arange(-2.0, 2.1, 0.5), persistent=False)
        n_terms = self._terms(torch.zeros(1, n_given)).shape[1]
        unit = torch.eye(n_features) if self.full else torch.ones(n_features)
        self.register_buffer("slopes", torch.zeros(n_terms, n_features))  # of mu
        self.register_buffer("widths", torch.zeros(n_terms, n_features))  # of ln sigma
        self.register_buffer("root", unit)
        self.register_buffer("white", torch.zeros_like(unit), persistent=False)  # inverse of root, made when needed

    def _terms(self, h: Tensor) -> Tensor:
        n, h = h.shape[1], h.clamp(-H_MAX, H_MAX)
        first, second = torch.triu_indices(n, n) if n <= 16 else torch.arange(n).expand(2, n)
        hinges = (h[:, :, None] - self.knots.to(h.dtype)).clamp_min(0.0).flatten(1)
        return torch.cat([torch.ones_like(h[:, :1]), h, h[:, first] * h[:, second], hinges], dim=1)

    def fit(self, v: Tensor, h: Tensor, near: Sequence[tuple[slice, Tensor]] | None = None) -> None:
        """Set regressions and covariance from v (N, V) and h (N, H); near: voxels and the indices of what they see."""
        n, terms = h.shape[1], self._terms(h.double())
        slopes, widths = (torch.zeros(x.shape, dtype=terms.dtype) for x in (self.slopes, self.widths))
        rest = torch.zeros_like(v, dtype=terms.dtype if self.full else v.dtype)
        for part, seen in near or [(slice(None), torch.arange(n))]:
            columns = self._columns(seen, n)
            own = v[:, part].double()
            slopes[columns, part], widths[columns, part], rest[:, part] = self._regressed(own, terms[:, columns])
        if self.full:
            values, vectors = torch.linalg.eigh(torch.cov(rest.T).reshape(v.shape[1], v.shape[1]))
            root = vectors * values.clamp_min(1e-4).sqrt() @ vectors.T
        else:
            root = rest.std(0).clamp_min(1e-2)
        self.slopes, self.widths, self.root = slopes.float(), widths.float(), root.float()
        self.white = torch.zeros_like(self.white)

    def _columns(self, seen: Tensor, n: int) -> Tensor:
        """Columns of ``_terms`` that hold what is ``seen`` of the n numbers: all, where the products are mixed."""
        if n <= 16 or len(seen) == n:
            return torch.arange(len(self.slopes))
        hinges = 1 + 2 * n + len(self.knots) * seen[:, None] + torch.arange(len(self.knots))
        return torch.cat([torch.zeros(1, dtype=torch.long), 1 + seen, 1 + n + seen, hinges.flatten()])

    def _regressed(self, v: Tensor, terms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes of mu and of ln sigma on the terms (N, T), each (T, V), and (v - mu)/sigma, (N, V)."""
        square = terms.T @ terms + 1e-4 * len(v) * torch.eye(terms.shape[1], dtype=v.dtype)
        slopes = torch.linalg.solve(square, terms.T @ v)
        rest = v - terms @ slopes
        logs = 0.5 * torch.log(rest.square() + 1e-4)
        widths = torch.linalg.solve(square, terms.T @ logs)
        return slopes, widths, rest * torch.exp(-self._bounded(terms @ widths))

    @staticmethod
    def _bounded(log_width: Tensor) -> Tensor:
        return log_width.clamp_min(-4.0).clamp_max(2.0)

    def forward(self, v: Tensor, h: Tensor) -> Tensor:
        if not self.white.any():
            self.white = torch.linalg.inv(self.root) if self.full else 1 / self.root
        terms = self._terms(h)
        rest = (v - terms @ self.slopes) * torch.exp(-self._bounded(terms @ self.widths))
        return rest @ self.white if self.full else rest * self.white

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        terms = self._terms(h)
        rest = y @ self.root if self.full else y * self.root
        return terms @ self.slopes + rest * torch.exp(self._bounded(terms @ self.widths))
