from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caloforge.geometry import Geometry, Layer, regular
from caloforge.simulate.detectors import calogan_geometry


def edges(low: float, high: float) -> st.SearchStrategy[tuple[float, ...]]:
    """Two to six rising edges."""
    return st.lists(st.floats(low, high), min_size=2, max_size=6, unique=True).map(lambda v: tuple(sorted(v)))


LAYER = st.one_of(st.builds(Layer, st.just("cartesian"), edges(-100, 100), edges(-100, 100)),
                  st.builds(Layer, st.just("polar"), edges(-3, 3), edges(0, 100)))  # fmt: skip
GEOMETRY = st.builds(Geometry, st.text(max_size=5), st.lists(LAYER, min_size=1, max_size=4).map(tuple))


@given(GEOMETRY)
def test_json_gives_the_same_geometry(geometry: Geometry) -> None:
    again = Geometry.from_json(geometry.to_json())
    assert again == geometry
    assert again.digest() == geometry.digest()


@given(GEOMETRY)
def test_counts_offsets_and_layers_agree(geometry: Geometry) -> None:
    assert len(geometry.centres()) == len(geometry.layer_index) == geometry.n_voxels == geometry.offsets[-1]
    np.testing.assert_array_equal(np.bincount(geometry.layer_index), [layer.n_voxels for layer in geometry.layers])


def test_the_digest_of_released_meshes_never_changes(mixed: Geometry) -> None:
    # Every data and model file carries this number: if it changes, all of them are refused.
    assert mixed.digest() == "cc7237c0bad92acf"
    assert calogan_geometry().digest() == "ac498f8fa1f4ce7e"


def test_the_digest_names_the_mesh_only(mixed: Geometry) -> None:
    first, second = mixed.layers
    assert replace(mixed, name="other").digest() == mixed.digest()
    assert Geometry("mixed", (replace(first, number=3), second)).digest() == mixed.digest()
    for other in (replace(first, depth=(0, 99)), replace(first, second=(0, 5, 20, 51)), replace(first, depth=None)):
        assert Geometry("mixed", (other, second)).digest() != mixed.digest()
    assert Geometry("mixed", (second, first)).digest() != mixed.digest()


def test_voxel_order_is_layer_then_first_then_second_axis(mixed: Geometry) -> None:
    centres = mixed.centres()
    a, r = -np.pi + np.pi / 4 + np.pi / 2, 12.5  # second alpha bin, second r bin
    np.testing.assert_allclose(centres[1 * 3 + 1], [r * np.cos(a), r * np.sin(a), 50])
    np.testing.assert_allclose(centres[12 + 1 * 5 + 4], [25, 40, 175])
    assert replace(mixed.layers[0], depth=None).shape == (4, 3)


def test_the_depth_of_a_voxel_is_the_layer_number_where_unknown() -> None:
    layer = Layer("cartesian", (0, 1), (0, 1))
    np.testing.assert_array_equal(Geometry("flat", (layer, layer)).centres()[:, 2], [0, 1])


def test_calogan_mesh_is_that_of_the_paper() -> None:
    geometry = calogan_geometry()
    assert [layer.shape for layer in geometry.layers] == [(3, 96), (12, 12), (12, 6)]
    assert geometry.n_voxels == 504
    sizes = [(np.diff(layer.first)[0], np.diff(layer.second)[0]) for layer in geometry.layers]
    np.testing.assert_allclose(sizes, [(160, 5), (40, 40), (40, 80)])


@pytest.mark.parametrize(("arguments", "said"), [
    (("round", (0, 1), (0, 1)), "layer kind 'round'"),
    (("cartesian", (0,), (0, 1)), "first edges"),
    (("cartesian", (0, 1), (1, 0)), "second edges"),
    (("cartesian", (0, np.nan), (0, 1)), "finite rising"),
    (("cartesian", (0, 1), (0, 1), (5, 5)), "front < back"),
    (("cartesian", (0, 1), (0, 1), (0, np.inf)), "finite front"),
    (("polar", (0, 7), (0, 1)), "at most one turn"),
    (("polar", (0, 1), (-1, 1)), "r >= 0"),
])  # fmt: skip
def test_wrong_layers_are_refused(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layer(*arguments)


def test_no_layers_and_another_mesh_are_refused(mixed: Geometry) -> None:
    with pytest.raises(ValueError, match="without layers"):
        Geometry("empty", ())
    with pytest.raises(ValueError, match=r"got a model with geometry 'calogan'.*expected 'mixed'"):
        mixed.require_same(calogan_geometry(), "a model")


def test_regular_edges() -> None:
    assert regular(-1, 1, 4) == (-1.0, -0.5, 0.0, 0.5, 1.0)
