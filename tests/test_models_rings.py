import numpy as np
import pytest
import torch

from caloforge.geometry import Geometry, Layer, regular
from caloforge.models import rings
from caloforge.models.rings import Rings


def mesh(*edges: tuple[float, ...], turns: int = 4) -> Geometry:
    layers = (Layer("polar", regular(-np.pi, np.pi, turns), r, (k, k + 1)) for k, r in enumerate(edges))
    return Geometry("mesh", tuple(layers))


ALIKE = mesh((0.0, 1.0, 2.0), (0.0, 1.0, 2.0))
OTHERS = mesh((0.0, 1.0, 2.0), (0.0, 5.0))
UNEVEN = Geometry(
    "uneven", (*mesh((0.0, 1.0)).layers, *mesh(tuple(np.arange(7.0)), turns=1).layers)
)  # 7 rings, 10 voxels


@pytest.mark.parametrize(("geometry", "n", "alike"), [(ALIKE, 4, True), (OTHERS, 3, False), (UNEVEN, 7, False)])
def test_voxels_of_a_ring_get_its_number_exactly(
    geometry: Geometry, n: int, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.randn(5, n)
    for most in (1 << 16, 0):  # by a product, by picking columns
        monkeypatch.setattr(rings, "LARGEST_PRODUCT", most)
        own = Rings(geometry, True)
        assert (own.n, own.alike, own.by_product) == (n, alike, not alike and most > 0)
        assert torch.equal(own.spread(values), values[:, own.ring])
        with torch.autocast("cpu"):
            assert torch.equal(own.spread(values), values[:, own.ring])


def test_without_rings_every_voxel_has_its_own_number() -> None:
    values = torch.randn(5, 12)
    own = Rings(OTHERS, False)
    assert own.n == 12
    assert own.spread(values) is values
