"""metrics.json and metrics.csv: the scores of one or more candidates, for programs and spreadsheets.

The layout of metrics.json is told by metrics.schema.json beside this file (JSON Schema 2020-12), which the file names
in "$schema"; ``FORMAT_VERSION`` rises when a reader of the old layout would stumble over the new one.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .report import Report

FORMAT_VERSION = 1
SCHEMA = f"urn:caloforge:metrics:{FORMAT_VERSION}"
COLUMNS = ("candidate", "score", "value", "error", "floor", "floor_error", "excess")


def metrics_json(reports: "Sequence[Report]") -> str:
    """The text of metrics.json: scores and provenance of each candidate under its name."""
    content = {
        "$schema": SCHEMA,
        "format_version": FORMAT_VERSION,
        "candidates": {report.name: report.to_dict() for report in reports},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def metrics_csv(reports: "Sequence[Report]") -> str:
    """The text of metrics.csv: one line per candidate and score; a number that does not exist is an empty field."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for report in reports:
        for name, score in report.scores.items():
            numbers = (score.value, score.error, score.floor, score.floor_error, score.excess)
            table.writerow([report.name, name, *(repr(float(n)) if math.isfinite(n) else "" for n in numbers)])
    return text.getvalue()


def metrics_schema() -> dict[str, Any]:
    """The JSON Schema of metrics.json."""
    text = files(__package__).joinpath("metrics.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def plain(value: Any) -> Any:
    """Plain JSON data: numpy numbers and paths converted, None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
