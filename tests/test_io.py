import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from caloforge import io
from caloforge.geometry import Geometry, Layer
from caloforge.showers import Incident, Showers
from caloforge.testing import small_showers
from conftest import assert_same, random_showers

GOLDEN = Path(__file__).parent / "golden" / "data_v1.h5"
PAIR = Geometry("pair", (Layer("cartesian", (0, 1, 2), (0, 1)), Layer("polar", (0, 1), (0, 1))))


def golden_showers() -> Showers:
    """The showers of tests/golden/data_v1.h5: five, over a polar and a cartesian layer, with exact binary numbers.

    The file was made once, by ``io.write(golden_showers(), GOLDEN)`` with format 1, and is never made again.
    """
    polar = Layer("polar", (-3.0, 0.0, 3.0), (0.0, 1.5, 4.0), (0.0, 10.0), 2)
    geometry = Geometry("golden", (polar, Layer("cartesian", (-4.0, 4.0), (-4.0, 0.0, 4.0), (10.0, 25.5), 5)))
    k = np.arange(5.0)
    incident = Incident(1000.0 * 2**k, k / 8, -k / 4, k - 2, 0.5 - k, np.array([22, 11, -11, 211, 22]))
    energy = np.where((np.arange(30) % 3 == 0), 0.0, np.arange(30) * 0.25).reshape(5, 6)
    overflow = np.stack([k / 16, 1 - k / 16], axis=1)
    return Showers(geometry, incident, energy, overflow, {"engine": "golden", "seed": 7, "nested": {"cut_mm": 0.7}})


@st.composite
def showers(draw: st.DrawFn) -> Showers:
    n = draw(st.integers(0, 20))
    energies = st.floats(0, 2.0**99, width=32)
    incident = Incident(draw(arrays(float, n, elements=st.floats(1e-300, 1e300))),
                        *(draw(arrays(float, n, elements=st.floats(-1e9, 1e9))) for _ in range(4)),
                        draw(arrays(np.int64, n)))  # fmt: skip
    overflow = draw(st.none() | arrays(np.float32, (n, 2), elements=energies)) if n else None
    provenance = draw(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=2))
    return Showers(PAIR, incident, draw(arrays(np.float32, (n, 3), elements=energies)), overflow, provenance)


@given(showers(), st.integers(1, 8))
def test_reading_gives_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: Showers, chunk: int) -> None:
    path = tmp_path_factory.mktemp("io") / "a.h5"
    io.write(data, path)
    assert_same(io.read(path), data)
    assert_same(Showers.concat(list(io.stream(path, chunk))), data)
    assert_same(io.read(path, 3), data[:3])
    np.testing.assert_array_equal(io.read_incident(path).energy, data.incident.energy)
    geometry, n, provenance = io.read_header(path)
    assert (geometry.digest(), n, provenance) == (PAIR.digest(), len(data), data.provenance)


def test_parts_appended_are_one_file(tmp_path: Path, mixed: Geometry) -> None:
    whole = random_showers(mixed, 300)
    with io.Writer(tmp_path / "a.h5", mixed, whole.provenance) as file:
        for part in (whole[:7], whole[7:7], whole[7:200], whole[200:]):
            file.append(part)
    assert_same(io.read(tmp_path / "a.h5"), whole)


