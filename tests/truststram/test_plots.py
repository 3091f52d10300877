"""The picture of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from truststram.plots import curves
from truststram.raster import MARKS, _grid, _nodes, _thinned
from truststram.result import RoundReport, RunResult


def result(
    folder: Path,
    *rounds: RoundReport,
    best: dict | None = None,
    defence: dict | None = None,
) -> RunResult:
    return RunResult(
        id="some-run",
        dir=folder,
        status="completed",
        reason="",
        job={},
        rounds=rounds,
        best=best or {},
        parameters=10,
        model_bytes=40,
        nodes=4,
        seconds=1.0,
        defence=defence or {},
    )


def pixels(path: Path):
    from matplotlib.image import imread

    return imread(path)


@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param([], id="no rounds"),
        pytest.param([RoundReport(1)], id="not evaluated"),
        pytest.param([RoundReport(1, {"accuracy": 0.5, "loss": 1.0})], id="one round"),
        pytest.param([RoundReport(1, {"loss": 1.0})], id="only a loss"),
        pytest.param(
            [RoundReport(i, {"loss": 1 / i} if i % 2 else {}) for i in range(1, 90)],
            id="every second round evaluated",
        ),
        pytest.param([RoundReport(1, {"$x^_$": 1.0, "_a": 2.0})], id="strange names"),
    ],
)
def test_every_run_has_a_picture(tmp_path, rounds):
    path = curves(result(tmp_path, *rounds))
    assert path == tmp_path / "curves.png"
    assert pixels(path).shape[:2] == (840, 960)


def test_rejected_replies_are_drawn_if_there_are_any(tmp_path):
    def red(rejected: int) -> int:
        path = curves(result(tmp_path, RoundReport(1, rejected=rejected)))
        r, g, b = (pixels(path)[..., i] for i in range(3))
        return int(((r > 0.85) & (g < 0.8) & (b < 0.8)).sum())

    assert red(0) < 1000 < red(3)  # the orange line has a few pixels like that


def guarded(nodes: int, **marks: dict) -> dict:
    names = [str(i) for i in range(nodes)]
    nothing = {"flagged": {}, "rejected": {}, "dropped": {}, "quarantined": {}}
    return {"nodes": names, "malicious": ["1"], **nothing, **marks}


@pytest.mark.parametrize(("nodes", "height"), [(5, 1080), (20, 1368), (200, 1704)])
def test_who_misbehaved_is_drawn_if_anybody_did(tmp_path, nodes, height):
    rounds = [RoundReport(i, {"loss": 1 / i}) for i in range(1, 31)]
    quiet = curves(result(tmp_path, *rounds, defence=guarded(nodes)))
    assert pixels(quiet).shape[:2] == (840, 960)
    marks = {
        "flagged": {"0": [3]},
        "rejected": {"1": list(range(1, 8)), "2": [9]},
        "dropped": {"4": [1, 2]},
        "quarantined": {"1": [[8, 17], [20, 29]], "3": [[28, 99]]},
    }
    path = curves(result(tmp_path, *rounds, defence=guarded(nodes, **marks)))
    picture = pixels(path)
    assert picture.shape[:2] == (height, 960)
    for colour in MARKS.values():
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        cells = (abs(picture[..., :3] - rgb) < 0.01).all(axis=2)
        assert cells.sum() > 50


def test_large_federations_show_the_nodes_with_the_most_marks(tmp_path):
    marks = {"rejected": {str(i): [1] for i in range(150, 500)}}
    shown = _nodes(result(tmp_path, RoundReport(1), defence=guarded(500, **marks)))
    assert shown == [str(i) for i in range(150, 350)]


def test_a_mark_is_seen_also_in_very_long_runs(tmp_path):
    marks = {"dropped": {"0": [3571]}, "flagged": {"0": list(range(1, 9000))}}
    run = result(tmp_path, RoundReport(9000), defence=guarded(3, **marks))
    grid = _thinned(_grid(run, ["0", "1"], 9000))
    assert grid.shape == (2, 400)
    assert (grid[0] == 3).sum() == 1
    assert (grid[0] == 1).sum() == 399
    assert not grid[1].any()


def test_the_picture_of_a_run_repeats(tmp_path):
    run = result(
        tmp_path,
        RoundReport(1, {"accuracy": 0.5}, bytes_up=10),
        best={"round": 1, "metric": "accuracy", "value": 0.5},
    )
    assert curves(run).read_bytes() == curves(run).read_bytes()


def test_pyplot_is_not_touched(tmp_path):
    code = (
        "import sys; from pathlib import Path; from truststram.plots import curves;"
        "from truststram.result import *;"
        "assert 'matplotlib' not in sys.modules;"
        f"curves(RunResult.of([], Path({str(tmp_path)!r})));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
