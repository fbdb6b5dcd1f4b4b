"""Where worker processes run: on this machine, or in the jobs of a batch system. Dask does the work.

Workers are processes of one thread. Geant4 holds Python's lock for as long as it simulates a block, so a busy worker
answers nobody: it counts as lost when its connection breaks, never because it is silent.
"""

import asyncio
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from ..settings import build, read_toml

_SETTINGS = {
    "distributed.scheduler.worker-ttl": None,  # a busy worker is silent
    "distributed.scheduler.worker-saturation": 1.0,  # no call waits behind a busy worker
    "distributed.deploy.lost-worker-timeout": "1000 days",  # ``watched`` sees to them
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.preload": [__name__],  # dask_setup
    "distributed.admin.low-level-log-length": 10,  # these records keep the calls: memory would grow for hours
    "distributed.admin.system-monitor.log-length": 10,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
}
_BATCH = ("jobs", "cores", "memory", "account", "job_extra", "prologue", "python", "interface", "logs")
_KEYS = {"local": ("cores",), "slurm": (*_BATCH, "walltime", "queue"), "htcondor": (*_BATCH, "disk")}


@dataclass(frozen=True)
class ClusterConfig:
    """Worker processes on this machine (local) or in batch jobs (slurm, htcondor), as in a cluster file.

    jobs: batch jobs; cores: worker processes, of each job; memory, disk: of each job, as in 8GB; walltime: HH:MM:SS;
    queue: SLURM partition; account: who pays (SLURM account, HTCondor accounting group); job_extra: further directives,
    "--constraint=x" for SLURM and "key = value" for HTCondor; prologue: shell lines before the workers start; python:
    interpreter on the nodes, else the running one; interface: network that nodes and this machine share, such as ib0;
    logs: folder for the jobs' output, else the batch system's default.
    """

    kind: Literal["local", "slurm", "htcondor"] = "local"
    jobs: int = 1
    cores: int = 1
    memory: str = "4GB"
    disk: str = "2GB"
    walltime: str = "01:00:00"
    queue: str = ""
    account: str = ""
    job_extra: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    python: str = ""
    interface: str = ""
    logs: str = ""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.cores < 1:
            raise ValueError(f"got {self.jobs} jobs of {self.cores} cores, expected at least 1 of each; raise them")
        for f in fields(self)[1:]:
            if f.name not in _KEYS[self.kind] and getattr(self, f.name) != f.default:
                known = ", ".join(_KEYS[self.kind])
                raise ValueError(
                    f"got {f.name} for a cluster of kind {self.kind}, expected only {known}; take it out "
                    "or write it into job_extra"
                )
        for name in ("memory", "disk"):
            if not re.fullmatch(r"\d+(\.\d+)?\s*[kMGT]i?B", getattr(self, name)):
                raise ValueError(f"got {name} = {getattr(self, name)!r}, expected a size such as 8GB; correct it")
        if self.kind == "htcondor" and not all("=" in line for line in self.job_extra):
            raise ValueError(f"got job_extra = {list(self.job_extra)}, expected 'key = value' each; correct it")

    @property
    def n_workers(self) -> int:
        return self.jobs * self.cores


def load_cluster(path: str | Path) -> ClusterConfig:
    """The cluster in a TOML file."""
    try:
        return build(ClusterConfig, read_toml(path, "cluster"), str(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"cluster {path}: {text}") from None


def choose_cluster(workers: int, cluster: ClusterConfig | str | Path | None) -> ClusterConfig:
    """The given cluster, or ``workers`` processes on this machine."""
    if workers < 1:
        raise ValueError(f"got {workers} workers, expected at least 1; raise it")
    if cluster is None:
        return ClusterConfig(cores=workers)
    if workers != 1:
        raise ValueError(f"got {workers} workers and a cluster, expected one of them; set the cluster's jobs and cores")
    return cluster if isinstance(cluster, ClusterConfig) else load_cluster(cluster)


def run(
    config: ClusterConfig, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]
) -> Generator[Any, None, None]:
    """Results of function(*a) for each a of ``arguments``, in the order in which the cluster's workers finish them.

    A few calls per worker are under way at any time. One whose worker died is made again elsewhere, four times in all;
    an exception of the function is raised here.
    """
    from distributed import KilledWorker, as_completed

    with connect(config) as client:
        left = enumerate(arguments)
        running = as_completed(loop=client.loop)

        def submit(count: int) -> None:
            for i, values in islice(left, count):
                running.add(client.submit(function, *values, key=f"block-{i}", pure=False))

        submit(3 * config.n_workers)  # from 2 on, Dask keeps a queue and a worker gets its next call when it is free
        for future in running:
            try:
                result = future.result()
            except KilledWorker as error:
                raise ChildProcessError(
                    f"got a block that ended its worker {error.allowed_failures + 1} times, expected it to finish; "
                    "look for too little memory or a crash of the engine"
                ) from None
            future.release()
            submit(1)
            yield result


