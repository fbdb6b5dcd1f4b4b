import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from conftest import assert_same, random_showers


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 4))
def test_layer_energies_sum_to_the_total(seed: int, n: int, layers: int) -> None:
    layer = Layer("cartesian", regular(0, 1, 3), regular(0, 1, 2))
    showers = random_showers(Geometry("cube", (layer,) * layers), n, seed)
    assert showers.layer_energy.shape == (n, layers)
    np.testing.assert_allclose(showers.layer_energy.sum(axis=1), showers.total, rtol=1e-12)
    for i in range(layers):
        np.testing.assert_allclose(
            showers.image(i).sum(axis=(1, 2), dtype=float), showers.layer_energy[:, i], rtol=1e-12
        )


def test_parts_joined_are_the_whole(mixed: Geometry) -> None:
    whole = random_showers(mixed, 10)
    assert_same(Showers.concat([whole[:3], whole[3:]]), whole)
    assert_same(whole[np.arange(10) < 4], whole[:4])
    assert len(whole[np.array([7, 7])]) == 2


def test_images_follow_the_voxel_order(mixed: Geometry) -> None:
    showers = Showers(mixed, Incident([1.0]), np.arange(22.0)[None])
    assert showers.image(0)[0, 1, 2] == 5
    assert showers.image(1)[0, 1, 0] == 17


def test_nothing_can_be_changed(mixed: Geometry) -> None:
    showers = random_showers(mixed, 2)
    for array in (showers.energy, showers.overflow, showers.incident.energy):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_one_value_serves_all_particles() -> None:
    incident = Incident([1.0, 2.0], theta=0.1, pdg=22)
    assert incident.theta.tolist() == [0.1, 0.1]
    assert incident.pdg.dtype == np.int64
    assert len(incident[:1]) == 1


@pytest.mark.parametrize(("fields", "said"), [
    ({"energy": [1.0, np.nan]}, "non-finite incident energy"),
    ({"energy": [1.0, 0.0]}, "got incident energy 0 MeV"),
    ({"energy": [[1.0]]}, r"shape \(1, 1\)"),
    ({"energy": [1.0, 2.0], "x": [1.0]}, r"incident x of shape \(1,\)"),
    ({"energy": [1.0], "theta": [np.inf]}, "non-finite incident theta"),
])  # fmt: skip
def test_wrong_particles_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Incident(**fields)


def test_wrong_energies_are_refused(mixed: Geometry) -> None:
    good = np.ones((2, 22))
    for value, said in ((np.nan, "NaN.*in 1 showers"), (-1.0, "negative voxel energies.*-1 MeV"), (np.inf, "infinite")):
        bad = good.copy()
        bad[1, 3] = value
        with pytest.raises(ValueError, match=said):
            Showers(mixed, Incident([1.0, 2.0]), bad)
    with pytest.raises(ValueError, match=r"voxel energies of shape \(2, 21\), expected \(2, 22\)"):
        Showers(mixed, Incident([1.0, 2.0]), good[:, 1:])
    with pytest.raises(ValueError, match="overflow energies of shape"):
        Showers(mixed, Incident([1.0, 2.0]), good, np.ones((2, 3)))


def test_showers_of_different_meshes_do_not_join(mixed: Geometry) -> None:
    other = Geometry("other", mixed.layers[:1])
    with pytest.raises(ValueError, match="got showers with geometry 'other'"):
        Showers.concat([random_showers(mixed, 1), random_showers(other, 1)])
