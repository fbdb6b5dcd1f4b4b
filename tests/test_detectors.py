import tomllib
from pathlib import Path

import numpy as np
import pytest

from caloforge import hub, io
from caloforge.cli import run
from caloforge.geometry import Geometry, Layer
from caloforge.simulate.detectors import FOLDER, Detector, Readout, Section, Slab, find, names
from caloforge.simulate.draw import draw, summary

OWN = """
name = "own"
width_mm = 200
[[material]]
name = "Glass"
density_g_cm3 = 2.5
atoms = { Si = 1, O = 2 }
[[section]]
name = "front"
slabs = [{ material = "G4_W", mm = 3.0 }, { material = "Glass", mm = 1.0, read = true }]
repeat = 10
[readout]
[[readout.layer]]
x_mm = { from = -100, to = 100, bins = 4 }
y_mm = [-100, 0, 100]
section = "front"
[gun]
particle = "e-"
energy = "1..2GeV"
"""


def own(tmp_path: Path, **replacements: str) -> Path:
    """The description above, with pieces of text replaced."""
    text = OWN
    for old, new in replacements.items():
        text = text.replace(old, new)
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", names())
def test_the_detectors_of_the_package_are_sound(name: str) -> None:
    detector = find(name)
    assert detector.name == detector.geometry.name == name
    assert detector.gun is not None
    assert detector.about
    assert 5 < detector.x0 < 25 or "par04" in name
    assert 0.01 < detector.sampling_fraction < 1
    assert detector.material(detector.slabs[0].material).x0 > 0


@pytest.mark.parametrize(
    ("name", "voxels", "layers", "x0"),
    [("calogan", 504, 3, 30.8), ("lhcb", 900, 1, 24.1), ("par04-siw", 40_500, 45, 36.2),
     ("par04-siw-coarse", 6_480, 45, 36.2), ("par04-scipb", 40_500, 45, 35.4), ("ds1-like-photons", 368, 5, None),
     ("ds1-like-pions", 533, 7, None)],
)  # fmt: skip
def test_meshes_and_depths_are_those_of_the_papers(name: str, voxels: int, layers: int, x0: float | None) -> None:
    detector = find(name)
    assert (detector.geometry.n_voxels, detector.geometry.n_layers) == (voxels, layers)
    if x0 is not None:
        assert f" = {x0} X0 = " in summary(detector)["depth"]


def test_the_mesh_of_the_shipped_sample_is_that_of_the_detector() -> None:
    geometry, _, _ = io.read_header(hub.sample("calogan-eplus-test"))
    assert geometry.digest() == find("calogan").geometry.digest()


def test_the_edges_are_those_of_the_calochallenge(shared: Path) -> None:
    from caloforge.datasets.calochallenge import read_binning

    folder = shared / "reference" / "calochallenge"
    for name, file, particle in (
        ("ds1-like-photons", "binning_dataset_1_photons", "photon"), ("par04-siw", "binning_dataset_3", "electron"),
        ("ds1-like-pions", "binning_dataset_1_pions", "pion"), ("par04-siw-coarse", "binning_dataset_2", "electron"),
    ):  # fmt: skip
        theirs = read_binning(folder / f"{file}.xml", particle)
        for ours, other in zip(find(name).geometry.layers, theirs.layers, strict=True):
            assert (ours.second, ours.shape, ours.number) == (other.second, other.shape, other.number), name


def test_layers_of_the_ds1_like_stack_have_the_depths_of_the_specification() -> None:
    """4.3, 16 and 2 X0 of the accordion, 1.5, 4.1 and 1.8 interaction lengths of the tiles."""
    d = find("ds1-like-pions")
    lengths = {s.name: s.repeat * np.array([[v.thickness / d.material(v.material).x0,
                                             v.thickness / d.material(v.material).interaction_length]
                                            for v in s.slabs]).sum(axis=0) for s in d.sections}  # fmt: skip
    for name, x0 in (("strips", 4.3), ("middle", 16), ("back", 2)):
        assert lengths[name][0] == pytest.approx(x0, rel=0.05)
    for name, interaction in (("tile1", 1.5), ("tile2", 4.1), ("tile3", 1.8)):
        assert lengths[name][1] == pytest.approx(interaction, rel=0.1)


def test_a_file_of_ones_own_is_a_detector(tmp_path: Path) -> None:
    detector = find(str(own(tmp_path)))
    assert (detector.name, detector.depth, detector.geometry.n_voxels) == ("own", 40.0, 8)
    assert detector.geometry.layers[0].depth == (0.0, 40.0)
    assert detector.material("Glass").density == 2.5
    assert detector.x0 == pytest.approx(4 / (3 / 3.504 + 1 / 108), rel=0.01)
    assert 0 < detector.sampling_fraction < 0.2
    assert detector.gun is not None
    assert detector.gun.pdg == 11


