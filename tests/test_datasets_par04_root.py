"""Par04 ntuples, made with uproot from cells as the example fills them."""

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from caloforge.datasets import layout_of, lemurs, open_showers, par04_root
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident
from conftest import assert_same, random_showers

uproot = pytest.importorskip("uproot", reason="uproot absent: pip install 'caloforge[root]'")
ak = pytest.importorskip("awkward", reason="awkward absent: pip install 'caloforge[root]'")

EDGES = (0.0, 4.0, 9.0)
TUBE = Geometry("tube", tuple(Layer("polar", regular(-np.pi, np.pi, 4), EDGES, (5 * i, 5 * i + 5)) for i in range(3)))
# Per shower: rho, phi, z number and energy [MeV]; the second is empty; one voxel is listed twice.
CELLS = [[(0, 0, 0, 1.0), (17, 49, 44, 2.0), (3, 20, 7, 0.5), (3, 20, 7, 0.25)], [], [(5, 1, 44, 4.0)]]
BEYOND = [[(18, 0, 3, 8.0), (2, 50, 4, 16.0), (1, 1, 45, 32.0)], [], [(0, 0, -1, 64.0)]]


def root_file(path: Path, cells: list[list], one_tree: bool = False, **changed: object) -> Path:
    """A ROOT file of showers, in the two trees of the newer example or the one of Geant4 11."""
    columns = {key: ak.Array([[cell[k] for cell in row] for row in cells], with_name=None) for k, key in
               enumerate(("rhoCell", "phiCell", "zCell", "EnergyCell"))}  # fmt: skip
    columns = {k: ak.values_astype(v, "float64" if k == "EnergyCell" else "int32") for k, v in columns.items()}
    single = {"EnergyMC": np.array([1000.511, 2000.0, 5e4][: len(cells)]), "SimTime": np.ones(len(cells))}
    columns, single = ({k: v for k, v in (part | changed).items() if k in part and v is not None}
                       for part in (columns, single))  # fmt: skip
    trees: Mapping[str, dict] = {"events": single | columns} if one_tree else {
        "global": single, "virtualReadout": columns, "physicalReadout": columns,
    }  # fmt: skip
    with uproot.recreate(path) as file:
        for name, branches in trees.items():
            file.mktree(
                name, {k: v.dtype if isinstance(v, np.ndarray) else v.type.content for k, v in branches.items()}
            )
            file[name].extend(branches)
    return path


@pytest.mark.parametrize("one_tree", [False, True])
def test_units_and_axes(tmp_path: Path, one_tree: bool) -> None:
    showers = par04_root.read(root_file(tmp_path / "a.root", CELLS, one_tree))
    assert showers.incident.energy.tolist() == [1000.511, 2000.0, 5e4]
    assert set(showers.incident.pdg) == {11}
    assert not showers.incident.theta.any()
    expected = np.zeros((3, 18, 50, 45))
    for event, row in enumerate(CELLS):  # as root2h5.py does it, but with the sum
        for r, phi, z, mev in row:
            expected[event][r][phi][z] += mev
    np.testing.assert_array_equal(showers.energy, lemurs.flat(expected))
    assert showers.geometry.name == "par04-siw"
    np.testing.assert_array_equal(showers.overflow, 0)


def test_cells_beyond_the_mesh_are_overflow(tmp_path: Path) -> None:
    inside = par04_root.read(root_file(tmp_path / "a.root", CELLS))
    cells = [a + b for a, b in zip(CELLS, BEYOND, strict=True)]
    showers = par04_root.read(root_file(tmp_path / "b.root", cells))
    np.testing.assert_array_equal(showers.energy, inside.energy)
    assert {(n, layer): e for (n, layer), e in np.ndenumerate(showers.overflow) if e} == {
        (0, 3): 8, (0, 4): 16, (0, 44): 32, (2, 0): 64,
    }  # fmt: skip


def test_the_mesh_is_told_by_the_numbers_or_asked_for(tmp_path: Path) -> None:
    path = root_file(tmp_path / "a.root", [[(8, 15, 44, 1.0)]])
    assert layout_of(path) == "par04-root"
    with pytest.raises(ValueError, match="all fit in 'par04-siw-coarse' as well as in 'par04-siw'"):
        open_showers(path)
    for name, voxel in (("par04-siw-coarse", (44 * 16 + 15) * 9 + 8), ("par04-siw", (44 * 50 + 15) * 18 + 8)):
        showers = open_showers(path, detector=name)
        assert showers.geometry.name == name
        assert np.flatnonzero(showers.energy[0]).tolist() == [voxel]
    assert not par04_root.read(root_file(tmp_path / "b.root", [[], []])).energy.any()


