"""caloforge convert: every layout to every other that can hold the showers, and what it says when it cannot."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest

from caloforge import cli, io
from caloforge.cli import run
from caloforge.datasets import calochallenge, layout_of, lemurs, open_data, open_showers, showerdata
from caloforge.datasets.convert import Layout, convert
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate.detectors import find
from conftest import assert_same, random_showers

RINGS = Geometry("rings", (Layer("polar", regular(-np.pi, np.pi, 1), (0, 5, 10.5), (0, 10), 0),
                           Layer("polar", regular(-np.pi, np.pi, 3), (0, 2.325, 7), (10, 30), 12)))  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sparse(detector: str, n: int = 5, share: float = 0.01, **incident: float) -> Showers:
    """Showers on a detector's mesh with few filled voxels."""
    data = random_showers(find(detector).geometry, n, **incident)
    keep = np.random.default_rng(1).random(data.energy.shape) < share
    return replace(data, energy=data.energy * keep, overflow=None)


@pytest.mark.parametrize(("detector", "layout", "name"), [
    ("calogan", "calogan", "a.h5"), ("lhcb", "lhcb", "a.npz"), ("par04-siw-coarse", "lemurs", "a.h5"),
    ("par04-siw-coarse", "par04-root", "a.root"), ("par04-siw", "par04-root", "b.root"),
    ("calogan", "caloforge", "c.h5"),
])  # fmt: skip
def test_there_and_back_is_the_same(
    here: Path, capsys: pytest.CaptureFixture[str], detector: str, layout: str, name: str
) -> None:
    if layout == "par04-root":
        pytest.importorskip("uproot", reason="uproot absent: pip install 'caloforge[root]'")
    data = sparse(detector)
    io.write(data, "ours.h5")
    assert run(["convert", "ours.h5", name, "--to", layout]) == 0
    assert capsys.readouterr().out == f"{name}: 5 showers, layout {layout}\n"
    assert layout_of(name) == layout
    assert_same(open_showers(name), data)
    assert run(["convert", name, "again.h5"]) == 0
    assert_same(io.read("again.h5"), data)
    assert Path("again.h5").read_bytes() == Path("ours.h5").read_bytes()
    assert sorted(os.listdir(here)) == sorted({"ours.h5", name, "again.h5"})


def test_the_suffix_says_the_layout(here: Path) -> None:
    pytest.importorskip("uproot", reason="uproot absent: pip install 'caloforge[root]'")
    io.write(sparse("lhcb"), "a.h5")
    io.write(sparse("par04-siw-coarse"), "b.h5")
    made = {name: convert(source, name).layout for source, name in
            (("a.h5", "a.npz"), ("a.npz", "a.hdf5"), ("b.h5", "b.root"), ("b.root", "c.h5"))}  # fmt: skip
    assert made == {"a.npz": "lhcb", "a.hdf5": "caloforge", "b.root": "par04-root", "c.h5": "caloforge"}


def test_the_layouts_of_the_command_are_those_of_the_function() -> None:
    assert get_args(cli.Layout) == get_args(Layout)