@contextmanager
def connect(config: ClusterConfig) -> Iterator[Any]:
    """A distributed.Client whose workers are starting; they and their jobs are gone when the block ends."""
    import dask
    import distributed

    kept = {name: os.environ.get(name) for name in dask.config.get("distributed.nanny.pre-spawn-environ")}
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with (
            dask.config.set(_SETTINGS),
            _open(config) as cluster,
            distributed.Client(cluster, set_as_default=False) as client,
        ):
            yield client
    finally:
        logger.setLevel(level)
        # Starting a worker sets OMP_NUM_THREADS=1 and others in this process too.
        for name, value in kept.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


@contextmanager
def _open(config: ClusterConfig) -> Iterator[Any]:
    if config.kind != "local":
        from .batch import open_batch

        with open_batch(config) as cluster:
            yield cluster
        return
    from distributed import LocalCluster, Status

    ended = (Status.closed, Status.failed)  # killed before it had started, say: Dask gives up such a worker
    others = set(multiprocessing.active_children())
    try:
        try:
            cluster = LocalCluster(
                n_workers=config.cores, threads_per_worker=1, memory_limit=None, host="127.0.0.1",
                dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}, silence_logs=logging.CRITICAL,
            )  # fmt: skip
        except RuntimeError as error:
            raise ChildProcessError(
                f"got no worker processes ({error}), expected {config.cores}; in a script call this below "
                "if __name__ == '__main__':"
            ) from None
        with cluster:
            try:
                with watched(cluster, lambda: [k for k, w in cluster.workers.items() if w.status in ended], 5):
                    yield cluster
            finally:
                cluster.sync(_stop, cluster)
    finally:
        for process in set(multiprocessing.active_children()) - others:
            if process.name.startswith("Dask Worker"):  # restarted while the cluster closed
                process.kill()


@contextmanager
def watched(cluster: Any, lost: Callable[[], list[Any]], every: float) -> Iterator[None]:
    """Replace workers or jobs that have ended, at intervals of ``every`` seconds; lost() names them."""
    from tornado.ioloop import PeriodicCallback

    async def look() -> None:
        with suppress(OSError, RuntimeError, ValueError):  # the next look tries again
            for name in lost():
                await cluster.workers.pop(name).close()
            await start_missing(cluster)

    looking = PeriodicCallback(look, 1000 * every)
    cluster.loop.add_callback(looking.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(looking.stop)


async def start_missing(cluster: Any) -> None:
    """Start the workers or jobs that the cluster lacks; unlike ``cluster.scale`` it raises what the start raised."""
    from distributed import Status

    try:
        await cluster
    except BaseException:
        for worker in cluster.workers.values():
            if worker.status == Status.created:
                worker.status = Status.failed  # else the cluster refuses to close
        raise


def dask_setup(worker: Any) -> None:
    """Called by Dask in a new worker process: silence, and Ctrl-C stops the driver, which stops the workers."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


async def _stop(cluster: Any) -> None:
    """Kill workers that do not end at once: finished blocks are safe, and Geant4 hears nothing within one."""
    await asyncio.gather(*(nanny.close(timeout=0.5) for nanny in cluster.workers.values()), return_exceptions=True)
