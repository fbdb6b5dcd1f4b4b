import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from caloforge import io
from caloforge.geometry import Geometry, Layer, regular
from caloforge.showers import Incident, Showers
from caloforge.simulate import CHUNK, Simulator, produce, simulate
from caloforge.simulate.detectors import DETECTORS, Readout, calogan, find
from caloforge.simulate.gun import Gun, uniform
from caloforge.simulate.parametric import Parametric
from conftest import assert_same

MESH = Geometry("small", (Layer("cartesian", regular(-90, 90, 3), regular(-90, 90, 3), (0, 480)),))
SMALL = replace(calogan(), readout=Readout(MESH))
FACTORY = partial(Parametric, SMALL, spots=5.0)
GUN = Gun(-11, uniform(1e3, 2e3))
N = 2 * CHUNK + 7


class Interrupted:
    """A simulator that fails at its third chunk, as a full disk or a pressed key would."""

    def __init__(self) -> None:
        self.inner, self.left = FACTORY(), 2
        self.geometry = self.inner.geometry
        self.provenance = self.inner.provenance

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("interrupted")
        return self.inner.simulate(incident, seed=seed)


class Slow(Interrupted):
    """A simulator that takes a while for each chunk, to be killed in between."""

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        time.sleep(0.3)
        return self.inner.simulate(incident, seed=seed)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an uninterrupted production."""
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    produce(FACTORY, GUN, path, n=N, seed=3, command="test")
    assert os.listdir(path.parent) == ["a.h5"]
    return path.read_bytes()


def test_a_production_equals_the_sample_made_in_memory(tmp_path: Path, whole: bytes) -> None:
    (tmp_path / "a.h5").write_bytes(whole)
    made, sample = io.read(tmp_path / "a.h5"), simulate(FACTORY(), GUN, n=N, seed=3)
    assert made.provenance == sample.provenance | {"command": "test"}
    assert_same(replace(made, provenance={}), replace(sample, provenance={}))
    assert len(made) == N


def test_an_interrupted_production_continues_to_the_same_file(tmp_path: Path, whole: bytes) -> None:
    path, steps = tmp_path / "a.h5", []
    with pytest.raises(RuntimeError, match="interrupted"):
        produce(Interrupted, GUN, path, n=N, seed=3, command="test")
    assert not path.exists()
    assert len(list((tmp_path / "a.h5.parts").glob("chunk-*.h5"))) == 2
    produce(FACTORY, GUN, path, n=N, seed=3, command="test", progress=lambda done, n: steps.append((done, n)))
    assert path.read_bytes() == whole
    assert steps == [(2 * CHUNK, N), (N, N)]
    assert os.listdir(tmp_path) == ["a.h5"]


def test_the_number_of_workers_does_not_matter(tmp_path: Path, whole: bytes) -> None:
    produce(FACTORY, GUN, tmp_path / "a.h5", n=N, seed=3, workers=2, command="test")
    assert (tmp_path / "a.h5").read_bytes() == whole


def test_a_killed_production_continues_to_the_same_file(tmp_path: Path, whole: bytes) -> None:
    script = ("from test_simulate import *\n"
              "if __name__ == '__main__':\n"
              f"    produce(Slow, GUN, {str(tmp_path / 'a.h5')!r}, n=N, seed=3, command='test')\n")  # fmt: skip
    (tmp_path / "run.py").write_text(script)
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent / "src")])
    run = subprocess.Popen([sys.executable, tmp_path / "run.py"], env=os.environ | {"PYTHONPATH": paths},
                           start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("a.h5.parts/chunk-*.h5")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    (tmp_path / "run.py").unlink()
    assert os.listdir(tmp_path) == ["a.h5.parts"]
    produce(FACTORY, GUN, tmp_path / "a.h5", n=N, seed=3, command="test")
    assert (tmp_path / "a.h5").read_bytes() == whole


def test_parts_of_another_command_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with pytest.raises(RuntimeError, match="interrupted"):
        produce(Interrupted, GUN, path, n=N, seed=3)
    for changed in ({"seed": 4}, {"n": N + 1}, {"command": "other"}):
        with pytest.raises(ValueError, match=r"another command.*delete it"):
            produce(FACTORY, GUN, path, **({"n": N, "seed": 3} | changed))


def test_nothing_is_overwritten_and_nothing_empty_is_made(tmp_path: Path) -> None:
    (tmp_path / "a.h5").touch()
    with pytest.raises(FileExistsError):
        produce(FACTORY, GUN, tmp_path / "a.h5", n=1, seed=0)
    for n, workers in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="expected at least 1"):
            produce(FACTORY, GUN, tmp_path / "b.h5", n=n, seed=0, workers=workers)
    with pytest.raises(ValueError, match="expected at least 1"):
        simulate(FACTORY(), GUN, n=0, seed=0)


def test_chunks_are_independent_and_a_longer_sample_starts_alike() -> None:
    short, long = (simulate(FACTORY(), GUN, n=n, seed=3) for n in (CHUNK, 2 * CHUNK))
    np.testing.assert_array_equal(long.energy[:CHUNK], short.energy)
    assert not np.array_equal(long.incident.energy[CHUNK:], short.incident.energy)


def test_the_medium_of_calogan_follows_from_its_materials() -> None:
    # PDG: X0 [mm], density [g/cm3], Z, critical energy [MeV]; mixture rules of hep-ex/0001020.
    lead, argon = (5.612, 11.35, 82, 7.43, 2.0), (140.0, 1.396, 18, 32.84, 4.0)
    share = np.array([thick / x0 for x0, *_, thick in (lead, argon)])
    mass = np.array([density * thick for _, density, *_, thick in (lead, argon)])
    critical = share @ [7.43, 32.84] / share.sum()
    detector = calogan()
    assert detector.depth == 480
    assert detector.x0 == pytest.approx(6 / share.sum(), rel=0.01)
    assert detector.critical == pytest.approx(critical, rel=0.01)
    assert detector.zeff == pytest.approx(mass @ [82, 18] / mass.sum(), rel=0.01)
    assert detector.moliere == pytest.approx(21.2 * detector.x0 / critical, rel=0.01)


def test_detectors_are_found_by_name() -> None:
    assert all(find(name).name == name for name in DETECTORS)
    with pytest.raises(ValueError, match="got detector 'atlas', expected one of calogan"):
        find("atlas")


def test_the_parametric_simulator_follows_the_protocol() -> None:
    simulator: Simulator = FACTORY()
    assert simulator.geometry is SMALL.geometry
