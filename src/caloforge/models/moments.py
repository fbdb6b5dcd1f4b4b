"""Moments of the voxels of every layer, and the exponential tilt that changes them, for students (``one_step``).

Voxels e become e exp(lambda b), b = (x, y, x^2, y^2, xy), or (r, r^2). ``tilt`` finds lambda by Newton's method, which
takes matrices of every shower and layer; here somebody else knows the inverse matrix, J, and one step suffices.
"""

import torch
from torch import Tensor, nn

from ..transforms import Members

# Powers of x and y, or of r, up to the fourth; of a layer the first N_PLANAR or N_RADIAL after 1 are its moments.
PLANAR = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1), *((n - k, k) for n in (3, 4) for k in range(n + 1)))
RADIAL = tuple((n,) for n in range(5))
N_PLANAR, N_RADIAL = 5, 2
LARGEST = 2.0  # |lambda b|
NEWTON_STEPS = 12  # of the exact lambda
NEAR = 0.02  # of the moments that are asked for, in their spread: where Newton's method arrives


class LayerMoments(nn.Module):
    """K moments in each of L layers; powers of the places up to the fourth, P with 1, make the derivatives.

    radial: of r in place of x and y; centred: with b about the centre that is there, for showers off the axis.
    """

    places: Tensor  # (2, V) [mm], or of r (1, V)
    basis: Tensor  # powers of the voxels' places, (V, P L), each in the columns of its layer, or (L, V/L, P)

    def __init__(self, members: Members, places: Tensor, *, radial: bool, centred: bool) -> None:
        super().__init__()
        self.radial, self.centred = radial, centred and not radial
        self.powers: tuple[tuple[int, ...], ...] = RADIAL if radial else PLANAR
        self.k, self.n_known = N_RADIAL if radial else N_PLANAR, len(self.powers) - 1
        self.members, self.n_layers = members, len(members.sizes)
        self.alike = members.alike and self.n_layers > 1
        self.register_buffer("places", places.norm(dim=0, keepdim=True) if radial else places, persistent=False)
        self.register_buffer("basis", torch.ones(()), persistent=False)

    def count_in(self, units: Tensor) -> None:
        """Count in these lengths [mm], (2, L) or (1, L)."""
        places = self.places / units[:, self.members.index]
        values = torch.stack([(places ** torch.tensor(power)[:, None]).prod(0) for power in self.powers], dim=1)
        if self.alike:
            self.basis = values.reshape(self.n_layers, -1, len(self.powers))
        else:
            self.basis = (values[:, :, None] * self.members.member[:, None, :]).flatten(1)

    def of_features(self, features: Tensor) -> Tensor:
        """Means of b (N, K, L) from x, y, var x, var y and correlation, or r and var r, kind after kind (N, K L)."""
        if self.radial:
            r, rr = torch.split(features, self.n_layers, 1)
            return torch.stack([r, rr + r * r], dim=1)
        x, y, xx, yy, correlation = torch.split(features, self.n_layers, 1)
        means = [x, y, xx + x * x, yy + y * y, correlation * torch.sqrt(xx * yy) + x * y]
        return torch.cat(means, dim=1).reshape(-1, self.k, self.n_layers)

    def means(self, e: Tensor) -> Tensor:
        """Means of all powers but 1 in every layer, (N, P - 1, L), of voxels (N, V)."""
        return self._means(e, self.basis)

    def of(self, e: Tensor) -> Tensor:
        """Means of the K functions b in every layer, (N, K, L), of voxels (N, V)."""
        size = 1 + self.k
        return self._means(e, self.basis[..., : size if self.alike else size * self.n_layers])

    def step(self, j: Tensor, means: Tensor, wanted: Tensor) -> Tensor:
        """lambda b (N, V) of the Newton step with J (N, K, K, L) from ``means`` to the moments wanted, (N, K, L)."""
        missing = wanted - means[:, : self.k]
        if not self.centred:
            return self._exponent((j * missing[:, None]).sum(2), means, self.basis)
        x, y = torch.split(means[:, :2], 1, 1)
        dx, dy, rest = torch.split(missing, [1, 1, self.k - 2], 1)
        missing = torch.cat([dx, dy, rest - torch.cat([2 * x * dx, 2 * y * dy, x * dy + y * dx], dim=1)], dim=1)
        first, second = torch.split((j * missing[:, None]).sum(2), [2, self.k - 2], 1)
        xx, yy, xy = torch.split(second, 1, 1)
        power = torch.cat([first - torch.cat([2 * xx * x + xy * y, 2 * yy * y + xy * x], dim=1), second], dim=1)
        return self._exponent(power, means, self.basis)

    def exact(self, e: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """lambda b (N, V) by Newton's method, and 1 for layers that have the moments then, (N, L)."""
        dtype, e, wanted, basis, products = e.dtype, e.double(), wanted.double(), self.basis.double(), self._products()
        power, exponent, start = torch.zeros_like(wanted), torch.zeros_like(e), self._means(e, basis)
        tiny = 1e-6 * torch.eye(self.k).to(power)
        for _ in range(NEWTON_STEPS):
            means = self._means(e * torch.exp(exponent.clamp(-LARGEST, LARGEST)), basis)
            first = means[:, : self.k]
            missing = wanted - first
            curvature = means[:, products] - first[:, :, None] * first[:, None]  # (N, K, K, L)
            step = torch.linalg.solve(curvature.movedim(3, 1) + tiny, missing.movedim(2, 1)[..., None])
            power = power + step[..., 0].movedim(1, 2).clamp(-1.0, 1.0)
            exponent = self._exponent(power, start, basis)
        # Of layers that cannot have the moments lambda is of no use.
        reached = (missing.abs() < NEAR * first.std(0).clamp_min(1e-6)).all(1)
        return exponent.to(dtype), reached.to(dtype)

    def _products(self) -> list[list[int]]:
        """Where the products of two functions b stand among the powers, counted after the first one, which is 1."""
        used = self.powers[1 : 1 + self.k]
        return [[self.powers.index(tuple(map(sum, zip(a, b, strict=True)))) - 1 for b in used] for a in used]

    def _means(self, e: Tensor, basis: Tensor) -> Tensor:
        if self.alike:
            sums = (e.reshape(-1, self.n_layers, basis.shape[1]).transpose(0, 1) @ basis).permute(1, 2, 0)
        else:
            sums = (e @ basis).reshape(-1, basis.shape[1] // self.n_layers, self.n_layers)
        return sums[:, 1:] / sums[:, :1].clamp_min(1e-9)

    def _exponent(self, power: Tensor, means: Tensor, basis: Tensor) -> Tensor:
        """lambda (b - <b>) of the voxels, (N, V); lambda (N, K, L)."""
        size = 1 + self.k
        power = torch.cat([-(power * means[:, : self.k]).sum(1, keepdim=True), power], dim=1)
        if not self.alike:
            return power.flatten(1) @ basis[:, : size * self.n_layers].T
        return (power.permute(2, 0, 1) @ basis[:, :, :size].transpose(1, 2)).transpose(0, 1).flatten(1)
