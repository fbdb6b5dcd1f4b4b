"""The leaderboard: facts equal their source, shipped models bring their own numbers, labels keep clear."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from caloforge import hub
from caloforge.cli import run
from caloforge.evaluate import leaderboard as board
from caloforge.evaluate import leaderboard_plots
from caloforge.evaluate import leaderboard_sources as sources

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = {"ds1-photons": "ds1_photons", "ds1-pions": "ds1_pions", "ds2": "ds2", "ds3": "ds3"}
COLUMNS = {
    "auc_low": "binary cls low", "auc_high": "binary cls high", "auc_resnet": "binary cls cnn", "fpd": "FPD * 1e3",
    "kpd": "KPD * 1e3", "cpu-1": "time CPU 1", "cpu-100": "time CPU 100", "cpu-10000": "time CPU 10000",
    "gpu-1": "time GPU 1", "gpu-100": "time GPU 100", "gpu-10000": "time GPU 10000",
}  # fmt: skip


def entry(dataset: str, name: str) -> sources.Entry:
    return next(e for e in sources.published() if (e.dataset, e.name) == (dataset, name))


def test_published_values_are_those_of_the_paper(shared: Path) -> None:
    source = shared / "reference" / "calochallenge" / "leaderboard.csv"
    if not source.exists():
        pytest.skip("reference data absent: no leaderboard.csv")
    with open(source, newline="") as file:
        rows = {(r["dataset"], r["submission name"]): r for r in csv.DictReader(file)}
    mine = sources.published()
    assert len(mine) == len(rows) == 63
    for e in mine:
        row = rows[SOURCE[e.dataset], "GEANT4" if e.name == sources.GEANT4 else e.name]
        for name, column in COLUMNS.items():
            expected = (float(row[column]), float(row[f"{column} std"])) if row[column] else None
            assert e.values.get(name) == expected, (e.dataset, e.name, name)
        for value, column in zip(e.parameters, ("Parameters training", "Parameters generation"), strict=True):
            assert value == pytest.approx(float(row[column] or 0), rel=1e-5)


def test_some_published_values_by_hand() -> None:
    assert entry("ds2", "CaloDREAM").values["auc_high"] == (0.52079, 0.00227704)
    assert entry("ds1-photons", "CaloINN").values["cpu-1"] == (37.9162, 3.23779)
    assert entry("ds3", "GEANT4 transformer").values["kpd"][0] == 241.038
    assert entry("ds1-pions", sources.GEANT4).values["auc_low"][0] == 0.60894
    assert entry("ds1-photons", "CaloForest").value("gpu-1") is None
    assert entry("ds2", "CaloDREAM").value("auc") == (0.53082, 0.00320899)
    assert all(e.published for e in sources.published())
    header = (hub.DATA / "leaderboard.csv").read_text().splitlines()
    assert "2410.21611" in " ".join(line for line in header if line.startswith("#"))


def test_shipped_models_bring_their_cards_and_timings() -> None:
    found = {e.name: e for e in sources.shipped()}
    for name in hub.MODEL_NAMES:
        card = json.loads((hub.model(name) / "card.json").read_text())
        if "sample" not in card["scores"]:
            continue
        score = card["scores"]["auc_high"]
        assert found[name].values["auc_high"] == (score["value"], score["error"])
        assert not found[name].published
        assert found[name].parameters[0] > 1e4
    floor = next(e for e in sources.shipped() if e.dataset == "calogan-eplus" and e.name == sources.GEANT4)
    assert floor.values["auc_low"][0] == pytest.approx(0.477, abs=0.03)
    assert floor.values["cpu-1"][0] > found["calogan-eplus-vae"].values["cpu-1"][0]


def test_timings_are_those_of_the_results() -> None:
    """``benchmarks/ship.py --results`` writes both."""
    text = (REPOSITORY / "benchmarks" / "RESULTS.md").read_text()
    rows = json.loads((hub.DATA / "timings.json").read_text())["rows"]
    for row in rows:
        line = rf"^\| {row['model']} \| {row['engine']} \| {row['batch']} \| ([\d.]+) ± "
        match = re.search(line, text, re.MULTILINE)
        assert match, row
        assert float(match[1]) == pytest.approx(row["ms_per_shower"], abs=5e-5)


def test_the_number_of_parameters_is_read_from_the_weights() -> None:
    from caloforge.fastsim import FastSim

    fast = FastSim.load(hub.model("calogan-eplus-vae"))
    n = sum(p.numel() for p in fast.generator.parameters())
    assert sources.count_parameters(hub.model("calogan-eplus-vae") / "weights.safetensors") == pytest.approx(
        n, rel=0.001
    )


def test_rows_are_ordered_by_score() -> None:
    table = board.leaderboard("ds2")
    names = [e.name for e in table.rows("ds2")]
    assert names[0] == "CaloDREAM"
    assert len(names) == 17
    assert sources.GEANT4 not in names
    assert [e.name for e in table.floors("ds2")] == [sources.GEANT4]
    assert board.leaderboard("ds2", score="fpd").rows("ds2")[1].name == "CaloScore"
    assert board.leaderboard("ds1-photons", score="auc_resnet").rows("ds1-photons")  # nobody has one


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.7931, "0.793"), (37.9162, "37.9"), (15676.8, "15,700"), (0, "0"), (-0.0276, "-0.028"), (5443.43, "5,440")],
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert board.three_digits(number) == text


def test_counts_are_short() -> None:
    assert [board.short(n) for n in (0, 521581, 1.88214e7, 3.8376e9)] == ["", "522k", "18.8M", "3.84G"]


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """metrics.json in both layouts and a benchmark.json."""
    score = {"value": 0.62, "error": 0.01, "floor": 0.5, "floor_error": 0.02}
    scores = {
        "auc_low": score,
        "auc_high": score | {"value": 0.7},
        "fpd": score | {"value": 0.004},
        "w1/response": score,
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"scores": scores, "provenance": {}}))
    several = {"a": {"scores": scores}, "b": {"scores": {"auc_low": score | {"value": None}}}}
    (tmp_path / "several.json").write_text(json.dumps({"candidates": several}))
    row = {"model": "mine", "engine": "pytorch", "batch": 1, "ms_per_shower": 4.0, "ms_spread": 0.1,
           "geant4_ms_per_shower": 300.0}  # fmt: skip
    rows = [row, row | {"batch": 1000, "ms_per_shower": 0.1}, row | {"engine": "onnxruntime", "ms_per_shower": 2.0}]
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_models_are_added_from_what_was_measured(judged: Path) -> None:
    text = f"mine:{judged / 'metrics.json'}:{judged / 'benchmark.json'}"
    table = board.leaderboard("ds1-photons", add=[text, f"a:{judged / 'several.json'}"])
    mine, other = table.entries[-2:]
    assert (mine.name, mine.published, mine.dataset) == ("mine", False, "ds1-photons")
    assert mine.value("auc") == (0.7, 0.01)
    assert mine.values["fpd"] == pytest.approx((4.0, 10.0))
    assert mine.values["cpu-1"] == (2.0, 0.1)
    assert mine.engine == "onnxruntime"
    assert "w1/response" not in mine.values
    assert other.name == "a"
    assert other.value("cpu-1") is None
    alone = sources.added(f"b:{judged / 'several.json'}", "ds2")
    assert alone.value("auc") is None  # null in the file
    assert mine in table.rows("ds1-photons")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine", "expected name:metrics.json"),
        ("mine:{0}/none.json", "no such file"),
        ("mine:{0}/benchmark.json", "without scores"),
        ("mine:{0}/several.json", "expected one of a, b"),
        ("mine:{0}/metrics.json:{0}/metrics.json", "without timings"),
        ("mine:{0}/text.json", "it is no JSON"),
    ],
)
def test_what_cannot_be_added_is_said(judged: Path, text: str, message: str) -> None:
    (judged / "text.json").write_text("no")
    with pytest.raises((ValueError, OSError), match=message):
        board.leaderboard("ds2", add=[text.format(judged)])


@pytest.mark.parametrize(("dataset", "score", "time"), [("ds3", "auc", "cpu-1"), ("ds1-photons", "kpd", "gpu-100")])
def test_labels_do_not_cover_each_other(dataset: str, score: str, time: str) -> None:
    figure = leaderboard_plots.draw(board.leaderboard(dataset, score=score, time=time))
    axes = figure.axes[0]
    names = {e.name for e in sources.published()}
    boxes = [t.get_window_extent() for t in axes.texts if isinstance(t, Annotation) and t.get_text() in names]
    assert len(boxes) >= 10
    for i, box in enumerate(boxes):
        for other in boxes[:i]:
            wide = min(box.x1, other.x1) - max(box.x0, other.x0)
            high = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert max(wide, 0) * max(high, 0) < 0.15 * min(box.width * box.height, other.width * other.height)


def test_the_best_trade_off_is_a_front() -> None:
    assert leaderboard_plots._front([(1, 5), (2, 6), (3, 4), (4, 4), (5, 1)]) == [(1, 5), (3, 4), (5, 1)]


def test_the_command_line_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], judged: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["leaderboard", "calogan-eplus", "-o", "own.png"]) == 0
    printed = capsys.readouterr().out
    assert "calogan-eplus-vae" in printed
    assert "picture: own.png" in printed
    assert Path("own.png").read_bytes()[:4] == b"\x89PNG"
    command = ["leaderboard", "ds1-pions", "-o", "page.html", "--add", "mine:metrics.json:benchmark.json"]
    assert run([*command, "--add", "a:several.json"]) == 0
    page = Path("page.html").read_text()
    assert "CaloVAE+INN" in page
    assert page.count('class="own"') == 2 + sum(
        e.dataset == "ds1-pions" and e.name != "Geant4" for e in sources.shipped()
    )
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)
    assert run(command) == 2
    assert "give --force" in capsys.readouterr().err
    assert Path("page.html").read_text() == page
    assert run(["leaderboard", "ds3", "--score", "fpd"]) == 0
    assert "CaloDREAM" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ds4"], "got data set 'ds4', expected one of ds1-photons"),
        (["ds2", "-o", "a.txt"], "expected a name that ends in"),
        (["--add", "a:b.json"], "got --add without a data set"),
        (["ds2", "-o", "none/a.png"], "create it"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["leaderboard", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("caloforge: got ")
    assert err.count("\n") == 1
    assert message in err
    assert out == ""
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="got score 'beauty'"):
        board.leaderboard(score="beauty")


def test_all_data_sets_share_one_axis() -> None:
    table = board.leaderboard()
    assert set(table.datasets) >= set(board.TITLES)
    low, high = leaderboard_plots._time_limits(table)
    times = [e.value("cpu-1")[0] for e in table.entries if e.value("cpu-1")]
    assert low < np.min(times)
    assert high > np.max(times)
