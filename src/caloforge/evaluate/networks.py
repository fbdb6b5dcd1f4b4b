"""Networks of the classifier test, inputs (B, F) -> logits (B, 1), and the loop that trains them. It imports torch.

standard    CaloFlow (Krause, Shih, 2106.05285): two hidden layers of 512, ReLU
challenge   CaloChallenge (Krause et al., 2410.21611): three hidden layers of 2048, LeakyReLU of slope 0.01
resnet      CaloChallenge: three-dimensional residual network of 18 layers over the voxel mesh (He et al., 1512.03385;
            in three dimensions: Hara, Kataoka, Satoh, 1711.09577; by H. Qu for the challenge)

B is the batch, F the number of inputs, W the width, (L, n, m) = layers, voxels along the first and the second axis.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]

SLOPE = 0.01
STAGES = (1, 2, 2, 4)  # channels of the four residual stages, in units of the width; blocks of a stage:
BLOCKS = 2


def standard(n_inputs: int, width: int) -> nn.Sequential:
    """F -> W -> W -> 1 with ReLU."""
    return nn.Sequential(nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def challenge(n_inputs: int, width: int) -> nn.Sequential:
    """F -> W -> W -> W -> 1 with LeakyReLU(0.01): F W + 2 W^2 + 4 W + 1 parameters."""
    return nn.Sequential(
        nn.Linear(n_inputs, width), nn.LeakyReLU(SLOPE),
        nn.Linear(width, width), nn.LeakyReLU(SLOPE),
        nn.Linear(width, width), nn.LeakyReLU(SLOPE),
        nn.Linear(width, 1),
    )  # fmt: skip


def _convolution(n_in: int, n_out: int, size: int, stride: int) -> nn.Conv3d:
    """Convolution that keeps the mesh up to the stride: zero padding, no bias (a normalisation follows)."""
    return nn.Conv3d(n_in, n_out, size, stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """ReLU(BN conv3 ReLU BN conv3 x + shortcut x); the shortcut is a 1x1x1 convolution where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _convolution(n_in, n_out, 3, stride), nn.BatchNorm3d(n_out), nn.ReLU(),
            _convolution(n_out, n_out, 3, 1), nn.BatchNorm3d(n_out),
        )  # fmt: skip
        same = n_in == n_out and stride == 1
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(_convolution(n_in, n_out, 1, stride), nn.BatchNorm3d(n_out))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network over showers as images (L, n, m); inputs: [log10 E_inc, voxels], (B, 1 + L n m).

    Stem: convolution 7x7x7 of stride 2 from 1 to W channels, batch norm, ReLU, max-pool 3x3x3 of stride 2. Four
    stages of two blocks with W, 2W, 2W, 4W channels, from the second on with stride 2. Mean over the mesh; the
    incident energy joins it through a batch norm of its own before the last, linear layer (4W + 1 -> 1). Zero padding
    everywhere, also around the angle. With W = 32: 2,516,644 parameters, whatever the mesh.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.stem = nn.Sequential(
            _convolution(1, width, 7, 2), nn.BatchNorm3d(width), nn.ReLU(), nn.MaxPool3d(3, 2, padding=1)
        )
        channels = [width, *(factor * width for factor in STAGES)]
        blocks = []
        for stage, n_out in enumerate(channels[1:]):
            blocks.append(Block(channels[stage], n_out, 1 if stage == 0 else 2))
            blocks += [Block(n_out, n_out, 1) for _ in range(BLOCKS - 1)]
        self.stages = nn.Sequential(*blocks)
        self.energy = nn.BatchNorm1d(1)
        self.last = nn.Linear(channels[-1] + 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        image = x[:, 1:].reshape(-1, 1, *self.shape)
        pooled = self.stages(self.stem(image)).mean(dim=(2, 3, 4))
        return torch.as_tensor(self.last(torch.cat([pooled, self.energy(x[:, :1])], dim=1)))


PLAIN: dict[str, Callable[[int, int], nn.Module]] = {"standard": standard, "challenge": challenge}


def create(network: str, n_inputs: int, width: int, seed: int, shape: Shape | None = None) -> nn.Module:
    """Network of the given name with weights from ``seed``; the global random state of torch stays as it was.

    shape: of the mesh (L, n, m), for ``resnet`` only.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if network in PLAIN:
            return PLAIN[network](n_inputs, width)
        if network != "resnet":
            raise ValueError(f"got network {network!r}, expected one of {', '.join(PLAIN)}, resnet; choose one of them")
        if shape is None or prod(shape) + 1 != n_inputs:
            raise ValueError(
                f"got {n_inputs} inputs for a mesh of shape {shape}, expected 1 + layers * n * m; give log10 of the "
                "incident energy and all voxels, and the shape of the mesh"
            )
        return ResNet(shape, width)


def train_best(
    net: nn.Module,
    loss: Callable[[Tensor], Tensor],
    quality: Callable[[], float],
    n: int,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    generator: torch.Generator,
    smallest: int = 1,
    best_possible: float = float("inf"),
) -> None:
    """Train with Adam and leave the weights of the epoch with the highest quality.

    loss: of the examples with these indices (B,); quality: after an epoch, the higher the better, NaN if useless; n:
    number of examples. Batches smaller than ``smallest`` are left out; an epoch of ``best_possible`` quality ends the
    training. Raises ValueError when no epoch was of use.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    best, state = float("-inf"), {}
    for _ in range(epochs):
        net.train()
        for index in torch.randperm(n, generator=generator).split(batch):  # type: ignore[no-untyped-call]
            if len(index) < smallest:
                continue
            optimizer.zero_grad(set_to_none=True)
            loss(index).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        found = quality()
        if found > best:
            best, state = found, {name: value.clone() for name, value in net.state_dict().items()}
        if best >= best_possible:
            break
    if not state:
        raise ValueError("got a classifier loss that is not finite, expected a number; check the showers for outliers")
    net.load_state_dict(state)


def n_parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
