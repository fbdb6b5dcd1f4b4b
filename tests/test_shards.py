"""Shards of a sample, made apart and merged: the bytes of the whole, or one sentence."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from caloforge import io
from caloforge.cli import run
from caloforge.geometry import regular
from caloforge.simulate import produce
from caloforge.simulate.detectors import Readout
from caloforge.simulate.parametric import Parametric
from caloforge.simulate.shards import merge, parse_shard, shard_blocks
from test_simulate import FACTORY, GUN, SMALL, N

Files = Callable[..., Path]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The three shards of a sample of three chunks."""
    folder = tmp_path_factory.mktemp("shards")
    for i in (1, 2, 3):
        produce(FACTORY, GUN, folder / f"{i}.h5", n=N, seed=3, shard=(i, 3), workers=2 if i == 2 else 1)
    return [folder / f"{i}.h5" for i in (1, 2, 3)]


def changed(path: Path, to: Path, n: int | None = None, **provenance: Any) -> Path:
    """A copy of a file with another provenance or fewer showers."""
    showers = io.read(path)
    io.write(replace(showers, provenance=showers.provenance | provenance)[:n], to)
    return to


def test_merged_shards_are_the_whole_sample(tmp_path: Path, shards: list[Path]) -> None:
    steps: list[tuple[int, int]] = []
    produce(FACTORY, GUN, tmp_path / "whole.h5", n=N, seed=3)
    assert merge(shards[::-1], tmp_path / "a.h5", progress=lambda *step: steps.append(step)) == N
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert steps == [(25, N), (50, N), (N, N)]
    assert io.read_header(shards[1])[2]["shard"] == {"index": 2, "count": 3, "n": N, "block": 25, "inputs": {}}


WRONG = {
    "none": (lambda s, tmp: [], "got no files"),
    "missing": (lambda s, tmp: [s[0], s[2]], "got 2 of 3 shards, expected shard 2 too; make it with --shard 2/3"),
    "twice": (lambda s, tmp: [*s, s[1]], "got shard 2 twice"),
    "whole": (lambda s, tmp: [s[0], changed_whole(s[1], tmp)], "which is a whole sample"),
    "other seed": (lambda s, tmp: [s[0], changed(s[1], tmp / "b.h5", seed=4), s[2]], "with seed = 3 and .* with 4"),
    "other gun": (
        lambda s, tmp: [*s[:2], changed(s[2], tmp / "b.h5", gun=replace(GUN, pdg=22).describe())],
        "with gun.pdg = -11 and .* with 22, expected shards of one sample",
    ),
    "other detector": (lambda s, tmp: [other_mesh(tmp), *s[1:]], "with geometry.layers.* and"),
    "new setting": (lambda s, tmp: [*s[:2], changed(s[2], tmp / "b.h5", cut=1)], "with cut = nothing and .* with 1"),
    "short": (lambda s, tmp: [changed(s[0], tmp / "b.h5", n=20), *s[1:]], "of 20 showers, expected 25; make it again"),
    "no file": (lambda s, tmp: [s[0], tmp / "none.h5"], "no such file"),
}


def changed_whole(path: Path, folder: Path) -> Path:
    showers = io.read(path)
    io.write(replace(showers, provenance={}), folder / "b.h5")
    return folder / "b.h5"


def other_mesh(folder: Path) -> Path:
    geometry = replace(SMALL.geometry, layers=(replace(SMALL.geometry.layers[0], first=regular(-80, 80, 3)),))
    other = partial(Parametric, replace(SMALL, readout=Readout(geometry)), spots=5.0)
    produce(other, GUN, folder / "b.h5", n=N, seed=3, shard=(1, 3))
    return folder / "b.h5"


@pytest.mark.parametrize(("files", "message"), WRONG.values(), ids=list(WRONG))
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, shards: list[Path], files: Any, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        merge(files(shards, tmp_path), tmp_path / "a.h5")
    assert not list(tmp_path.glob("*a.h5*"))


def test_merge_on_the_command_line(tmp_path: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    out, names = str(tmp_path / "a.h5"), [str(path) for path in shards]
    assert run(["merge", *names, "-o", out]) == 0
    assert capsys.readouterr().out == f"{out}: {N} showers\n"
    assert run(["merge", *names, "-o", out]) == 2
    assert "which exists" in capsys.readouterr().err
    assert run(["merge", names[0], "-o", out, "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(io.read(out)) == N


def test_shards_are_contiguous_and_complete() -> None:
    for n_blocks in (3, 4, 17):
        parts = [shard_blocks((i, 3), n_blocks) for i in (1, 2, 3)]
        assert [k for part in parts for k in part] == list(shard_blocks(None, n_blocks)) == list(range(n_blocks))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match="got 4 shards of a sample of 3 blocks, expected at most 3; lower N"):
        shard_blocks((1, 4), 3)


def test_shards_as_text() -> None:
    assert parse_shard("2/4") == (2, 4)
    assert parse_shard(None) is None
    for text in ("0/4", "5/4", "a/b", "4", "1/0", "-1/4", "1/2/3"):
        with pytest.raises(ValueError, match=f"got shard '{text}', expected i/N with i from 1 to N"):
            parse_shard(text)
    assert run(["simulate", "calogan", "--engine", "parametric", "-n", "5", "-o", "x.h5", "--shard", "5/4"]) == 2
    with pytest.raises(ValueError, match="got shard 5/4, expected i/N"):
        shard_blocks((5, 4), 10)
