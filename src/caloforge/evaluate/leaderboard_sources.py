"""Rows of the leaderboard: published ones from ``data/leaderboard.csv``, ours from cards, timings and given files."""

import csv
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import hub

Measured = tuple[float, float]  # value, error

GEANT4 = "Geant4"
AUC = "auc"  # the larger one of auc_low and auc_high
TIMES = ("cpu-1", "cpu-100", "cpu-10000", "gpu-1", "gpu-100", "gpu-10000")
SAME = {"ds1-gamma": "ds1-photons", "ds1-piplus": "ds1-pions"}  # samples of ours that stand beside a published data set


@dataclass(frozen=True)
class Entry:
    """One row. values: auc_low, auc_high, auc_resnet, fpd, kpd (both x 1000), and ms per shower by name of TIMES.

    A value that was not measured is absent. parameters: in training and generation, 0 where unknown; engine: what our
    times were measured with.
    """

    dataset: str
    name: str
    published: bool
    values: Mapping[str, Measured] = field(default_factory=dict)
    parameters: tuple[float, float] = (0.0, 0.0)
    engine: str = ""

    def value(self, what: str) -> Measured | None:
        """A score or a time with its error; None if not measured."""
        if what == AUC:
            both = [self.values[name] for name in ("auc_low", "auc_high") if name in self.values]
            return max(both) if len(both) == 2 else None
        return self.values.get(what)


def published() -> list[Entry]:
    """The published submissions, and Geant4 for the floors."""
    with open(hub.DATA / "leaderboard.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    columns = {"auc_low": "auc_low", "auc_high": "auc_high", "auc_resnet": "auc_resnet", "fpd": "fpd_e3"}
    columns |= {"kpd": "kpd_e3"} | {time: f"{time.replace('-', '_')}_ms" for time in TIMES}
    out = []
    for row in rows:
        values = {n: (float(row[c]), float(row[f"{c}_std"])) for n, c in columns.items() if row[c]}
        parameters = float(row["parameters_training"] or 0), float(row["parameters_generation"] or 0)
        out.append(Entry(row["dataset"], row["submission"], row["published"] == "yes", values, parameters))
    return out


def shipped() -> list[Entry]:
    """Our shipped models and the Geant4 floor beside them, from their cards and ``data/timings.json``."""
    timings = _rows(hub.DATA / "timings.json")
    out: dict[tuple[str, str], Entry] = {}
    for name in hub.MODEL_NAMES:
        folder = hub.DATA / "models" / name
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        if "sample" not in card["scores"]:
            continue  # not judged
        sample = str(card["scores"]["sample"]).removesuffix("-test")
        dataset = SAME.get(sample, sample)
        own = [row for row in timings if row["model"] == name]
        times, engine = _times(own)
        parameters = (count_parameters(folder / "weights.safetensors"), 0.0)
        out[dataset, name] = Entry(dataset, name, False, _scores(card["scores"]) | times, parameters, engine)
        geant4 = {"cpu-1": (float(own[0]["geant4_ms_per_shower"]), 0.0)} if own else {}
        if own or (dataset, GEANT4) not in out:  # a model that was not timed brings no time of Geant4 either
            out[dataset, GEANT4] = Entry(dataset, GEANT4, False, _scores(card["scores"], "floor") | geant4)
    return list(out.values())


def added(text: str, dataset: str) -> Entry:
    """A row from ``name:metrics.json:benchmark.json``; the last part may be missing."""
    name, _, files = text.partition(":")
    metrics, _, benchmark = files.partition(":")
    if not name or not metrics:
        raise ValueError(
            f"got --add {text}, expected name:metrics.json or name:metrics.json:benchmark.json; write it so"
        )
    values = _scores(_candidate(Path(metrics), name))
    times, engine = _times(_of_model(_rows(Path(benchmark)), name, benchmark)) if benchmark else ({}, "")
    return Entry(dataset, name, False, values | times, engine=engine)


def _json(path: Path, what: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"got {path}, expected a {what}; no such file, check the name")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"got {path}, expected a {what}; it is no JSON, check the name") from None


def _candidate(path: Path, name: str) -> Mapping[str, Any]:
    """Scores in a metrics.json, of one candidate or of several by name."""
    content = _json(path, "metrics.json of caloforge evaluate")
    candidates = content.get("candidates") if isinstance(content, dict) else None
    if isinstance(candidates, dict) and candidates:
        if name not in candidates and len(candidates) > 1:
            raise ValueError(f"got {name!r} for {path}, expected one of {', '.join(candidates)}; name the candidate so")
        content = candidates.get(name, next(iter(candidates.values())))
    if not isinstance(content, dict) or not isinstance(content.get("scores"), dict):
        raise ValueError(f"got {path} without scores, expected a metrics.json of caloforge evaluate; check the name")
    scores: Mapping[str, Any] = content["scores"]
    return scores


def _scores(scores: Mapping[str, Any], kind: str = "value") -> dict[str, Measured]:
    """Scores of ours that the leaderboard knows; kind: 'value' or 'floor'. FPD and KPD times 1000."""
    out: dict[str, Measured] = {}
    error = "error" if kind == "value" else "floor_error"
    for name, factor in {"auc_low": 1, "auc_high": 1, "auc_resnet": 1, "fpd": 1000, "kpd": 1000}.items():
        score = scores.get(name)
        if isinstance(score, dict) and score.get(kind) is not None:
            out[name] = factor * float(score[kind]), factor * float(score.get(error) or 0)
    return out


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a benchmark.json."""
    content = _json(path, "benchmark.json of caloforge benchmark")
    rows = content.get("rows") if isinstance(content, dict) else None
    keys = {"model", "engine", "batch", "ms_per_shower", "ms_spread", "geant4_ms_per_shower"}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and keys <= set(row) for row in rows):
        raise ValueError(
            f"got {path} without timings, expected a benchmark.json of caloforge benchmark; check the name"
        )
    return rows


def _of_model(rows: list[dict[str, Any]], name: str, path: str) -> list[dict[str, Any]]:
    """Timings of the model called so, or of the only model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    if name not in models and len(models) != 1:
        raise ValueError(f"got {name!r} for {path}, expected one of {', '.join(models)}; name the model so")
    return [row for row in rows if row["model"] == (name if name in models else models[0])]


def _times(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Measured], str]:
    """CPU times at the batches of TIMES with the fastest engine at batch 1, and that engine."""
    if not rows:
        return {}, ""
    engine = min((r for r in rows if r["batch"] == min(r["batch"] for r in rows)), key=lambda r: r["ms_per_shower"])
    own = {f"cpu-{r['batch']}": r for r in rows if r["engine"] == engine["engine"]}
    times = {n: (float(r["ms_per_shower"]), float(r["ms_spread"])) for n, r in own.items() if n in TIMES}
    return times, str(engine["engine"])


def count_parameters(path: Path) -> float:
    """Floating-point numbers of the generator in a safetensors file: its header is JSON behind 8 bytes of length."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    tensors = (v for k, v in header.items() if k.startswith("generator.") and v["dtype"].startswith(("F", "BF")))
    return float(sum(math.prod(tensor["shape"]) for tensor in tensors))
