"""What the shipped students and their teachers were to reach, beside the numbers of the front."""

import math
from collections.abc import Mapping
from typing import Any

MOST_ABOVE, MOST_FPD = 0.03, 5.0  # high-level AUC above the low-level one; FPD in units of its floor
# Of each student: its teacher and that one's largest low-level AUC; its own; ms at batch 1 and 1,000; times Geant4.
BARS = {
    "calogan-eplus-one-step": ("calogan-eplus-copula", 0.55, 0.60, 0.15, 0.05, 10_000),
    "calogan-gamma-one-step": ("calogan-gamma-copula", 0.55, 0.60, 0.15, 0.05, 10_000),
    "calogan-piplus-one-step": ("calogan-piplus-copula", 0.62, 0.68, 0.15, 0.05, 10_000),
    "lhcb-eminus-one-step": ("lhcb-eminus-copula", 0.57, 0.62, 0.4, 0.08, None),
    "ds1-gamma-one-step": ("ds1-gamma-copula", 0.57, 0.62, 0.3, 0.05, None),
    "par04-eminus-one-step": ("par04-eminus-copula", 0.62, 0.70, 5.0, 5.0, None),
}
HEADS = ("student", "AUC low of its teacher", "AUC low", "AUC high − low", "FPD / floor", "ms, batch 1",
         "ms, batch 1000", "× Geant4", "ms with ONNX Runtime, batch 1, 1000")  # fmt: skip
NOTE = """\
### What was to be reached

Bars set before the students were trained, in brackets, beside the numbers above; missed ones in bold. What was tried:
docs/log.md.
"""


def bars(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Text and table of the students in ``models`` that are there with their teachers; empty without any."""
    found = [name for name in BARS if name in models and BARS[name][0] in models]
    if not found:
        return ""
    rows = [f"| {' | '.join(cells(name, models))} |" for name in found]
    return "\n".join([NOTE, f"| {' | '.join(HEADS)} |", "|---|" + "---:|" * (len(HEADS) - 1), *rows])


def cells(name: str, models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    teacher, most_teacher, most_low, most_one, most_many, least_faster = BARS[name]
    scores, times, geant4 = (models[name][key] for key in ("scores", "times", "geant4_ms"))
    first, low, high = models[teacher]["scores"]["auc_low"], scores["auc_low"], scores["auc_high"]
    fpd = scores.get("fpd")
    above = {"value": high["value"] - low["value"], "error": math.hypot(high["error"], low["error"])}
    return [
        name,
        *(cell(v["value"] <= most, f"{v['value']:.3f} ± {v['error']:.3f}", f"{most:.2f}")
          for v, most in ((first, most_teacher), (low, most_low), (above, MOST_ABOVE))),
        "–" if fpd is None else cell(
            fpd["value"] <= MOST_FPD * fpd["floor"], f"{fpd['value'] / fpd['floor']:.1f}", f"{MOST_FPD:g}"
        ),
        *(cell(round(times[batch]["ms"], 3) <= most, f"{times[batch]['ms']:.3f}", f"{most:g}")
          for batch, most in (("1", most_one), ("1000", most_many))),
        "–" if geant4 is None else cell(
            least_faster is None or geant4 / times["1000"]["ms"] >= least_faster,
            f"{geant4 / times['1000']['ms']:,.0f}", "" if least_faster is None else f"{least_faster:,}",
        ),
        ", ".join(f"{ms:.3f}" for ms in models[name].get("onnx_ms", {}).values()) or "–",
    ]  # fmt: skip


def cell(reached: bool, text: str, bar: str) -> str:
    return (text if reached else f"**{text}**") + (f" ({bar})" if bar else "")
