"""Shards: contiguous parts of a sample, made apart (--shard i/N) and merged into the file of the whole."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import io


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """(i, N) of "i/N", counted from 1; None of none."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"got shard {text!r}, expected i/N with i from 1 to N, such as 2/10; correct it")
    return shard


def shard_blocks(shard: tuple[int, int] | None, n_blocks: int) -> range:
    """Indices of the blocks in a shard (i, N) of n_blocks blocks; all of them without a shard."""
    if shard is None:
        return range(n_blocks)
    i, count = shard
    if not 1 <= i <= count:
        raise ValueError(f"got shard {i}/{count}, expected i/N with i from 1 to N, such as 2/10; correct it")
    if count > n_blocks:
        raise ValueError(f"got {count} shards of a sample of {n_blocks} blocks, expected at most {n_blocks}; lower N")
    return range((i - 1) * n_blocks // count, i * n_blocks // count)


def shard_provenance(
    shard: tuple[int, int] | None, n: int, size: int, inputs: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What the file of a shard records beside the provenance of the whole: n showers in blocks of ``size``."""
    if shard is None:
        return {}
    return {"shard": {"index": shard[0], "count": shard[1], "n": n, "block": size, "inputs": dict(inputs)}}


def merge(
    paths: Sequence[str | Path], output: str | Path, *, force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:  # fmt: skip
    """Join the files of all shards of a sample, given in any order; returns the number of showers.

    The output is byte for byte the file that the same command without shards writes.
    progress: called with (showers done, n).
    """
    io.require_absent(output, force)
    shards = _ordered(paths)
    head = shards[0][1]["shard"]
    provenance = {k: v for k, v in shards[0][1].items() if k != "shard"}
    geometry, done = io.read_header(shards[0][0])[0], 0
    with io.Writer(output, geometry, provenance, force=force) as file:
        for path, _ in shards:
            columns, start = io.read_columns(path), 0
            for block in io.stream(path, chunk=head["block"]):  # the same blocks as the whole: the same bytes
                rows = slice(start, start + len(block))
                file.append(block, columns={name: values[rows] for name, values in columns.items()})
                start, done = rows.stop, done + len(block)
                if progress:
                    progress(done, head["n"])
    return done


def _ordered(paths: Sequence[str | Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Files and provenances of a complete set of shards, in order; ValueError says what does not fit."""
    if not paths:
        raise ValueError("got no files, expected the shards of a sample; name them")
    found: dict[int, tuple[Path, dict[str, Any]]] = {}
    first: dict[str, Any] = {}
    for path in map(Path, paths):
        geometry, n, provenance = io.read_header(path)
        if "shard" not in provenance:
            raise ValueError(f"got {path}, which is a whole sample, expected shards made with --shard; leave it out")
        shard = provenance["shard"]
        settings = _flat({**provenance, "shard": {**shard, "index": 0}, "geometry": geometry.to_dict()})
        first = first or settings
        for key in sorted(settings.keys() | first.keys()):
            if settings.get(key) != first.get(key):
                raise ValueError(f"got {paths[0]} with {key} = {_short(first.get(key))} and {path} with "
                                 f"{_short(settings.get(key))}, expected shards of one sample; make them with the same "
                                 "settings")  # fmt: skip
        index = shard["index"]
        if index in found:
            raise ValueError(f"got shard {index} twice ({found[index][0]} and {path}), expected it once; leave one out")
        if n != (expected := _showers_in(shard)):
            raise ValueError(f"got {path} of {n} showers, expected {expected}; make it again")
        found[index] = (path, provenance)
    count = first["shard.count"]
    missing = [i for i in range(1, count + 1) if i not in found]
    if missing:
        raise ValueError(f"got {len(found)} of {count} shards, expected shard {missing[0]} too; make it with "
                         f"--shard {missing[0]}/{count}")  # fmt: skip
    return [found[i] for i in sorted(found)]


def _showers_in(shard: Mapping[str, Any]) -> int:
    blocks = shard_blocks((shard["index"], shard["count"]), -(-shard["n"] // shard["block"]))
    return int(min(blocks.stop * shard["block"], shard["n"]) - blocks.start * shard["block"])


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data with dotted keys."""
    if not isinstance(data, dict):
        return {prefix: data}
    return {k: v for key, value in data.items() for k, v in _flat(value, f"{prefix}.{key}".lstrip(".")).items()}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
