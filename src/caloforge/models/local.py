"""Pieces of the published GANs: locally connected layers, minibatch discrimination, their activations and losses."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.3  # of LeakyReLU in LAGAN and CaloGAN


class LocallyConnected(nn.Module):
    """A convolution whose weights differ from place to place (de Oliveira et al. 2017, 1701.05927).

    Images (N, n_in, H, W) -> (N, n_out, H', W'), padded with zeros; weight (P, k k n_in, n_out) and bias (P, n_out) for
    the P = H' W' places. rectified: he-uniform weights, for a rectifier behind them; glorot-normal otherwise,
    both with fan = (number of weights)^1/2, as Keras counted it when these networks were published.
    """

    def __init__(
        self, n_in: int, n_out: int, image: tuple[int, int], kernel: int, *, stride: tuple[int, int] = (1, 1),
        padding: int = 0, bias: bool = True, rectified: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.shape = tuple((n + 2 * padding - kernel) // s + 1 for n, s in zip(image, stride, strict=True))
        places, fan_in = math.prod(self.shape), n_in * kernel**2
        self.weight = nn.Parameter(torch.empty(places, fan_in, n_out))
        self.bias = nn.Parameter(torch.zeros(places, n_out)) if bias else None
        fan = math.sqrt(self.weight.numel())
        if rectified:
            nn.init.uniform_(self.weight, -math.sqrt(6 / fan), math.sqrt(6 / fan))
        else:
            nn.init.normal_(self.weight, 0, math.sqrt(1 / fan))

    def forward(self, x: Tensor) -> Tensor:
        p, n_out = self.padding, self.weight.shape[2]
        few = x.shape[2] * x.shape[3] * n_out < math.prod(self.shape) * x.shape[1]
        x = functional.pad(x, (p, p, p, p)).permute(2, 3, 0, 1).contiguous()  # (H, W, N, n_in): places first, for bmm
        out = self._scattered(x) if few else self._gathered(x)
        if self.bias is not None:
            out = out + self.bias[:, None]
        return torch.as_tensor(out.permute(1, 2, 0).reshape(x.shape[2], n_out, *self.shape))

    def _shifts(self) -> list[tuple[slice, slice]]:
        """For each entry of the kernel, the places of the padded image that it falls on."""
        (rows, columns), (down, right) = self.shape, self.stride
        steps = range(self.kernel)
        return [(slice(i, i + down * rows, down), slice(j, j + right * columns, right)) for i in steps for j in steps]

    def _gathered(self, x: Tensor) -> Tensor:
        """The patch under each output place times its weights: x (H, W, N, n_in) -> (P, N, n_out)."""
        patches = x.unfold(0, self.kernel, self.stride[0]).unfold(1, self.kernel, self.stride[1])
        return torch.bmm(patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 1), self.weight)

    def _scattered(self, x: Tensor) -> Tensor:
        """The same from the input's side: what each place adds to the outputs around it. Less memory, few outputs."""
        places, n_in, n_out = x.shape[:2], x.shape[3], self.weight.shape[2]
        weight = self.weight.reshape(*self.shape, -1, n_in, n_out)  # (H', W', k k, n_in, n_out)
        around = []
        for part, shift in zip(weight.unbind(2), self._shifts(), strict=True):
            empty = x.new_zeros(*places, n_in, n_out)
            empty[shift] = part
            around.append(empty)
        kernels = torch.stack(around, dim=3).flatten(3).flatten(0, 1)  # (H W, n_in, k k n_out)
        parts = torch.bmm(x.flatten(0, 1), kernels).reshape(*places, x.shape[2], -1, n_out)
        each = parts.unbind(3)  # k k of (H, W, N, n_out)
        out = each[0][self._shifts()[0]]
        for part, shift in zip(each[1:], self._shifts()[1:], strict=True):
            out = out + part[shift]
        return out.flatten(0, 1)


class MinibatchDiscrimination(nn.Module):
    """How close the samples of a batch are: o_f(i) = sum_j exp(-|M_fi - M_fj|_1), M linear in the features.

    (N, F) -> (N, n_kernels) (Salimans et al. 2016, 1606.03498). The sum includes j = i. Real and generated samples must
    not share a batch.
    """

    def __init__(self, n_in: int, n_kernels: int, n_dims: int) -> None:
        super().__init__()
        self.n_kernels = n_kernels
        self.linear = nn.Linear(n_in, n_kernels * n_dims)

    def forward(self, x: Tensor) -> Tensor:
        m = self.linear(x).reshape(len(x), self.n_kernels, -1).transpose(0, 1).float()  # (kernels, N, dims)
        return torch.exp(-torch.cdist(m, m, p=1)).sum(2).T


def batch_norm(n: int, *, dims: int = 2) -> nn.Module:
    """Batch normalisation as Keras has it: eps 1e-3, running means with momentum 0.99."""
    return (nn.BatchNorm2d if dims == 2 else nn.BatchNorm1d)(n, eps=1e-3, momentum=0.01)


def same_convolution(n_in: int, n_out: int, kernel: int) -> nn.Sequential:
    """Convolution that keeps the image size; he-uniform weights. An even kernel pads one more behind than before."""
    before, after = (kernel - 1) // 2, kernel // 2
    layer = nn.Conv2d(n_in, n_out, kernel)
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.ZeroPad2d((before, after, before, after)), layer)


def told_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross entropy of logits (N,): real ones should be large, generated ones small."""
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def flipped(target: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Targets 0 and 1 (N,), each exchanged with this probability."""
    flips = torch.rand(target.shape, generator=generator).to(target.device) < probability
    return torch.where(flips, 1 - target, target)
