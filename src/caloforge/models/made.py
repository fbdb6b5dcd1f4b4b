"""Masked autoregressive splines: the blocks of CaloFlow, and flows made of them.

MADE (Germain et al. 2015, 1502.03509) is a network whose output i reads features 1 .. i-1 only. Inputs have degrees
1 .. D, hidden units degrees m, and a weight from a to b stays where m_b >= m_a, in the last layer where i > m_a:

    h = ReLU(W x + b + ReLU(V c + d)),   h <- ReLU(W' h + b'),   theta = W'' h + b''

theta (N, 3 K - 1, D) are the parameters of one spline per feature (``splines``); the logits of widths and heights are
divided by the square root of the width of the network. A block maps x -> y = spline(x; theta(x, c)) in one pass, and
back feature by feature. Hidden units are sorted by degree, so what feature i reads is a prefix of every layer, and
going back computes every unit once: as many multiplications as one pass, though in D steps.
"""

import math
from bisect import bisect_right
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .splines import n_parameters, spline

Degrees = Literal["cyclic", "even"]


class MaskedLinear(nn.Module):
    """A linear layer that keeps the weights of ``keep`` (n_out, n_in) only; the others are 0 and stay so.

    before, behind: degrees of the inputs and outputs; strict: whether an output reads lower degrees only.
    """

    before: Tensor
    behind: Tensor

    def __init__(self, before: Tensor, behind: Tensor, *, strict: bool = False) -> None:
        super().__init__()
        linear = nn.Linear(len(before), len(behind))
        self.weight, self.bias, self.strict = linear.weight, linear.bias, strict
        self.register_buffer("before", before, persistent=False)
        self.register_buffer("behind", behind, persistent=False)
        with torch.no_grad():
            self.weight.mul_(self.keep())

    def keep(self) -> Tensor:
        return self.behind[:, None] > self.before if self.strict else self.behind[:, None] >= self.before

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if weight.requires_grad and torch.is_grad_enabled():  # a weight that is 0 and gets no gradient needs no mask
            weight = torch.where(self.keep(), weight, 0.0)
        return functional.linear(x, weight, self.bias)


