"""Worker processes in batch jobs, with stand-ins for the commands of SLURM and HTCondor; generation with workers."""

import os
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from caloforge import io, workflow
from caloforge.fastsim import FastSim
from caloforge.models.vae import VAEConfig
from caloforge.simulate import batch, produce
from caloforge.simulate.batch import batch_cluster
from caloforge.simulate.cluster import ClusterConfig, choose_cluster, load_cluster
from caloforge.simulate.gun import Gun, uniform
from caloforge.simulate.shards import merge
from caloforge.testing import small_geometry, small_showers
from test_simulate import FACTORY, GUN, N, Slow

HERE = Path(__file__).parent
SLURM = """kind = "slurm"
jobs = 2
cores = 3
memory = "12GB"
walltime = "04:00:00"
queue = "standard"
account = "atlas"
job_extra = ["--constraint=zen4"]
prologue = ["export GEANT4_DATA_DIR=/data/geant4"]
python = "/opt/python"
interface = "lo"
"""
CONDOR = """kind = "htcondor"
jobs = 3
memory = "3GB"
disk = "5GB"
account = "group_atlas"
job_extra = ['+JobFlavour = "longlunch"']
prologue = ["export GEANT4_DATA_DIR=/data/geant4"]
interface = "lo"
"""

# Stand-ins: the job script runs in the background of this machine, and is noted in submitted.txt.
SBATCH = """#!/bin/sh
cp "$1" "$0.job"
cd /
setsid sh "$0.job" > "$0.log" 2>&1 < /dev/null &
echo $! >> "$(dirname "$0")/submitted.txt"
echo "Submitted batch job $!"
"""
CONDOR_SUBMIT = f"""#!{sys.executable}
import re, subprocess, sys
from pathlib import Path
words = re.search(r'^Arguments = "-c \\'(.*)\\'"$', Path(sys.argv[-1]).read_text(), re.M)[1]
with open(sys.argv[0] + ".log", "w") as log:
    words = words.replace("''", "'").replace('""', '"')
    job = subprocess.Popen(["/bin/sh", "-c", words], start_new_session=True, cwd="/", stdin=subprocess.DEVNULL,
                           stdout=log, stderr=log)
with open(Path(sys.argv[0]).with_name("submitted.txt"), "a") as note:
    print(job.pid, file=note)
print(f"1 job(s) submitted to cluster {{job.pid}}.")
"""
CANCEL = '#!/bin/sh\nkill -9 "-${1%.0}"\n'


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the process ids of all jobs that were submitted."""
    folder = tmp_path / "bin"
    folder.mkdir()
    commands = {"sbatch": SBATCH, "scancel": CANCEL, "condor_submit": CONDOR_SUBMIT, "condor_rm": CANCEL}
    for name, text in commands.items():
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "submitted.txt"


def config(kind: str, **changes: object) -> ClusterConfig:
    """A cluster of this machine behind a batch system, whose workers know the tests."""
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
    return ClusterConfig(kind=kind, interface="lo", prologue=(f"export PYTHONPATH={paths}",), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a production by this machine."""
    path = tmp_path_factory.mktemp("whole") / "a.h5"
    produce(FACTORY, GUN, path, n=2 * N, seed=3)
    return path.read_bytes()


def test_jobs_of_htcondor_give_the_file_of_this_machine(tmp_path: Path, jobs: Path, whole: bytes) -> None:
    produce(FACTORY, GUN, tmp_path / "a.h5", n=2 * N, seed=3, cluster=config("htcondor"))
    assert (tmp_path / "a.h5").read_bytes() == whole
    assert len(jobs.read_text().split()) == 1
    assert not alive(int(jobs.read_text()))


