import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.geometry import Array, Geometry, Layer, regular
from caloforge.hits import Hits, axes, bin_index, to_detector_frame, to_shower_frame, voxelize
from caloforge.showers import Incident, Showers

PI = np.pi
MESHES = (
    Geometry("cartesian", (Layer("cartesian", regular(-50, 50, 7), (-50.0, 0.0, 10.0, 50.0), (0, 100)),
                           Layer("cartesian", (-9, 9), regular(-20, 20, 4), (120, 200)))),
    Geometry("polar", (Layer("polar", regular(-PI, PI, 6), (0, 3, 50), (0, 100)),
                       Layer("polar", regular(0, 2 * PI, 5), regular(1, 60, 9), (100, 150)),
                       Layer("polar", (0.5, 1.0, 4.0), (0, 40), (150, 200)))),
)  # fmt: skip


def slow_voxelize(geometry: Geometry, n: int, event: Array, position: Array, value: Array) -> tuple[Array, Array]:
    """The readable twin: one deposit after the other, one bin after the other."""
    energy, overflow = np.zeros((n, geometry.n_voxels)), np.zeros((n, geometry.n_layers))
    for e, (x, y, z), v in zip(event, position, value, strict=True):
        in_front = [i for i, layer in enumerate(geometry.layers) if layer.depth[0] <= z]
        i = in_front[-1] if in_front else 0
        layer = geometry.layers[i]
        a, b = (math.atan2(y, x), math.hypot(x, y)) if layer.kind == "polar" else (x, y)
        turns = (-1, 0, 1) if layer.kind == "polar" else (0,)
        first = [
            j for j in range(layer.shape[0]) for k in turns if layer.first[j] <= a + k * 2 * PI < layer.first[j + 1]
        ]
        second = [j for j in range(layer.shape[1]) if layer.second[j] <= b < layer.second[j + 1]]
        if first and second and layer.depth[0] <= z <= layer.depth[1]:
            energy[e, geometry.offsets[i] + first[0] * layer.shape[1] + second[0]] += v
        else:
            overflow[e, i] += v
    return energy, overflow


def deposits(seed: int, m: int, n: int) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    position = rng.uniform([-70, -70, -10], [70, 70, 210], (m, 3))
    snap = rng.random(m) < 0.3  # some deposits exactly on edges
    position[snap] = np.round(position[snap], -1)
    return rng.integers(0, n, m), position, rng.exponential(1, m)


@given(st.sampled_from(MESHES), st.integers(0, 2**32), st.integers(0, 200), st.integers(1, 4))
def test_energy_is_conserved_shower_by_shower(geometry: Geometry, seed: int, m: int, n: int) -> None:
    event, position, value = deposits(seed, m, n)
    energy, overflow = voxelize(geometry, n, event, position, value)
    expected = np.bincount(event, value, minlength=n)
    np.testing.assert_allclose(energy.sum(axis=1) + overflow.sum(axis=1), expected, rtol=1e-12)


@pytest.mark.parametrize("geometry", MESHES, ids=lambda g: g.name)
def test_the_fast_sum_equals_its_slow_twin(geometry: Geometry) -> None:
    hits = deposits(1, 3000, 3)
    for fast, slow in zip(voxelize(geometry, 3, *hits), slow_voxelize(geometry, 3, *hits), strict=True):
        np.testing.assert_allclose(fast, slow, rtol=1e-12)


@given(st.floats(-1e3, 1e3), st.floats(0.01, 1e3), st.integers(1, 100), st.integers(0, 2**32))
def test_bins_of_equal_width_equal_a_search(low: float, width: float, n: int, seed: int) -> None:
    edges = regular(low, low + width, n)
    rng = np.random.default_rng(seed)
    near = np.concatenate([np.array(edges), np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])
    values = np.concatenate([near, rng.uniform(low - width, low + 2 * width, 50), [-1e9, 1e9]])
    np.testing.assert_array_equal(bin_index(edges, values), np.searchsorted(edges, values, side="right") - 1)


def test_every_voxel_centre_falls_in_its_own_voxel(mixed: Geometry) -> None:
    v = mixed.n_voxels
    energy, overflow = voxelize(mixed, v, np.arange(v), mixed.centres(), np.ones(v))
    np.testing.assert_array_equal(energy, np.eye(v))
    assert not overflow.any()


def test_both_ends_of_the_angle_are_one_place() -> None:
    full = Geometry("full", (Layer("polar", regular(-PI, PI, 4), (0, 2), (0, 1)),))
    position = np.array([[-1.0, 0.0, 0.5], [-1.0, -0.0, 0.5]])  # alpha = pi and -pi
    energy, _ = voxelize(full, 1, np.zeros(2, int), position, np.ones(2))
    np.testing.assert_array_equal(energy, [[2, 0, 0, 0]])


