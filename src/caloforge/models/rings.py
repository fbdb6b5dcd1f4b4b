"""Rings of a polar mesh: voxels that its rotations exchange, which share numbers in students (``one_step``)."""

import numpy as np
import torch
from torch import Tensor, nn

from ..geometry import Geometry, mirrors

LARGEST_PRODUCT = 1 << 16  # entries of a matrix that is multiplied with sooner than ONNX Runtime picks columns


class Rings(nn.Module):
    """ring: which of n rings each voxel belongs to, (V,). Without ``shared``, every voxel is one.

    ValueError where rings are asked for in a mesh that cannot be turned.
    """

    ring: Tensor
    columns: Tensor

    def __init__(self, geometry: Geometry, shared: bool) -> None:
        super().__init__()
        images = mirrors(geometry)
        ring = np.arange(geometry.n_voxels)
        if shared:
            if len(images) == 1 or geometry.layers[0].kind != "polar":
                raise ValueError(
                    f"got rings for {geometry.name!r}, expected a polar mesh that can be turned; set model.rings to "
                    "false"
                )
            ring = np.unique(images.min(0), return_inverse=True)[1].reshape(-1)
        self.shared, self.n = shared, int(ring.max()) + 1
        self.register_buffer("ring", torch.from_numpy(ring), persistent=False)
        # Layers that are alike repeat their rings, one turn after the other.
        self.n_layers, self.n_turns = geometry.n_layers, geometry.n_voxels // self.n
        even = self.n % self.n_layers == 0
        turned = np.arange(self.n).reshape(self.n_layers if even else 1, 1, -1).repeat(self.n_turns, 1)
        self.alike = even and np.array_equal(turned.reshape(-1), ring)
        self.by_product = shared and not self.alike and self.n * len(ring) <= LARGEST_PRODUCT
        columns = nn.functional.one_hot(self.ring, self.n).T.float() if self.by_product else torch.ones(self.n_turns, 1)
        self.register_buffer("columns", columns, persistent=False)

    def spread(self, values: Tensor) -> Tensor:
        """Finite values of the rings at their voxels: (N, n) -> (N, V)."""
        if not self.shared:
            return values
        if self.alike:  # by a product: the shape of an expansion takes ONNX operations
            turned = values.reshape(-1, self.n_layers, 1, self.n // self.n_layers) * self.columns
            return turned.reshape(-1, len(self.ring))
        if self.by_product and not torch.is_autocast_enabled(values.device.type):  # in which a product is rounded
            return values @ self.columns
        return values.index_select(1, self.ring)
