"""The four-momentum of a jet image, and the momenta of its two subjets, as features that are imposed (``tilt``)."""

import numpy as np
import torch
from torch import Tensor, nn

from .geometry import Geometry
from .tilt import Tilt, scaled_to

BELOW = -0.25  # phi of the lower half of a jet image
SOFT = 7e-3  # of the jet's pT: pixels below keep theirs, more or less
LEAST, MOST = 1e-4, 50.0  # share of pT in a part of the image that is scaled, and by how much at most
NEAR = 0.4  # pixels between the centre of the second subjet and its brightest pixel


class JetMomentum(nn.Module):
    """Pixels [MeV] (N, V) <-> q (N, Q): ln pT, mass [MeV], eta and phi of the jet. The axes are x = eta, y = phi.

    A pixel of pT p_k adds p_k (cos phi_k, sin phi_k, sinh eta_k, cosh eta_k) to the four-momentum. subjets: also ln pT,
    mass, eta and phi of the pixels below phi = BELOW, where the second subjet is, the shares of the jet's pT in the
    pixel of the middle, where the first one is, and in the eight around it, and the logarithm of the share that the
    brightest pixel has of those below, which gets it before the others are tilted. Pixels with less than SOFT of pT are
    changed little, so that they keep their spectrum.
    """

    n_values: int
    parts: Tensor  # below, the middle, around it, and the rest, one-hot (V, 4)
    places: Tensor  # eta and phi, in pixels (2, V)

    def __init__(self, geometry: Geometry, subjets: bool = False) -> None:
        super().__init__()
        eta, phi = geometry.centres()[:, :2].T
        basis = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta), np.cosh(eta)], axis=1)
        self.tilt = Tilt(basis, soft=SOFT)
        self.n_values = 11 if subjets else 4
        if subjets:
            pitch = np.ptp([eta, phi], axis=1) / (np.sqrt(len(eta)) - 1)
            edge = 1.5 * pitch  # of the square of nine pixels
            near = (abs(eta) < edge[0]) & (abs(phi) < edge[1])
            below, middle = phi < BELOW, np.arange(len(eta)) == np.argmin(eta**2 + phi**2)
            around = near & ~middle & ~below
            basis = np.concatenate([basis, basis * below[:, None], np.stack([middle, around], axis=1)], axis=1)
            parts = np.stack([below, middle, around, ~(below | middle | around)], axis=1)
            self.register_buffer("parts", torch.from_numpy(parts.astype(float)), persistent=False)
            self.pitch = pitch.tolist()
            places = np.stack([eta, phi]) / pitch[:, None]
            self.register_buffer("places", torch.from_numpy(places).float(), persistent=False)
            self.first = Tilt(basis, steps=12, furthest=1.0, ridge=0.5, soft=SOFT)

    def values(self, pixels: Tensor, uniform: Tensor | None = None) -> Tensor:
        """q of the images, in float64; uniform: (N, Q) in (0, 1], spreads what a single pixel below gives exactly."""
        if self.n_values == 4:
            return torch.stack(_jet_of(self.tilt.sums(pixels)[:, 0]), dim=1)
        sums = self.first.sums(pixels)[:, 0]
        jet = _jet_of(sums[:, :4])
        log_pt, mass, eta, phi = _jet_of(sums[:, 4:8])
        u = torch.full((len(pixels), self.n_values), 0.5).double() if uniform is None else uniform.double()
        below = [
            torch.where(log_pt > 0, log_pt, u[:, 4]), torch.hypot(mass, 1e-3 * u[:, 5] * torch.exp(log_pt)),
            eta + 1e-3 * (u[:, 6] - 0.5), phi + 1e-3 * (u[:, 7] - 0.5),
        ]  # fmt: skip
        shares = sums[:, 8:] * torch.exp(-jet[0])[:, None] + 1e-3 * (u[:, 8:10] - 0.5)
        under = pixels.double() * self.parts[:, 0]
        brightest = torch.log(under.amax(1).clamp_min(1e-9) / under.sum(1).clamp_min(1e-9)) - 1e-3 * u[:, 10]
        return torch.cat([torch.stack([*jet, *below], dim=1), shares, brightest[:, None]], dim=1)

    def impose(self, pixels: Tensor, q: Tensor) -> Tensor:
        """Pixels (N, V) whose jet has q (N, Q)."""
        q = q.double()
        jet = _momentum_of(q[:, :4])
        if self.n_values == 4:
            return self.tilt.impose(pixels, jet[:, None])
        pixels = self.scaled(pixels, q)
        middle = q[:, 8:10].clamp_min(0.0) * torch.exp(q[:, :1])
        top, pixels = self._brightest(pixels, q)
        sums = torch.cat([jet, _momentum_of(q[:, 4:8]), middle], dim=1)[:, None]
        pixels = top + self.first.impose(pixels, sums - self.first.sums(top))
        return self.tilt.impose(pixels, jet[:, None])  # exactly, even where the pixels cannot have all of it

    def missing(self, pixels: Tensor, q: Tensor) -> Tensor:
        """What ``scaled`` pixels have more than q asks for, (N, Q), 0 for second subjets that are not there.

        With gradients, for training: a generator that leaves little to the tilt keeps its images as they are.
        """
        found = self.values(pixels)
        missing = found - q
        if self.n_values == 4:
            return missing
        there = (q[:, 4:5] > 1.0) & (found[:, 4:5] > 1.0)
        below = torch.zeros(self.n_values, dtype=torch.bool, device=q.device)
        below[4:8], below[10] = True, True
        return torch.where(there | ~below, missing, 0.0)

    def scaled(self, pixels: Tensor, q: Tensor) -> Tensor:
        """Each part of the image brought to its pT, (N, V): the tilt finds its way from nearby. An image of q stays."""
        q, energy = q.double(), pixels.double()
        if self.n_values == 4:
            found = _jet_of(self.tilt.sums(pixels)[:, 0])[0]
            return (energy * torch.exp(q[:, 0] - found)[:, None]).to(pixels.dtype)
        pt, sums = torch.exp(q[:, 0]), energy @ self.parts
        least = LEAST * pt[:, None]
        axis = torch.stack([torch.cos(q[:, 3].float()), torch.sin(q[:, 3].float())], dim=1).double()
        plane = self.tilt.basis[0, :, :2]  # cos phi and sin phi
        across = [(energy * part) @ plane for part in self.parts.T]
        wanted = torch.cat([torch.exp(q[:, 4:5]), q[:, 8:10].clamp_min(0.0) * pt[:, None]], dim=1)
        have = torch.cat([across[0].square().sum(1, keepdim=True).clamp_min(1e-12).sqrt(), sums[:, 1:3]], dim=1)
        along = torch.stack([(vector * axis).sum(1) for vector in across], dim=1)  # the jet's axis in the plane
        factor = torch.where(sums[:, :3] > least, _bounded(wanted / have.clamp_min(1e-6)), 1.0)
        rest = (pt - (along[:, :3] * factor).sum(1)) / along[:, 3].clamp_min(1e-6)
        rest = torch.where(along[:, 3] > least[:, 0], _bounded(rest), 1.0)
        total = sums * torch.cat([factor, rest[:, None]], dim=1)
        return scaled_to(total, energy[:, None] * self.parts.T, SOFT * pt[:, None, None]).sum(1).to(pixels.dtype)

    def _brightest(self, pixels: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The brightest pixel of those below, near their centre in q, with its share, and all the others (N, V)."""
        eta, phi = (q[:, k + 6 : k + 7].float() / self.pitch[k] for k in range(2))
        away = (self.places[0] - eta) ** 2 + (self.places[1] - phi) ** 2
        under = pixels * self.parts[:, 0].to(pixels.dtype)
        near = under * torch.exp(-away / (2 * NEAR**2)).to(pixels.dtype)
        chosen = ((near >= near.amax(1, keepdim=True)) & (near > 0)).to(pixels.dtype)
        whole, left = under.sum(1, keepdim=True), (under * (1 - chosen)).sum(1, keepdim=True)
        share = torch.exp(q[:, 10:]).clamp_max(1.0).to(pixels.dtype)
        share = torch.where(left > 0, share, 1.0)
        top = chosen * share * whole / chosen.sum(1, keepdim=True).clamp_min(1.0)
        others = scaled_to(
            ((1 - share) * whole)[:, 0].double(), (under * (1 - chosen)).double(), SOFT * torch.exp(q[:, :1])
        )
        return top, pixels - under + others.to(pixels.dtype)


def _bounded(factor: Tensor) -> Tensor:
    return factor.clamp_min(1 / MOST).clamp_max(MOST)


def _jet_of(sums: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ln(pT / MeV), mass [MeV], eta and phi of four-momenta (N, 4)."""
    px, py, pz, energy = sums.unbind(1)
    # Where there is nothing, or no mass, the gradients of the roots are 0 and not infinite.
    pt = (px**2 + py**2).clamp_min(1e-18).sqrt()
    mass = (energy**2 - pt**2 - pz**2).clamp_min(1e-6).sqrt()
    return torch.log(pt), mass, torch.asinh(pz / pt), torch.atan2(py, px + 1e-9)


def _momentum_of(q: Tensor) -> Tensor:
    """Four-momenta (N, 4) of ln(pT / MeV), mass [MeV], eta and phi."""
    log_pt, mass, eta, phi = q.unbind(1)
    pt, mass = torch.exp(log_pt), mass.clamp_min(0.0)
    up, down = 0.5 * torch.exp(eta), 0.5 * torch.exp(-eta)  # ONNX Runtime has no sinh and cosh in float64
    energy = (pt**2 * (up + down) ** 2 + mass**2).sqrt()
    # sin and cos of an angle below pi in float32: enough, and what ONNX Runtime has.
    along, across = (f(phi.float()).double() for f in (torch.cos, torch.sin))
    return torch.stack([pt * along, pt * across, pt * (up - down), energy], dim=1)