def test_deposits_between_and_behind_layers_are_overflow_of_the_layer_in_front() -> None:
    position = np.array([[0, 0, -1.0], [0, 0, 110.0], [0, 0, 201.0]])
    energy, overflow = voxelize(MESHES[0], 1, np.zeros(3, int), position, np.array([1.0, 2.0, 4.0]))
    assert not energy.any()
    np.testing.assert_array_equal(overflow, [[3, 4]])


def test_meshes_without_order_in_depth_are_refused() -> None:
    one, other = (Layer("cartesian", (0, 1), (0, 1), depth) for depth in ((0, 10), (5, 15)))
    nothing = np.zeros(0, int), np.zeros((0, 3)), np.zeros(0)
    with pytest.raises(ValueError, match="overlap or are not in order"):
        voxelize(Geometry("overlap", (one, other)), 1, *nothing)
    with pytest.raises(ValueError, match="without depths"):
        voxelize(Geometry("flat", (Layer("cartesian", (0, 1), (0, 1)),)), 1, *nothing)


def oblique(n: int, seed: int = 0) -> Incident:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 20, (2, n))
    return Incident(rng.uniform(1, 9, n), rng.uniform(0, 1.2, n), rng.uniform(-PI, PI, n), x, y)


@given(st.integers(0, 2**32))
def test_the_shower_frame_is_a_rotation_about_the_entrance_point(seed: int) -> None:
    incident = oblique(4, seed)
    event = np.repeat(np.arange(4), 3)
    position = np.random.default_rng(seed).normal(0, 100, (12, 3))
    local = to_shower_frame(incident, event, position)
    np.testing.assert_allclose(to_detector_frame(incident, event, local), position, atol=1e-9)
    np.testing.assert_allclose(
        axes(incident) @ axes(incident).transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12
    )


def test_a_particle_flies_along_z_of_its_shower_frame() -> None:
    incident = oblique(5)
    t, p = incident.theta, incident.phi
    along = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], axis=1)
    entrance = np.stack([incident.x, incident.y, np.zeros(5)], axis=1)
    local = to_shower_frame(incident, np.arange(5), entrance + 70 * along)
    np.testing.assert_allclose(local, np.tile([0, 0, 70.0], (5, 1)), atol=1e-9)
    # The x axis points towards larger theta: the trace of a plane z = const rises with x there.
    deeper = to_shower_frame(incident, np.arange(5), entrance + np.array([0, 0, 1.0]))
    assert (deeper[incident.theta > 0.1, 0] < 0).all()


def test_hits_fill_meshes_and_conserve_energy() -> None:
    rng = np.random.default_rng(3)
    incident = oblique(3)
    event, value = rng.integers(0, 3, 500), rng.exponential(1, 500)
    hits = Hits(incident, event, rng.normal((0, 0, 100), 30, (500, 3)), value)
    assert len(hits) == 3
    assert not hits.time.any()
    for mesh in MESHES:
        for frame in ("detector", "shower"):
            showers = hits.showers(mesh, frame=frame)
            assert showers.overflow is not None
            total = showers.total + showers.overflow.sum(axis=1)
            np.testing.assert_allclose(total, np.bincount(event, value), rtol=1e-6)


@pytest.mark.parametrize("frame", ["detector", "shower"])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: mesh.name)
def test_voxel_centres_are_a_point_cloud_that_fills_the_same_voxels(mesh: Geometry, frame: str) -> None:
    rng = np.random.default_rng(4)
    energy = rng.exponential(1, (3, mesh.n_voxels)) * (rng.random((3, mesh.n_voxels)) < 0.5)
    showers = Showers(mesh, oblique(3), energy)
    again = Hits.of(showers, frame=frame).showers(mesh, frame=frame)
    np.testing.assert_array_equal(again.energy, showers.energy)


def test_merged_hits_keep_energy_centre_and_first_time() -> None:
    rng = np.random.default_rng(5)
    event, value, time = rng.integers(0, 3, 400), rng.exponential(1, 400), rng.uniform(1, 2, 400)
    hits = Hits(oblique(3), event, rng.uniform(-10, 10, (400, 3)), value, time)
    merged = hits.merged(5.0)
    assert len(merged.energy) <= 3 * 4**3
    np.testing.assert_allclose(np.bincount(merged.event, merged.energy), np.bincount(event, value))
    centre = [np.bincount(h.event, h.energy * h.position[:, 0]) for h in (hits, merged)]
    np.testing.assert_allclose(centre[0], centre[1])
    assert merged.time.min() == time.min()
    with pytest.raises(ValueError, match="got cubes of 0 mm"):
        hits.merged(0)


def test_impossible_hits_are_refused() -> None:
    particles = oblique(2)
    with pytest.raises(ValueError, match=r"got hit position of shape \(2, 2\)"):
        Hits(particles, [0, 1], np.zeros((2, 2)), [1, 1])
    with pytest.raises(ValueError, match=r"got hits of showers 0\.\.2, expected 0\.\.1"):
        Hits(particles, [0, 2], np.zeros((2, 3)), [1, 1])
    with pytest.raises(ValueError, match="non-finite hit energy"):
        Hits(particles, [0, 1], np.zeros((2, 3)), [1, np.nan])