def test_calochallenge_takes_its_binning_along(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = replace(random_showers(RINGS, 7), overflow=None)
    io.write(data, "ours.h5")
    assert run(["convert", "ours.h5", "theirs.h5", "--to", "calochallenge"]) == 0
    assert capsys.readouterr().out == "theirs.h5: 7 showers, layout calochallenge, binning: theirs.xml\n"
    assert run(["convert", "theirs.h5", "flat.h5", "--binning", "theirs.xml"]) == 0
    flat = io.read("flat.h5")
    np.testing.assert_array_equal(flat.energy, data.energy)
    assert [v.depth for v in flat.geometry.layers] == [None, None]
    np.testing.assert_array_equal(flat.incident.pdg, data.incident.pdg)
    assert run(["convert", "flat.h5", "again.h5", "--to", "calochallenge", "--binning", "theirs.xml"]) == 0
    assert sorted(os.listdir(here)) == ["again.h5", "flat.h5", "ours.h5", "theirs.h5", "theirs.xml"]
    with h5py.File("again.h5") as a, h5py.File("theirs.h5") as b:
        np.testing.assert_array_equal(a["showers"], b["showers"])


def test_the_official_binning_of_par04(shared: Path, here: Path) -> None:
    """CaloChallenge data set 2 and LEMURS have the same mesh, with the axes the other way round."""
    binning = shared / "reference" / "calochallenge" / "binning_dataset_2.xml"
    energy = np.random.default_rng(0).random((3, 6480)).astype("f4")
    with h5py.File("dataset_2.h5", "w") as file:
        file.update({"incident_energies": np.full((3, 1), 1e4), "showers": energy})
    convert("dataset_2.h5", "lemurs.h5", to="lemurs", binning=binning, detector="par04-siw-coarse")
    with h5py.File("lemurs.h5") as file:
        np.testing.assert_array_equal(file["showers"][:], energy.reshape(3, 45, 16, 9).transpose(0, 3, 2, 1))
        np.testing.assert_array_equal(file["incident_theta"][:], np.pi / 2)
    assert open_showers("lemurs.h5").geometry == find("par04-siw-coarse").geometry
    convert("lemurs.h5", "again.h5", to="calochallenge", binning=binning)
    assert_same(open_showers("again.h5", binning=binning), open_showers("dataset_2.h5", binning=binning))
    with pytest.raises(ValueError, match=r"expected the voxels of .*binning_dataset_3\.xml"):
        convert("lemurs.h5", "no.h5", to="calochallenge", binning=binning.with_name("binning_dataset_3.xml"))
    with pytest.raises(ValueError, match="expected those of detector 'par04-siw'"):
        open_showers("dataset_2.h5", binning=binning, detector="par04-siw")
    assert not Path("no.h5").exists()


@pytest.mark.parametrize(("detector", "incident", "unit"), [
    ("calogan", {}, "layer"), ("lhcb", {"theta": 0.3, "phi": 1.0, "x": 4.0, "y": -7.0}, "layer"),
    ("par04-siw-coarse", {}, "layer"),
    ("par04-siw-coarse", {"theta": 0.4, "phi": -2.0, "x": 30.0, "y": 1.0}, "mm"),
])  # fmt: skip
def test_voxels_to_points_and_back(here: Path, detector: str, incident: dict[str, float], unit: str) -> None:
    data = sparse(detector, **incident)
    io.write(data, "voxels.h5")
    assert run(["convert", "voxels.h5", "points.h5", "--to", "showerdata"]) == 0
    with h5py.File("points.h5") as file:
        assert file.attrs["z_unit"] == unit
        assert file["num_points"][:].tolist() == (data.energy > 0).sum(axis=1).tolist()
        np.testing.assert_allclose([row[3::4].sum() for row in file["showers"]], data.total / 1e3, rtol=1e-5)
    assert run(["convert", "points.h5", "again.h5", "--detector", detector]) == 0
    again = io.read("again.h5")
    np.testing.assert_allclose(again.energy, data.energy, rtol=2e-7)
    np.testing.assert_array_equal(again.overflow, 0)
    assert_same(replace(again, energy=data.energy, overflow=None), data)
    if detector == "calogan":
        assert run(["convert", "points.h5", "gan.h5", "--to", "calogan", "--detector", "calogan"]) == 0
        np.testing.assert_array_equal(open_showers("gan.h5").energy, again.energy)


def test_points_to_points(here: Path) -> None:
    io.write(sparse("calogan"), "voxels.h5")
    convert("voxels.h5", "a.h5", to="showerdata")
    convert("a.h5", "b.h5", to="showerdata", detector="calogan")
    with h5py.File("a.h5") as a, h5py.File("b.h5") as b:
        assert a.attrs["z_unit"] == b.attrs["z_unit"] == "layer"
        for x, y in zip(a["showers"][:], b["showers"][:], strict=True):
            np.testing.assert_array_equal(x, y)
    slanting = sparse("par04-siw-coarse", theta=0.2)
    io.write(slanting, "c.h5")
    convert("c.h5", "d.h5", to="showerdata")
    convert("d.h5", "e.h5", to="showerdata", detector="par04-siw-coarse")
    np.testing.assert_array_equal(open_data("d.h5").position, open_data("e.h5").position)


def test_slanting_showers_without_depth_cannot_become_points(here: Path) -> None:
    flat = Geometry("flat", tuple(replace(v, depth=None) for v in RINGS.layers))
    straight = random_showers(flat, 2)
    io.write(straight, "a.h5")
    convert("a.h5", "b.h5", to="showerdata")
    assert set(showerdata.read("b.h5", flat).position[:, 2]) == {0, 1}
    io.write(random_showers(flat, 2, theta=0.1), "c.h5")
    with pytest.raises(ValueError, match="slanting showers on 'flat'"):
        convert("c.h5", "d.h5", to="showerdata")
    assert not Path("d.h5").exists()


def other(geometry: Geometry = RINGS, **incident: float) -> None:
    io.write(random_showers(geometry, 3, **incident), "a.h5")


def muons() -> None:
    io.write(replace(random_showers(RINGS, 2), incident=Incident(np.ones(2), pdg=13)), "a.h5")


def points() -> None:
    io.write(sparse("calogan"), "voxels.h5")
    convert("voxels.h5", "a.h5", to="showerdata")


def challenge() -> None:
    calochallenge.write(random_showers(RINGS, 2), "a.h5")


def plain() -> None:
    with h5py.File("a.h5", "w") as file:
        file["images"] = 1


@pytest.mark.parametrize(("prepare", "options", "said"), [
    (other, ["out.txt"], r"expected a name that ends in \.h5, \.hdf5, \.npz, \.root"),
    (other, ["a.h5"], "got output a.h5, which exists"), (other, ["no/out.h5"], "expected an existing folder"),
    (other, ["out.npz"], "expected 'lhcb'"), (other, ["out.h5", "--to", "calogan"], "expected 'calogan'"),
    (other, ["out.h5", "--to", "lemurs"], "expected polar layers with the same voxels"),
    (other, ["out.root"], "expected polar layers with the same voxels"),
    (lambda: other(theta=0.1), ["out.h5", "--to", "calochallenge"], "incident theta other than 0"),
    (lambda: other(find("calogan").geometry), ["out.h5", "--to", "calochallenge"], r"\(cartesian\), expected polar"),
    (other, ["out.h5", "--detector", "calogan"], "expected those of detector 'calogan'"),
    (other, ["out.h5", "--detector", "atlas"], "got detector 'atlas'"),
    (other, ["out.h5", "--to", "calochallenge", "--binning", "no.xml"], r"got no\.xml, expected a binning file"),
    (muons, ["out.h5", "--to", "calochallenge"], "got particle 13, expected one of photon"),
    (points, ["out.h5"], "expected the depth of the layers too"),
    (points, ["out.npz", "--detector", "calogan"], "expected 'lhcb'"),
    (points, ["out.h5", "--detector", "lhcb"], r"expected 0\.\.0 of 'lhcb'"),
    (challenge, ["out.h5"], r"expected its binning too; give the XML file \(caloforge convert --binning\)"),
    (plain, ["out.h5"], "with keys images, expected caloforge showers or the layout of CaloGAN"),
    (lambda: Path("a.h5").write_bytes(b"PK\3\4 no zip"), ["out.h5"], "truncated or none"),
    (lambda: None, ["out.h5"], "no such file"),
])  # fmt: skip
def test_errors_are_one_sentence_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[], object], options: list[str], said: str
) -> None:
    prepare()
    before = {p.name: p.read_bytes() for p in here.iterdir()}
    assert run(["convert", "a.h5", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("caloforge: got ")
    assert err.count("\n") == 1
    assert re.search(said, err), err
    assert {p.name: p.read_bytes() for p in here.iterdir()} == before


def test_an_existing_binning_needs_force(here: Path) -> None:
    other()
    Path("out.xml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"got output out\.xml, which exists"):
        convert("a.h5", "out.h5", to="calochallenge")
    assert Path("out.xml").read_text() == "mine"
    assert sorted(os.listdir(here)) == ["a.h5", "out.xml"]
    done = convert("a.h5", "out.h5", to="calochallenge", force=True)
    assert done.files == (Path("out.h5"), Path("out.xml"))
    assert_same(open_showers("out.h5", binning="out.xml", detector=None), calochallenge.read("out.h5", "out.xml"))


def test_a_file_can_be_replaced_by_itself_in_another_layout(here: Path) -> None:
    data = sparse("calogan")
    io.write(data, "a.h5")
    assert convert("a.h5", "a.h5", to="calogan", force=True) == ("calogan", 5, (Path("a.h5"),))
    assert layout_of("a.h5") == "calogan"
    assert_same(open_showers("a.h5"), data)


def test_binnings_of_several_particles(here: Path) -> None:
    for name, file in (("photon", "a.xml"), ("electron", "b.xml")):
        calochallenge.write_binning(RINGS, file, name)
    both = Path("a.xml").read_text().replace("</Bins>", Path("b.xml").read_text().split("<Bins>")[1])
    Path("both.xml").write_text(both)
    calochallenge.write(random_showers(RINGS, 2), "a.h5")
    assert open_showers("a.h5", binning="both.xml").geometry.name == "both-electron"
    with h5py.File("a.h5", "r+") as file:
        del file.attrs["pdg"]
    with pytest.raises(ValueError, match=r"got both\.xml with binnings for photon, electron, expected one"):
        open_showers("a.h5", binning="both.xml")
    assert set(calochallenge.read("a.h5", "both.xml", "photon").incident.pdg) == {22}


def test_shipped_samples_are_converted_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", "calogan-eplus-test", "gan.h5", "--to", "calogan"]) == 0
    n = len(open_showers("gan.h5"))
    assert capsys.readouterr().out == f"gan.h5: {n} showers, layout calogan\n"
    assert n > 1000


def test_lemurs_of_another_detector_needs_its_name(here: Path) -> None:
    tube = Geometry("tube", tuple(replace(RINGS.layers[1], depth=(5 * i, 5 * i + 5)) for i in range(3)))
    lemurs.write(random_showers(tube, 2), "a.h5")
    assert open_showers("a.h5").geometry == tube  # caloforge wrote it there
    with h5py.File("a.h5", "r+") as file:
        del file.attrs["geometry"]
    assert run(["convert", "a.h5", "b.h5"]) == 2
