"""Production of samples by worker processes, block by block.

A block depends on its index alone, so it does not matter who makes it, when, or how often. Finished blocks lie in
``FILE.parts`` until all are there; then they become FILE in the order of their index.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import io
from ..geometry import Array, Geometry
from ..showers import Showers
from .cluster import ClusterConfig
from .shards import shard_blocks, shard_provenance
from .workers import run

Progress = Callable[[int, int], None]
Block = Showers | tuple[Showers, dict[str, Array]]


@dataclass(frozen=True)
class Plan:
    """A sample of n showers in blocks of ``size``.

    factory() makes the engine, once in each worker process; make(engine, *arguments(k)) makes block k there, Showers or
    Showers and columns (``io.read_columns``). factory, make and what arguments(k) returns are pickled. provenance: of
    the finished file; inputs: what else the showers depend on (digests), so that an unfinished production is continued
    by the same one only.
    """

    factory: Callable[[], Any]
    make: Callable[..., Block]
    arguments: Callable[[int], tuple[Any, ...]]
    n: int
    size: int
    geometry: Geometry
    provenance: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_blocks(self) -> int:
        return -(-self.n // self.size)

    def showers_in(self, blocks: Collection[int]) -> int:
        """Number of showers in the blocks of these indices: the last of the sample may be shorter."""
        missing = self.n_blocks * self.size - self.n
        return len(blocks) * self.size - (missing if self.n_blocks - 1 in blocks else 0)

    def provenance_of(self, shard: tuple[int, int] | None) -> dict[str, Any]:
        """Provenance of the file of a shard, or of the whole sample without one."""
        return {**self.provenance, **shard_provenance(shard, self.n, self.size, self.inputs)}


def produce_blocks(plan: Plan, path: str | Path, cluster: ClusterConfig, *, shard: tuple[int, int] | None = None,
                   force: bool = False, progress: Progress | None = None) -> None:  # fmt: skip
    """Make the showers of a plan, or of its shard (i, N), in the workers of a cluster and write them to ``path``.

    Finished blocks are kept: the same call continues an interrupted production and gives the same file as an
    uninterrupted one. progress: called with (showers done, showers in all).
    """
    path = io.require_absent(path, force)
    blocks = shard_blocks(shard, plan.n_blocks)
    provenance = plan.provenance_of(shard)
    description = {**provenance, **plan.inputs, "n": plan.n, "chunk": plan.size}
    with _claimed(path, json.dumps(description, sort_keys=True, indent=1)) as folder:
        parts = {k: folder / f"chunk-{k:06d}.h5" for k in blocks}
        left = {k for k in blocks if not parts[k].exists()}

        def report() -> None:
            if progress:
                total = plan.showers_in(blocks)
                progress(total - plan.showers_in(left), total)

        report()
        if left:
            todo = sorted(left)
            here = os.getcwd()
            calls = ((here, plan.factory, plan.make, plan.arguments(k), k, str(parts[k])) for k in todo)
            with closing(run(cluster, _make_part, calls)) as finished:
                for k in finished:
                    left.remove(k)
                    report()
        with io.Writer(path, plan.geometry, provenance, force=force) as file:
            for k in blocks:
                file.append(io.read(parts[k]), columns=io.read_columns(parts[k]))
        shutil.rmtree(folder)


def make_here(plan: Plan, engine: Any, path: str | Path, *, shard: tuple[int, int] | None = None, force: bool = False,
              progress: Progress | None = None) -> None:  # fmt: skip
    """The same file as of ``produce_blocks``, made by ``engine`` in this process and without parts."""
    blocks = shard_blocks(shard, plan.n_blocks)
    n, done = plan.showers_in(blocks), 0
    with io.Writer(path, plan.geometry, plan.provenance_of(shard), force=force) as file:
        for k in blocks:
            showers, columns = _both(plan.make(engine, *plan.arguments(k)))
            file.append(showers, columns=columns)
            done += len(showers)
            if progress:
                progress(done, n)


_engine: list[Any] = []


def _make_part(folder: str, factory: Callable[[], Any], make: Callable[..., Block], arguments: tuple[Any, ...],
               index: int, part: str) -> int:  # fmt: skip
    """One block, made and written by a worker in the folder of the driver."""
    os.chdir(folder)
    if not _engine:  # one engine per process: Geant4 cannot be built twice
        _engine.append(factory())
    showers, columns = _both(make(_engine[0], *arguments))
    io.write(showers, part, columns=columns, force=True)
    return index


def _both(block: Block) -> tuple[Showers, dict[str, Array]]:
    return (block, {}) if isinstance(block, Showers) else block


@contextmanager
def _claimed(path: Path, description: str) -> Iterator[Path]:
    """The folder of finished blocks: made with a description of the production, or holding the same one.

    No other process works in it meanwhile, and what killed processes left half-written is gone.
    """
    folder = path.with_name(path.name + ".parts")
    described = folder / "run.json"
    if described.exists() and described.read_text() != description:
        raise ValueError(f"got {folder} of another command, expected the same one; finish that one or delete it")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        _lock(lock, folder)
        for stale in (*folder.glob(".*.tmp"), *folder.glob("*.tmp"), *path.parent.glob(f".{path.name}.*.tmp")):
            stale.unlink(missing_ok=True)
        if not described.exists():
            for part in folder.glob("chunk-*.h5"):  # of a production whose removal was interrupted
                part.unlink()
            temporary = folder / f"run.json.{os.getpid()}.tmp"
            temporary.write_text(description)
            temporary.replace(described)
        try:
            yield folder
        except ValueError:
            if not any(folder.glob("chunk-*.h5")):  # refused, and nothing to go on with
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _lock(file: Any, folder: Path) -> None:
    """Hold the file for this process; the system lets go of it however the process ends."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"got {folder}, in which another process works, expected none; wait for it") from None
    except (ImportError, OSError):
        pass  # Windows and some network file systems have no such locks: nothing is lost but this check
