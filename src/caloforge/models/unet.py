"""A conditional 3-D U-net with cylindrical convolutions (Amram and Pedro 2023, 2308.03876).

Images are (N, channels, layer z, first axis, second axis). An angle as first axis is padded by its own other end;
every other axis by zeros. Blocks, with GN a group norm of 8 groups and e the condition:

    y = SiLU(GN(conv3(x))) + W SiLU(e),    ResBlock(x, e) = SiLU(GN(conv3(y))) + conv1(x)

Three levels of two ResBlocks and a linear attention each; between levels axes of at least 4 bins are halved.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
SHORTEST = 4  # bins along an axis that is halved
HEAD = 32  # channels of an attention's queries, keys and values

Shape = tuple[int, int, int]
Channels = tuple[int, int, int, int]


def wrapped(x: Tensor, circular: bool) -> Tensor:
    """x with one bin of its other end on both sides of the first in-layer axis, where that is an angle."""
    return torch.cat([x[:, :, :, -1:], x, x[:, :, :, :1]], dim=3) if circular else x


class Convolution(nn.Module):
    """Kernel 3, or along halved axes stride 2 with kernel 4 (z: 3); padding 1."""

    def __init__(self, n_in: int, n_out: int, circular: bool, halved: Sequence[bool] = (False,) * 3) -> None:
        super().__init__()
        self.circular = circular
        deep, first, second = (2 if half else 1 for half in halved)
        kernel, padding = (3, first + 2, second + 2), (1, 0 if circular else 1, 1)
        self.convolution = nn.Conv3d(n_in, n_out, kernel, (deep, first, second), padding)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(wrapped(x, self.circular))
        return out


class Transposed(nn.Module):
    """The way back of a halving Convolution, to images of ``shape``."""

    def __init__(self, n: int, circular: bool, halved: Sequence[bool], shape: Shape) -> None:
        super().__init__()
        self.circular = circular
        deep, first, second = (2 if half else 1 for half in halved)
        kernel = (4 if halved[0] and shape[0] % 2 == 0 else 3, first + 2, second + 2)
        extra = (0, shape[1] % first, shape[2] % second)
        padding = (1, kernel[1] - 1 if circular else 1, 1)
        self.convolution = nn.ConvTranspose3d(n, n, kernel, (deep, first, second), padding, extra)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(wrapped(x, self.circular))
        return out


class ResBlock(nn.Module):
    """Module docstring; n_condition = 0: without e."""

    def __init__(self, n_in: int, n_out: int, n_condition: int, circular: bool) -> None:
        super().__init__()
        self.first, self.second = Convolution(n_in, n_out, circular), Convolution(n_out, n_out, circular)
        self.norms = nn.ModuleList(nn.GroupNorm(GROUPS, n_out) for _ in range(2))
        self.condition = nn.Linear(n_condition, n_out) if n_condition else None
        self.shortcut = nn.Conv3d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        y = functional.silu(self.norms[0](self.first(x)))
        if self.condition is not None:
            y = y + self.condition(functional.silu(e))[:, :, None, None, None]
        out: Tensor = functional.silu(self.norms[1](self.second(y))) + self.shortcut(x)
        return out


class LinearAttention(nn.Module):
    """x + GN1(W context q), context = v k^T: softmax of q over channels and of k over positions; its cost is linear."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.before, self.after = nn.GroupNorm(1, n), nn.GroupNorm(1, n)
        self.enter = nn.Conv3d(n, 3 * HEAD, 1, bias=False)
        self.leave = nn.Conv3d(HEAD, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.enter(self.before(x)).flatten(2).chunk(3, dim=1)
        context = v @ k.softmax(dim=2).transpose(1, 2)
        out = context @ (q.softmax(dim=1) * HEAD**-0.5)
        return x + torch.as_tensor(self.after(self.leave(out.reshape(-1, HEAD, *x.shape[2:]))))


class _Level(nn.Module):
    """ResBlock, ResBlock, attention."""

    def __init__(self, n_in: int, n_out: int, n_condition: int, circular: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(n, n_out, n_condition, circular) for n in (n_in, n_out))
        self.attention = LinearAttention(n_out)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, e)
        out: Tensor = self.attention(x)
        return out


def embedding(n_in: int, n: int) -> nn.Sequential:
    """MLP of one condition, (N, n_in) -> (N, n)."""
    return nn.Sequential(
        nn.Linear(n_in, n // 2), nn.GELU(), nn.Linear(n // 2, n), nn.GELU(), nn.Linear(n, n)
    )  # fmt: skip


def after_halving(shape: Shape) -> Shape:
    """The shape after a halving Convolution: along z, kernel 3, rounded up, in a layer, kernel 4, rounded down."""
    z, first, second = (n >= SHORTEST for n in shape)
    return (
        (shape[0] + 1) // 2 if z else shape[0],
        shape[1] // 2 if first else shape[1],
        shape[2] // 2 if second else shape[2],
    )


class UNet(nn.Module):
    """Image (N, n_in, *shape), noise level (N, 1) and context (N, n_context) -> image (N, n_out, *shape).

    channels: of the stem and of the three levels; width: of the condition, half of it for the noise level. The last
    layer starts at zero.
    """

    def __init__(
        self, n_in: int, n_out: int, n_context: int, channels: Channels, width: int, shape: Shape, circular: bool
    ) -> None:
        super().__init__()
        self.level, self.context = embedding(1, width // 2), embedding(n_context, width // 2)
        self.stem = Convolution(n_in, channels[0], circular)
        shapes = [shape, after_halving(shape)]
        halvings = [[n >= SHORTEST for n in s] for s in shapes]
        pairs = list(pairwise(channels))
        self.down = nn.ModuleList(_Level(a, b, width, circular) for a, b in pairs)
        self.shrink = nn.ModuleList(
            Convolution(b, b, circular, halving) for (_, b), halving in zip(pairs[:2], halvings, strict=True)
        )
        last = channels[-1]
        self.middle = nn.ModuleList(ResBlock(last, last, width, circular) for _ in range(2))
        self.attention = LinearAttention(last)
        self.up = nn.ModuleList(_Level(2 * b, a, width, circular) for a, b in reversed(pairs))
        self.grow = nn.ModuleList(
            Transposed(pairs[k + 1][0], circular, halvings[k], shapes[k]) for k in (1, 0)
        )  # fmt: skip
        self.head = ResBlock(channels[0], channels[0], 0, circular)
        self.leave = nn.Conv3d(channels[0], n_out, 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor, context: Tensor) -> Tensor:
        e = torch.cat([self.level(level), self.context(context)], dim=1)
        x = self.stem(x)
        skips = []
        for k, down in enumerate(self.down):
            x = down(x, e)
            skips.append(x)
            x = self.shrink[k](x) if k < len(self.shrink) else x
        x = self.middle[1](self.attention(self.middle[0](x, e)), e)
        for k, up in enumerate(self.up):
            x = up(torch.cat([x, skips.pop()], dim=1), e)
            x = self.grow[k](x) if k < len(self.grow) else x
        out: Tensor = self.leave(self.head(x, e))
        return out
