"""Productions that are killed, interrupted, continued: the file is that of an undisturbed one, byte for byte."""

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import dask
import psutil
import pytest

from caloforge.showers import Incident, Showers
from caloforge.simulate import CHUNK, produce
from test_simulate import FACTORY, GUN, Slow

N = 23 * CHUNK + 8
HERE = Path(__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "src")])}
DRIVER = """from pathlib import Path
from test_production import *
if __name__ == "__main__":
    produce(Slow, GUN, Path({path!r}), n=N, seed=3, workers=2)
"""


class Counted(Slow):
    """A slow simulator that notes its calls in a file."""

    def __init__(self, note: str) -> None:
        super().__init__()
        self.note = note

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        with open(self.note, "a") as file:
            file.write(f"{seed}\n")
        time.sleep(0.15)
        return self.inner.simulate(incident, seed=seed)


class Dying(Slow):
    """An engine that crashes."""

    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        os._exit(3)


class Wrong(Counted):
    def simulate(self, incident: Incident, *, seed: int) -> Showers:
        super().simulate(incident, seed=seed)
        raise ValueError("got bad physics")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of an undisturbed production."""
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    produce(FACTORY, GUN, path, n=N, seed=3, workers=2)
    return path.read_bytes()


def workers(driver: int) -> list[psutil.Process]:
    """Worker processes of a driver."""
    children = psutil.Process(driver).children(recursive=True)
    return [p for p in children if p.status() != "zombie" and "spawn_main" in " ".join(p.cmdline())]


def wait_until(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_a_killed_worker_costs_its_chunk_only(tmp_path: Path, whole: bytes) -> None:
    note, killed, draw = tmp_path / "calls", [], random.Random(1)

    def kill() -> None:
        wait_until(note.exists)
        for _ in range(2):
            time.sleep(draw.uniform(0.1, 0.7))
            victim = draw.choice(workers(os.getpid()) or [None])
            if victim:
                victim.kill()
                killed.append(victim.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    produce(partial(Counted, str(note)), GUN, tmp_path / "a.h5", n=N, seed=3, workers=2)
    thread.join()
    assert killed
    assert (tmp_path / "a.h5").read_bytes() == whole
    calls = note.read_text().split()
    assert len(set(calls)) == 24
    assert len(calls) <= 24 + len(killed)


def test_a_killed_driver_is_continued(tmp_path: Path, whole: bytes) -> None:
    path, draw = tmp_path / "a.h5", random.Random(2)
    (tmp_path / "run.py").write_text(DRIVER.format(path=str(path)))
    for _ in range(2):
        run = subprocess.Popen([sys.executable, tmp_path / "run.py"], env=ENVIRONMENT)
        wait_until((tmp_path / "a.h5.parts" / "run.json").exists)
        time.sleep(draw.uniform(0, 1.5))
        left = workers(run.pid)
        run.kill()
        run.wait()
        wait_until(lambda left=left: not any(p.is_running() and p.status() != "zombie" for p in left))
    assert not path.exists()
    # What killed processes leave half-written disturbs nobody.
    (tmp_path / "a.h5.parts" / ".chunk-000011.h5.123.tmp").write_text("half")
    (tmp_path / ".a.h5.123.tmp").write_text("half")
    produce(FACTORY, GUN, path, n=N, seed=3)
    assert path.read_bytes() == whole
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "run.py"]


def test_ctrl_c_keeps_finished_chunks_and_is_one_sentence(tmp_path: Path) -> None:
    for attempt in range(3):  # on a busy machine the signal may be lost in a callback of the workers' manager
        folder = tmp_path / str(attempt)
        folder.mkdir()
        code, said, left = interrupted(folder)
        if said:
            break
    assert said.startswith("caloforge: interrupted; finished chunks")
    assert code == 130
    assert left
    assert not any(p.is_running() and p.status() != "zombie" for p in left)
    assert list((folder / "a.h5.parts").glob("chunk-*.h5"))
    assert not (folder / "a.h5").exists()


def interrupted(folder: Path) -> tuple[int | None, str, list[psutil.Process]]:
    """Exit code, standard error and former workers of a production that is interrupted; '' if it had to be killed."""
    words = ["simulate", "calogan", "--engine", "parametric", "-n", "60000", "--workers", "2", "-o", "a.h5"]
    # A test run that is itself a background job ignores the signal, and so would this process.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "caloforge", *words]
    run = subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, text=True,
                           stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    wait_until(lambda: list((folder / "a.h5.parts").glob("chunk-*.h5")))
    left = workers(run.pid)
    for _ in range(3):  # people press it again
        os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to the workers too
        try:
            said = run.communicate(timeout=15)[1]
        except subprocess.TimeoutExpired:
            continue
        return run.returncode, said, left
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    return run.returncode, "", left


def test_a_simulator_that_fails_is_heard_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got bad physics"):
        produce(partial(Wrong, str(tmp_path / "calls")), GUN, tmp_path / "a.h5", n=10, seed=3)
    assert len((tmp_path / "calls").read_text().split()) == 1
    once = dask.config.set({"distributed.scheduler.allowed-failures": 0})
    with once, pytest.raises(ChildProcessError, match="got a block that ended its worker 1 times"):
        produce(Dying, GUN, tmp_path / "b.h5", n=10, seed=3)


def test_one_process_works_in_a_folder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "a.h5.parts"
    folder.mkdir()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="in which another process works"):
            produce(FACTORY, GUN, tmp_path / "a.h5", n=10, seed=3)
    # Chunks without a description are what is left of a folder that was being removed.
    (folder / "chunk-000000.h5").write_text("of another production")
    before, threads = dict(os.environ), threading.active_count()
    produce(FACTORY, GUN, tmp_path / "a.h5", n=10, seed=3)
    assert os.listdir(tmp_path) == ["a.h5"]
    # Nothing is left of the workers.
    assert dict(os.environ) == before
    assert not workers(os.getpid())
    assert threading.active_count() <= threads + 1  # Dask keeps one idle thread
