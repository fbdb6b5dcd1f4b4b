import numpy as np
import pytest

from caloforge.evaluate.checks import fingerprints, require_distinct
from caloforge.showers import Incident, Showers
from caloforge.testing import small_geometry


def sample(n: int, seed: int) -> Showers:
    rng, geometry = np.random.default_rng(seed), small_geometry()
    return Showers(geometry, Incident(rng.uniform(1, 2, n)), rng.exponential(1, (n, geometry.n_voxels)))


def test_copies_are_found() -> None:
    one, other = sample(50, 1), sample(50, 2)
    require_distinct(one, other)
    mixed = Showers.concat([other, one[:3]])
    with pytest.raises(ValueError, match="got 3 showers that stand in both samples"):
        require_distinct(one, mixed)
    with pytest.raises(ValueError, match="got 2 candidate showers that are copies"):
        require_distinct(one, Showers.concat([other, other[:2]]))


def test_empty_showers_are_no_copies() -> None:
    geometry = small_geometry()
    nothing = Showers(geometry, Incident(np.ones(5)), np.zeros((5, geometry.n_voxels)))
    assert len(fingerprints(nothing)) == 0
    require_distinct(nothing, nothing)


def test_fingerprints_that_end_in_zero_bytes_stay_apart() -> None:
    prints = fingerprints(sample(3000, 3), chunk=700)
    assert len(np.unique(prints)) == 3000