def test_a_job_of_slurm_that_ends_is_submitted_again(
    tmp_path: Path, jobs: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LOOK_EVERY", 0.1)

    def at_limit(done: int, n: int) -> None:
        if done and len(jobs.read_text().split()) == 1:
            os.killpg(int(jobs.read_text()), signal.SIGKILL)

    produce(Slow, GUN, tmp_path / "a.h5", n=2 * N, seed=3, cluster=config("slurm", cores=2), progress=at_limit)
    assert (tmp_path / "a.h5").read_bytes() == whole
    assert len(jobs.read_text().split()) == 2
    assert not any(alive(int(job)) for job in jobs.read_text().split())


def alive(group: int) -> bool:
    """Whether the processes of a job still run, after they were given time to end."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        if Path(f"/proc/{group}/stat").exists() and ") Z " in Path(f"/proc/{group}/stat").read_text():
            return False  # ended, and nobody has asked for its exit code yet
        time.sleep(0.05)
    return True


def test_a_batch_system_that_refuses_is_one_sentence(tmp_path: Path, jobs: Path) -> None:
    jobs.with_name("sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(ChildProcessError, match=r"got no jobs from slurm \(sbatch: error: invalid partition\)"):
        produce(FACTORY, GUN, tmp_path / "a.h5", n=N, seed=3, cluster=config("slurm"))
    jobs.with_name("sbatch").unlink()
    with pytest.raises(ChildProcessError, match=r"got no jobs from slurm .*sbatch"):
        produce(FACTORY, GUN, tmp_path / "a.h5", n=N, seed=3, cluster=config("slurm"))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (SLURM, ["#SBATCH -p standard", "#SBATCH -A atlas", "#SBATCH --cpus-per-task=3", "#SBATCH --mem=12G",
                 "#SBATCH -t 04:00:00", "#SBATCH --constraint=zen4", "export GEANT4_DATA_DIR=/data/geant4",
                 "#SBATCH -J caloforge", "/opt/python -m distributed", "--nworkers 3", "--nthreads 1"]),
        (CONDOR, ["MY.DaskWorkerCores = 1", "MY.DaskWorkerMemory = 3000000000", "MY.DaskWorkerDisk = 5000000000",
                  "accounting_group = group_atlas", '+JobFlavour = "longlunch"',
                  "export GEANT4_DATA_DIR=/data/geant4; ", f"{sys.executable} -m distributed", "--nthreads 1"]),
    ],
    ids=["slurm", "htcondor"],
)  # fmt: skip
def test_the_job_script_holds_what_the_file_says(tmp_path: Path, text: str, lines: list[str]) -> None:
    (tmp_path / "cluster.toml").write_text(text)
    with batch_cluster(load_cluster(tmp_path / "cluster.toml")) as cluster:
        script = cluster.job_script()
    assert not [line for line in lines if line not in script]


BAD = {
    "unknown key": ("partition = 'x'", "got unknown key 'partition' in .*expected only kind, jobs"),
    "unknown kind": ("kind = 'pbs'", "got 'pbs' for kind in .*expected one of local, slurm, htcondor"),
    "wrong type": ("jobs = 'many'", "got 'many' for jobs in .*expected int"),
    "no list": ("kind = 'slurm'\nprologue = 'module load x'", "for prologue in .*expected a list"),
    "wrong item": ("kind = 'slurm'\nprologue = [3]", "got 3 for prologue in .*expected str"),
    "none": ("cores = 0", "got 1 jobs of 0 cores, expected at least 1"),
    "not for it": ("kind = 'htcondor'\nqueue = 'x'", "got queue for a cluster of kind htcondor, expected only jobs"),
    "local jobs": ("jobs = 3", "got jobs for a cluster of kind local, expected only cores"),
    "no size": ("kind = 'slurm'\nmemory = 'lots'", "got memory = 'lots', expected a size such as 8GB"),
    "no pair": ("kind = 'htcondor'\njob_extra = ['x']", "expected 'key = value' each"),
    "no TOML": ("kind = ", "expected TOML"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=list(BAD))
def test_a_wrong_cluster_file_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.toml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_cluster(tmp_path / "cluster.toml")
    assert str(tmp_path / "cluster.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_or_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "local.toml").write_text("cores = 3")
    assert choose_cluster(2, None).n_workers == 2
    assert choose_cluster(1, tmp_path / "local.toml") == ClusterConfig(cores=3)
    assert ClusterConfig(kind="slurm", jobs=4, cores=8).n_workers == 32
    with pytest.raises(ValueError, match="got 2 workers and a cluster, expected one of them"):
        choose_cluster(2, tmp_path / "local.toml")
    with pytest.raises(FileNotFoundError, match=r"got cluster .*none.toml, expected a TOML file"):
        choose_cluster(1, tmp_path / "none.toml")


def test_generation_does_not_depend_on_workers_or_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = VAEConfig(n_latent=2, width=8, depth=1, layer_hidden=8, layer_transforms=1)
    gun, model = Gun(11, uniform(1e3, 1e5)), tmp_path / "model"
    fast = FastSim.create(small_geometry(), config, valid=gun)
    fast.fit_transform(small_showers(n=80))
    fast.save(model)
    incident = gun.sample(2300, 5)

    def generate(name: str, **how: object) -> bytes:
        workflow.generate(fast, incident, Path(name), seed=3, command="x", model=model, **how)  # type: ignore[arg-type]
        return Path(name).read_bytes()

    whole = generate("a.h5")
    assert io.read("a.h5").energy.tobytes() == fast.simulate(incident, seed=3).energy.tobytes()
    assert generate("b.h5", workers=2) == whole
    generate("1.h5", shard=(1, 2))
    generate("2.h5", shard=(2, 2))
    merge(["2.h5", "1.h5"], "c.h5")
    assert Path("c.h5").read_bytes() == whole
    incident = replace(incident, energy=incident.energy + 1)
    generate("other.h5", shard=(1, 2))
    with pytest.raises(ValueError, match=r"with shard\.inputs\.incident_sha256 = "):
        merge(["other.h5", "2.h5"], "d.h5")
    with pytest.raises(ValueError, match="without a model folder"):
        workflow.generate(fast, incident, Path("e.h5"), seed=3, command="", workers=2)
    assert not list(tmp_path.glob("*.parts"))
