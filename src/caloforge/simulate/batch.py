"""Worker processes in the jobs of a batch system: SLURM and HTCondor, through dask-jobqueue (extra ``cluster``)."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .cluster import ClusterConfig
from .workers import start_missing, watched

LOOK_EVERY = 30.0  # seconds between looks for jobs that ended


@contextmanager
def open_batch(config: ClusterConfig) -> Iterator[Any]:
    """A dask-jobqueue cluster with its jobs submitted; they are cancelled when the block ends."""
    with batch_cluster(config) as cluster:
        while len(cluster.worker_spec) < config.jobs:
            cluster.worker_spec.update(cluster.new_worker_spec())
        try:
            cluster.sync(start_missing, cluster)
        except (OSError, RuntimeError, ValueError) as error:
            raise ChildProcessError(
                f"got no jobs from {config.kind} ({_last_line(error)}), expected {config.jobs}; correct the file"
            ) from None
        with watched(cluster, _find_lost(cluster), LOOK_EVERY):
            yield cluster


def batch_cluster(config: ClusterConfig) -> Any:
    """The dask-jobqueue cluster of a batch system, no job submitted yet; its ``job_script()`` is what will be."""
    dask_jobqueue = _import_jobqueue(config.kind)
    own: dict[str, Any]
    if config.kind == "slurm":
        own = {"walltime": config.walltime, "queue": config.queue or None, "account": config.account or None}
        own["job_extra_directives"] = list(config.job_extra)
    else:
        pairs = [line.partition("=") for line in config.job_extra]
        group = {"accounting_group": config.account} if config.account else {}
        own = {"disk": config.disk, "job_extra_directives": group | {k.strip(): v.strip() for k, _, v in pairs}}
    kind = {"slurm": dask_jobqueue.SLURMCluster, "htcondor": dask_jobqueue.HTCondorCluster}[config.kind]
    return kind(
        cores=config.cores, processes=config.cores, memory=config.memory, python=config.python or None,
        interface=config.interface or None, log_directory=config.logs or None, job_name="caloforge",
        job_script_prologue=["export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=False", *config.prologue],
        # The batch system limits the memory. Dask would pause a worker for good that keeps what it once took.
        worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"}, silence_logs=logging.CRITICAL,
        **own,
    )  # fmt: skip


def _import_jobqueue(kind: str) -> Any:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        import dask_jobqueue
    except ImportError:
        raise FileNotFoundError(
            f"got a cluster of kind {kind}, expected the package dask-jobqueue; install it with: "
            "pip install 'caloforge[cluster]'"
        ) from None
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # version 0.9 makes Ctrl-C a silent exit
            signal.signal(number, handler)
    return dask_jobqueue


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1]


def _find_lost(cluster: Any) -> Callable[[], list[str]]:
    """A function that names the jobs whose workers are all gone (time limit, lost node), or that were refused."""
    seen: set[str] = set()
    missed: dict[str, int] = {}

    def lost() -> list[str]:
        names = [str(worker.name) for worker in cluster.scheduler.workers.values()]
        for job, handle in cluster.workers.items():
            here = any(name == job or name.startswith(f"{job}-") for name in names)
            seen.update({job} if here else ())
            waits = job not in seen and handle.job_id is not None  # in the queue of the batch system
            missed[job] = 0 if here or waits else missed.get(job, 0) + 1
        out = [job for job in cluster.workers if missed[job] >= 2]  # once may be a restart after a crash
        seen.difference_update(out)
        for job in out:
            missed[job] = 0
        return out

    return lost
