"""Calls of a function in worker processes, on this machine or in batch jobs. Dask does the work.

Workers are processes of one thread. Geant4 holds Python's lock for as long as it simulates a block, so a busy worker
answers nobody: it counts as lost when its connection breaks, never because it is silent.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any

from .cluster import ClusterConfig

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