@pytest.mark.parametrize(
    ("replacements", "sentence"),
    [
        ({"width_mm = 200": "width = 200"}, r"got unknown key 'width' in own.toml, expected some of name"),
        ({"width_mm = 200": 'width_mm = "wide"'}, "got 'wide' for width_mm in own.toml, expected a number"),
        ({"width_mm = 200": ""}, "got nothing for width_mm"),
        ({"width_mm = 200": "width_mm = -5"}, "of width -5 mm"),
        ({"G4_W": "G4_Wood"}, "got material 'G4_Wood', expected a NIST name"),
        ({"mm = 3.0": "mm = -3.0"}, "got a slab of -3 mm G4_W"),
        ({"mm = 3.0": "thick = 3.0"}, r"unknown key 'thick' in own.toml section\[0\] slabs\[0\]"),
        ({"repeat = 10": "repeat = 0"}, "for repeat in own.toml section"),
        ({"repeat = 10": "repeat = true"}, "expected a whole number"),
        ({"atoms = { Si = 1, O = 2 }": ""}, "expected a table of atoms or of mass_fractions"),
        ({"Si = 1": "Zz = 1"}, "got element 'Zz'"),
        ({'name = "Glass"': 'name = "glass"'}, "a capital first"),
        ({'section = "front"': 'section = "back"'}, r"got 'back' for section .*named sections \(front\)"),
        ({'section = "front"': "depth_mm = [0, 20]"}, "without layers for all of 0..40 mm"),
        ({'section = "front"': "depth_mm = [0, 60]"}, "expected a depth inside the detector"),
        ({'section = "front"': "depth_mm = [20, 0]"}, "expected .front, back. in mm, rising"),
        ({'section = "front"': "depth_mm = [0, 20]\nrepeat = 2\n[[readout.layer]]\nx_mm = [-5, 5]\ny_mm = [-5, 5]\n"
          "depth_mm = [10, 40]"}, "that overlap or are not in order of depth"),
        ({"from = -100, to = 100": "from = -300, to = 300"}, "that reaches 300 mm from the axis"),
        ({"bins = 4": "bins = 0"}, "for bins"),
        ({"y_mm = [-100, 0, 100]": ""}, "got nothing for y_mm"),
        ({"y_mm = [-100, 0, 100]": "y_mm = [0, 100, 50]"}, "finite rising numbers"),
        ({"x_mm": "r_mm"}, "either r_mm and alpha, or x_mm and y_mm"),
        ({"[readout]": "[readout]\nframe = 'lab'"}, "got frame 'lab'"),
        ({'energy = "1..2GeV"': ""}, "without particle or energy"),
        ({'energy = "1..2GeV"': 'energy = "1..2"'}, "with no unit"),
        ({"[gun]": "[gun"}, "expected TOML"),
        ({"[[section]]": "[section]"}, "expected a list of tables"),
    ],
)  # fmt: skip
def test_errors_name_the_key(tmp_path: Path, replacements: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find(str(own(tmp_path, **replacements)))


def test_a_missing_description_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a TOML file; no such file"):
        find(str(tmp_path / "none.toml"))


def test_the_readout_checks_its_factors() -> None:
    geometry = Geometry("a", (Layer("cartesian", (-1, 1), (-1, 1), (0, 1)),))
    with pytest.raises(ValueError, match="expected 1 factors above 0"):
        Readout(geometry, scale=(1, 2))
    with pytest.raises(ValueError, match="got threshold -1"):
        Readout(geometry, threshold=-1)
    with pytest.raises(ValueError, match="0 slabs 1 times"):
        Section(())
    with pytest.raises(ValueError, match="without depth"):
        Detector(
            "a", (Section((Slab("G4_Pb", 1.0),)),), 9.0, Readout(Geometry("a", (Layer("cartesian", (-1, 1), (-1, 1)),)))
        )


def test_show_prints_and_draws_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "a.png"
    assert run(["show", str(own(tmp_path)), "-o", str(picture)]) == 0
    text = capsys.readouterr().out
    for word in ("X0", "lambda", "sampling fraction", "estimated", "10 x (3 mm G4_W + 1 mm Glass)"):
        assert word in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(["show", "lhcb", "-o", str(picture)]) == 2
    assert "exists" in capsys.readouterr().err
    assert run(["show", "calogan-eplus-test", "-o", str(tmp_path / "b.png")]) == 2
    with pytest.raises(ValueError, match=r"ending in \.png"):
        draw(find("lhcb"), tmp_path / "a.txt")


def test_descriptions_are_plain_toml() -> None:
    for path in FOLDER.glob("*.toml"):
        assert tomllib.loads(path.read_text())["name"] == path.stem