def test_angles_and_particle(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("global", dict.fromkeys(("EnergyMC", "ThetaMC", "PhiMC"), "f8"))
        file["global"].extend({"EnergyMC": np.ones(1), "ThetaMC": np.full(1, 1.0), "PhiMC": np.full(1, 2.0)})
        branches = {k: ak.values_astype(ak.Array([[20]]), "int32") for k in ("rhoCell", "phiCell", "zCell")}
        branches["EnergyCell"] = ak.Array([[1.0]])
        file.mktree("virtualReadout", {k: v.type.content for k, v in branches.items()})
        file["virtualReadout"].extend(branches)
    showers = par04_root.read(tmp_path / "a.root", pdg=22)
    assert (showers.incident.theta[0], showers.incident.phi[0], showers.incident.pdg[0]) == (1 - np.pi / 2, 2, 22)


@pytest.mark.parametrize("n", [0, 1, 7])
@pytest.mark.parametrize("slanting", [False, True])
@pytest.mark.parametrize("overflow", [False, True])
def test_showers_come_back_bit_for_bit(tmp_path: Path, n: int, slanting: bool, overflow: bool) -> None:
    rng = np.random.default_rng(n)
    data = random_showers(TUBE, n)
    if slanting:
        angles = {"theta": rng.uniform(-1, 1, n), "phi": rng.uniform(-9, 9, n)}
        place = {"x": rng.normal(0, 20, n), "y": rng.normal(0, 20, n)}
        data = replace(data, incident=Incident(rng.uniform(1, 1e5, n), **angles, **place, pdg=rng.integers(1, 30, n)))
    data = replace(data, overflow=data.overflow if overflow else None)
    par04_root.write(data, tmp_path / "a.root")
    assert_same(par04_root.read(tmp_path / "a.root"), data)
    if n and not slanting:
        with pytest.raises(ValueError, match=r"got pdg=22 for .* which holds particle -11"):
            par04_root.read(tmp_path / "a.root", pdg=22)


def test_the_script_of_the_example_reads_our_files(tmp_path: Path) -> None:
    data = random_showers(TUBE, 3)
    par04_root.write(data, tmp_path / "a.root")
    images = np.zeros((3, 2, 4, 3))
    with uproot.open(tmp_path / "a.root") as file:
        np.testing.assert_array_equal(file["global"]["EnergyMC"].array(), data.incident.energy)
        rows = [file["virtualReadout"][k].array() for k in ("rhoCell", "phiCell", "zCell", "EnergyCell")]
        for event in range(3):
            for r, phi, z, mev in zip(*(row[event] for row in rows), strict=True):
                images[event][r][phi][z] = mev
    np.testing.assert_array_equal(lemurs.flat(images), data.energy)


@pytest.mark.parametrize(("changed", "said"), [
    ({"EnergyMC": None}, "expected EnergyMC too"), ({"zCell": None}, "expected zCell too"),
    ({"zCell": ak.values_astype(ak.Array([[1], [], [2]]), "int32")}, "of different lengths"),
    ({"EnergyMC": np.zeros(3)}, "incident energy 0 MeV"), ({"rhoCell": np.ones(3)}, "expected 3 lists of numbers"),
])  # fmt: skip
def test_a_wrong_file_is_one_clear_error(tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        par04_root.read(root_file(tmp_path / "a.root", CELLS, **changed))


def test_damaged_missing_and_other_files(tmp_path: Path) -> None:
    path = root_file(tmp_path / "a.root", CELLS)
    content = path.read_bytes()
    for size in (10, 300, len(content) // 3, 2 * len(content) // 3):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"truncated or none|expected the trees"):
            open_showers(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        par04_root.read(tmp_path / "none.root")
    with uproot.recreate(tmp_path / "b.root") as file:
        file["other"] = {"x": np.ones(3)}
    with pytest.raises(ValueError, match="with other, expected the trees global and virtualReadout"):
        par04_root.read(tmp_path / "b.root")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root_file(tmp_path / "a.root", CELLS)
    monkeypatch.setitem(sys.modules, "uproot", None)
    for use in (lambda: open_showers(path), lambda: par04_root.write(random_showers(TUBE, 1), tmp_path / "b.root")):
        with pytest.raises(FileNotFoundError, match=r"pip install 'caloforge\[root\]'"):
            use()


def test_nothing_wrong_is_written(tmp_path: Path, mixed: Geometry) -> None:
    with pytest.raises(ValueError, match="expected polar layers with the same voxels"):
        par04_root.write(random_showers(mixed, 2), tmp_path / "a.root")
    with pytest.raises(ValueError, match="no plain data"):
        par04_root.write(replace(random_showers(TUBE, 2), provenance={"x": object()}), tmp_path / "a.root")
    assert os.listdir(tmp_path) == []
    par04_root.write(random_showers(TUBE, 2), tmp_path / "a.root")
    with pytest.raises(FileExistsError, match="--force"):
        par04_root.write(random_showers(TUBE, 2), tmp_path / "a.root")
    assert os.listdir(tmp_path) == ["a.root"]