class MADE(nn.Module):
    """Features (N, D) and context (N, C) -> theta (N, 3 K - 1, D).

    n_hidden: masked layers of ``width`` after the first; degrees of hidden unit j: "cyclic", j mod (D - 1) + 1 as
    published, where a network narrower than D - 1 reads its first features only, or "even", over all of 1 .. D - 1.
    """

    def __init__(
        self, n: int, n_context: int, *, width: int, n_hidden: int, bins: int, dropout: float, degrees: Degrees
    ) -> None:
        super().__init__()
        self.n, self.bins, self.scale = n, bins, 1 / math.sqrt(width)
        units = _degrees(n, width, degrees)
        features, hidden = torch.arange(1, n + 1), torch.tensor(units)
        self.n_ready = [bisect_right(units, known) for known in range(n + 1)]  # units that the known features fix
        self.enter = MaskedLinear(features, hidden)
        self.context = nn.Linear(n_context, width)
        self.hidden = nn.ModuleList(MaskedLinear(hidden, hidden) for _ in range(n_hidden))
        self.leave = MaskedLinear(hidden, features.repeat(n_parameters(bins)), strict=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = functional.relu(self.enter(x) + functional.relu(self.context(c)))
        for layer in self.hidden:
            h = self.dropout(functional.relu(layer(h)))
        return self._scaled(self.leave(h).unflatten(1, (n_parameters(self.bins), self.n)))

    def _scaled(self, theta: Tensor) -> Tensor:
        return torch.cat([theta[:, : 2 * self.bins] * self.scale, theta[:, 2 * self.bins :]], dim=1)

    def solve(self, y: Tensor, c: Tensor, bound: float, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """x of y = spline^-1(x; theta(x, c)), or of y = spline(x; theta(x, c)) if ``inverse``, feature by feature.

        Returns x (N, D) and ln of its slopes dx_i/dy_i (N, D), without dropout.
        """
        given = self.enter.bias + functional.relu(self.context(c))
        x, slopes, layers = y[:, :0], y[:, :0], [y[:, :0] for _ in (0, *self.hidden)]
        for i in range(self.n):
            ready, soon = self.n_ready[i], self.n_ready[i + 1]
            if i == 0:
                layers = self._read(x, layers, given, (0, ready))
            rows = slice(i, None, self.n)
            theta = self.leave.bias[rows].expand(y.shape[0], -1)
            if ready:
                theta = theta + functional.linear(layers[-1], self.leave.weight[rows, :ready])
            new, slope = spline(y[:, i : i + 1], self._scaled(theta[:, :, None]), bound, inverse=inverse)
            x, slopes = torch.cat([x, new], dim=1), torch.cat([slopes, slope], dim=1)
            layers = self._read(x, layers, given, (ready, soon))
        return x, slopes

    def _read(self, x: Tensor, layers: list[Tensor], given: Tensor, units: tuple[int, int]) -> list[Tensor]:
        """Hidden layers, (N, units[0]) each, with the units of the newly known features, (N, units[1])."""
        a, b = units
        if a == b:
            return layers
        known, new = x.shape[1], given[:, a:b]
        if known:
            new = new + functional.linear(x, self.enter.weight[a:b, :known])
        new = functional.relu(new)
        out = [torch.cat([layers[0], new], dim=1)]
        for layer, old in zip(self.hidden, layers[1:], strict=True):
            new = functional.relu(functional.linear(out[-1], layer.weight[a:b, :b], layer.bias[a:b]))  # type: ignore[index]
            out.append(torch.cat([old, new], dim=1))
        return out


def _degrees(n: int, width: int, kind: Degrees) -> list[int]:
    """Degrees of the hidden units, ascending; 0 where there is one feature, which reads the context alone."""
    if n == 1:
        return [0] * width
    cyclic = sorted(j % (n - 1) + 1 for j in range(width))
    return cyclic if kind == "cyclic" else [j * (n - 1) // width + 1 for j in range(width)]


class Path(NamedTuple):
    """States between the blocks from start to end, n + 1 of (N, D); theta of the blocks on the way where the way takes
    one pass, (N, 3 K - 1, D) each; ln |d end/d start| (N,)."""

    states: list[Tensor]
    thetas: list[Tensor]
    log_slope: Tensor

    @property
    def end(self) -> Tensor:
        return self.states[-1]


class AutoregressiveFlow(nn.Module):
    """Features <-> normals z by blocks of MADE and splines, after each of which the features are put in another order.

    fast: the way that takes one pass per block, "density", to the noise, as in a masked autoregressive flow (MAF,
    Papamakarios et al. 2017, 1705.07057), whose networks read the features, or "decode", from it, as in an inverse
    autoregressive flow (IAF, Kingma et al. 2016, 1606.04934), whose networks read the noise. Block k takes the state
    x_k to x_{k+1} = spline(x_k; theta)[orders[k]] either way, with theta of x_k in a MAF and of x_{k+1} in an IAF.
    orders, and the inverse of each, places: (n_blocks, D).
    """

    orders: Tensor
    places: Tensor

    def __init__(self, blocks: list[MADE], orders: Tensor, *, bound: float, fast: Literal["density", "decode"]) -> None:
        super().__init__()
        self.blocks, self.bound, self.fast = nn.ModuleList(blocks), bound, fast
        self.register_buffer("orders", orders)
        self.register_buffer("places", orders.argsort(1))

    def encode(self, x: Tensor, c: Tensor) -> Path:
        """From features x (N, D) with context (N, C) to noise."""
        # The shape, not len(x): an exported graph would keep the number of showers it was traced with.
        states, thetas, total = [x], [], x.new_zeros(x.shape[0])
        for block, order in zip(self.blocks, self.orders, strict=True):
            if self.fast == "density":
                thetas.append(block(x, c))
                x, slopes = spline(x, thetas[-1], self.bound)
            else:
                x, slopes = block.solve(x, c, self.bound, inverse=False)  # type: ignore[operator]
            x, total = x[:, order], total + slopes.sum(1)
            states.append(x)
        return Path(states, thetas, total)

    def decode(self, z: Tensor, c: Tensor) -> Path:
        """From noise z (N, D) with context (N, C) to features."""
        states, thetas, total = [z], [], z.new_zeros(z.shape[0])
        for k in reversed(range(len(self.blocks))):
            block, y = self.blocks[k], z[:, self.places[k]]
            if self.fast == "density":
                z, slopes = block.solve(y, c, self.bound, inverse=True)  # type: ignore[operator]
            else:
                thetas.append(block(y, c))
                z, slopes = spline(y, thetas[-1], self.bound, inverse=True)
            total = total + slopes.sum(1)
            states.append(z)
        return Path(states, thetas, total)

    def log_prob(self, x: Tensor, c: Tensor) -> Tensor:
        """ln p(x | c), (N,)."""
        path = self.encode(x, c)
        return path.log_slope - 0.5 * (path.end.square() + math.log(2 * math.pi)).sum(1)
