"""Worker processes in the jobs of a batch system: SLURM and HTCondor, through dask-jobqueue (extra ``cluster``)."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .cluster import ClusterConfig

LOOK_EVERY = 30.0  # seconds between looks for jobs that ended


@contextmanager
def open_batch(config: ClusterConfig) -> Iterator[Any]:
    """A dask-jobqueue cluster with its jobs submitted; they are cancelled when the block ends."""
    with batch_cluster(config) as cluster:
        try:
            cluster.sync(_submit, cluster, config.jobs)
        except (OSError, RuntimeError, ValueError) as error:
            raise ChildProcessError(
                f"got no jobs from {config.kind} ({_last_line(error)}), expected {config.jobs}; correct the file"
            ) from None
        looking = _replace_lost_jobs(cluster, config.jobs)
        cluster.loop.add_callback(looking.start)
        try:
            yield cluster
        finally:
            cluster.loop.add_callback(looking.stop)


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


async def _submit(cluster: Any, jobs: int) -> None:
    """Submit jobs up to this number; unlike ``cluster.scale`` it raises what the submission raised."""
    from distributed import Status

    while len(cluster.worker_spec) < jobs:
        cluster.worker_spec.update(cluster.new_worker_spec())
    try:
        await cluster
    except BaseException:
        for job in cluster.workers.values():
            if job.job_id is None:
                job.status = Status.failed  # else the cluster refuses to close
        raise


def _last_line(error: Exception) -> str:
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)])[-1]


def _replace_lost_jobs(cluster: Any, jobs: int) -> Any:
    """A periodic look for jobs whose workers are all gone (time limit, lost node); new ones are submitted for them."""
    from tornado.ioloop import PeriodicCallback

    seen: set[str] = set()
    missed: dict[str, int] = {}

    async def look() -> None:
        names = [str(worker.name) for worker in cluster.scheduler.workers.values()]
        for job, handle in list(cluster.workers.items()):
            if any(name == job or name.startswith(f"{job}-") for name in names):
                seen.add(job)
                missed[job] = 0
            elif job in seen or handle.job_id is None:  # not one that waits in the queue
                missed[job] = missed.get(job, 0) + 1
            if missed.get(job, 0) >= 2:  # once may be a restart after a crash
                seen.discard(job)
                missed[job] = 0
                with suppress(OSError, RuntimeError):
                    await cluster.workers.pop(job).close()
        with suppress(OSError, RuntimeError):  # the next look tries again
            await _submit(cluster, jobs)

    return PeriodicCallback(look, 1000 * LOOK_EVERY)
