"""Where worker processes run: on this machine, or in the jobs of a batch system. A cluster file in TOML says it."""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..settings import build, read_toml

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
