"""Monotonic rational-quadratic splines (Durkan et al. 2019, 1906.04032), both directions in closed form.

A spline maps [-B, B] to itself through K bins; outside it is the identity, joined with slope 1. Bin k goes from
(x_k, y_k) to (x_k + w, y_k + h) with slopes d_0 and d_1 at its ends. With s = h / w, xi = (x - x_k) / w, eta = y - y_k:

    y = y_k + h (s xi^2 + d_0 xi (1 - xi)) / q,      q = s + r xi (1 - xi),      r = d_0 + d_1 - 2 s
    dy/dx = s^2 (d_1 xi^2 + 2 s xi (1 - xi) + d_0 (1 - xi)^2) / q^2
    xi = 2 c / (-b - sqrt(b^2 - 4 a c)),     a = h (s - d_0) + eta r,  b = h d_0 - eta r,  c = -s eta

The root is the one without cancellation, so that float32 inverts it. Widths, heights and slopes have lower bounds for
the same reason. Bins are found by comparison and read by gather, which ONNX Runtime has.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

MIN_BIN = 1e-3  # of the width and height of the box
MIN_SLOPE = 1e-3
UNIT_SLOPE = math.log(math.expm1(1 - MIN_SLOPE))  # softplus(UNIT_SLOPE) + MIN_SLOPE = 1


def n_parameters(bins: int) -> int:
    """Numbers that describe one spline: logits of K widths and of K heights, K - 1 inner slopes."""
    return 3 * bins - 1


def spline(x: Tensor, parameters: Tensor, bound: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Images of x (N, D) under one spline each, and ln of the slopes there, both (N, D).

    parameters: (N, 3 K - 1, D), all 0 for the identity; bound: B. inverse: x are images, the result their origins and
    ln of the slopes of the inverse.
    """
    bins = (parameters.shape[1] + 1) // 3
    widths, heights, inner = parameters.split([bins, bins, bins - 1], dim=1)  # type: ignore[no-untyped-call]
    shares = torch.softmax(torch.stack([widths, heights], dim=1), dim=2)
    corners = _summing(bins, bound, x) @ shares  # x_k and y_k, (N, 2, K + 1, D)
    inside = x.clamp(-bound, bound)
    place = (inside[:, None] >= corners[:, int(inverse), 1:-1].detach()).sum(1, keepdim=True)  # k, (N, 1, D)
    ends = torch.cat([place, place + 1], dim=1)
    found = corners.gather(2, ends[:, None].expand(-1, 2, -1, -1))
    (x_k, x_next), (y_k, y_next) = found[:, 0].unbind(1), found[:, 1].unbind(1)
    raw = functional.pad(inner, (0, 0, 1, 1)).gather(1, ends)
    d_0, d_1 = (functional.softplus(raw + UNIT_SLOPE) + MIN_SLOPE).unbind(1)
    w, h = x_next - x_k, y_next - y_k
    s = h / w
    r = d_0 + d_1 - 2 * s
    if inverse:
        eta = inside - y_k
        b, c = h * d_0 - eta * r, -s * eta
        root = (b.square() - 4 * (h * s - b) * c).clamp_min(0).sqrt()  # a = h s - b
        xi = -2 * c / (b + root)
    else:
        xi = (inside - x_k) / w
    rest = 1 - xi
    mixed = xi * rest
    q = s + r * mixed
    log_slope = torch.log((d_1 * xi.square() + 2 * s * mixed + d_0 * rest.square()) * (s / q).square())
    image = x_k + w * xi if inverse else y_k + h * (s * xi.square() + d_0 * mixed) / q
    return image + (x - inside), -log_slope if inverse else log_slope


def _summing(bins: int, bound: float, like: Tensor) -> Tensor:
    """Matrix (K + 1, K) that makes corners from -B to B of shares (K,) that sum to 1, no bin below MIN_BIN."""
    full = torch.ones(bins + 1, bins, dtype=like.dtype, device=like.device)
    least = MIN_BIN * torch.arange(bins + 1, dtype=like.dtype, device=like.device)
    return 2 * bound * ((1 - MIN_BIN * bins) * full.tril(-1) + least[:, None]) - bound