def test_the_same_showers_give_the_same_bytes(tmp_path: Path, mixed: Geometry) -> None:
    for name in "ab":
        io.write(random_showers(mixed, 50), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_golden_file_of_format_1_is_read_forever() -> None:
    got = io.read(GOLDEN)
    assert_same(got, golden_showers())
    assert got.geometry == golden_showers().geometry
    assert got.geometry.digest() == "fc948bc1f65e2e04"
    assert got.energy[1].tolist() == [0, 1.75, 2.0, 0, 2.5, 2.75]
    assert got.incident.energy.tolist() == [1000, 2000, 4000, 8000, 16000]
    assert got.overflow is not None
    assert got.overflow[4].tolist() == [0.25, 0.75]
    with h5py.File(GOLDEN) as file:
        assert file.attrs["format_version"] == 1
        assert sorted(file) == ["energy", "incident", "overflow"]


def test_an_existing_file_needs_force(tmp_path: Path, mixed: Geometry) -> None:
    path = tmp_path / "a.h5"
    io.write(random_showers(mixed, 3), path)
    with pytest.raises(FileExistsError, match=r"exists.*--force"):
        io.write(random_showers(mixed, 5), path)
    io.write(random_showers(mixed, 5), path, force=True)
    assert len(io.read(path)) == 5
    with pytest.raises(FileNotFoundError, match="expected an existing folder"):
        io.write(random_showers(mixed, 5), tmp_path / "none" / "a.h5")


def write_and_fail(path: Path, showers: Showers) -> None:
    with io.Writer(path, showers.geometry, {}, force=True) as file:
        file.append(showers)
        raise RuntimeError("mid-way")


def test_an_error_while_writing_leaves_nothing(tmp_path: Path, mixed: Geometry) -> None:
    path = tmp_path / "a.h5"
    io.write(random_showers(mixed, 3), path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="mid-way"):
        write_and_fail(path, random_showers(mixed, 5))
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="no plain data"):
        io.Writer(tmp_path / "b.h5", mixed, {"seed": object()})
    other = random_showers(PAIR, 2)
    with (
        pytest.raises(ValueError, match="got showers with geometry 'pair'"),
        io.Writer(tmp_path / "c", mixed, {}) as file,
    ):
        file.append(other)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_parts_with_and_without_overflow_do_not_mix(tmp_path: Path, mixed: Geometry) -> None:
    part = random_showers(mixed, 2)
    bare = Showers(part.geometry, part.incident, part.energy)
    for first, second in ((part, bare), (bare, part)):
        with io.Writer(tmp_path / "a", mixed, {}, force=True) as file:
            file.append(first)
            with pytest.raises(ValueError, match="with and without overflow"):
                file.append(second)


def damage(path: Path, what: str) -> None:
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
        return
    if what == "text":
        path.write_text("no HDF5")
        return
    with h5py.File(path, "r+") as file:
        if what == "newer":
            file.attrs["format_version"] = 2
        elif what == "foreign":
            del file.attrs["format"]
        elif what == "geometry":
            mesh = json.loads(file.attrs["geometry"])
            mesh["layers"][0]["second"][0] = 0.5
            file.attrs["geometry"] = json.dumps(mesh)
        elif what == "NaN":
            file["energy"][1, 1] = np.nan
        elif what == "short":
            file["incident/x"].resize(2, axis=0)
        elif what == "fewer":
            file["energy"].resize(2, axis=0)
        elif what == "text geometry":
            file.attrs["geometry"] = "{name: none"
        elif what == "letters":
            del file["energy"]
            file["energy"] = "five"
        else:
            del file[what]


@pytest.mark.parametrize(("what", "said"), [
    ("truncated", "truncated or none"), ("text", "truncated or none"), ("newer", "version 2, expected at most 1"),
    ("foreign", "with keys energy, incident, overflow"), ("geometry", "does not match its digest"), ("NaN", "NaN"),
    ("fewer", "with 2 to 5 rows"), ("text geometry", "geometry or provenance cannot be read"),
    ("letters", "expected 'energy' as numbers with 2 axes"),
    ("short", "rows of different quantities"), ("energy", "expected complete showers"),
    ("incident/pdg", "expected complete"),
])  # fmt: skip
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, mixed: Geometry, what: str, said: str) -> None:
    path = tmp_path / "a.h5"
    io.write(random_showers(mixed, 5), path)
    damage(path, what)
    with pytest.raises(ValueError, match=said):
        io.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        io.read(tmp_path / "none.h5")


def test_columns_are_kept_beside_the_showers(tmp_path: Path) -> None:
    showers = small_showers(n=6)
    with io.Writer(tmp_path / "a.h5", showers.geometry, {}) as file:
        for part in (slice(0, 4), slice(4, 6)):
            file.append(showers[part], columns={"mass": np.arange(6.0)[part]})
    np.testing.assert_array_equal(io.read_columns(tmp_path / "a.h5")["mass"], np.arange(6.0))
    io.write(showers, tmp_path / "b.h5")
    assert io.read_columns(tmp_path / "b.h5") == {}
    with io.Writer(tmp_path / "c.h5", showers.geometry, {}) as file:
        file.append(showers)
        with pytest.raises(ValueError, match="different columns"):
            file.append(showers, columns={"mass": np.zeros(6)})
