"""rayff runs: the list of runs and searches, as a table and as JSON."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rayff.console.runs_table import runs_table
from rayff.runs.__main__ import main
from rayff.runs.listing import list_runs
from rayff.runs.run_lock import locked
from tests.helpers.mistakes import refused, tree
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.tiny_task import tiny_config


@pytest.fixture(scope="module")
def runs(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of all states, and a search with two trials."""
    folder = tmp_path_factory.mktemp("list") / "runs"
    train_locally(tiny_config(tiny_task, folder / "done", tags="good,first", notes="a try"))
    train_locally(tiny_config(tiny_task, folder / "deep" / "stopped"), StopAfter(6))

    def copy(name: str, source: str = "done", **changes: Any) -> Path:
        target = folder / name
        shutil.copytree(folder / source, target)
        record = json.loads((target / "run.json").read_text())
        record["sessions"][-1].update(changes)
        (target / "run.json").write_text(json.dumps(record))
        return target

    copy("killed", "deep/stopped", end=None, reason=None, start="2020-01-01T00:00:00+01:00")
    copy("failed", reason="failed: the disk is gone", start="2030-01-01T00:00:00+00:00")
    (copy("unfinished", "deep/stopped") / "run.json").unlink()
    (copy("old") / "run.json").unlink()
    (copy("damaged") / "metrics.parquet").write_bytes(b"PAR1")
    (copy("broken") / "config.json").write_text("{")
    copy("search/trials/trial-00001")
    copy("search/trials/trial-00002", start="2031-01-01T00:00:00+00:00")
    (folder / "search" / "search.json").write_text('{"num_trials": 2}')
    (folder / "search" / "results.parquet").touch()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text('{"hidden_size": 3}')  # of another program
    return folder


def test_names_every_run_with_its_state(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(runs)
    with locked(runs / "old"):
        assert main([str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line.split()[1] for line in lines[1:12]}
    assert states == {
        "failed": "failed",
        "search": "complete",
        "search/trials/trial-00001": "complete",
        "search/trials/trial-00002": "complete",
        "done": "complete",
        "deep/stopped": "stopped",
        "killed": "interrupted",
        "unfinished": "unfinished",
        "old": "running",
        "damaged": "damaged",
        "broken": "damaged",
    }
    names = [*states]
    assert names[0] == "failed", "the newest first"
    assert names[-1] == "killed"
    assert names[names.index("search") + 1 :][:2] == [n for n in names if "trial-" in n]
    (done,) = (line for line in lines if line.startswith("done "))
    assert re.search(r"complete +tinycnn +\S*tiny +goodness +2/2 +\d\d\.\d\d +\d\d\.\d\d", done)
    assert done.split()[-3] == "good,first"
    (stopped,) = (line for line in lines if line.startswith("deep/stopped "))
    assert " 1/2 " in stopped
    assert sum(line.startswith("damaged: ") for line in lines) == 2
    assert any("broken/config.json is not JSON" in line for line in lines)
    assert tree(runs) == before


def test_json_has_everything(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--json", "--tag", "first,good"]) == 0
    found = {Path(run["path"]).name: run for run in json.loads(capsys.readouterr().out)}
    assert {"failed", "trial-00001", "done"} <= found.keys()
    assert not {"search", "stopped", "damaged"} & found.keys()
    done = found["done"]
    assert (done["state"], done["notes"], done["tags"]) == ("complete", "a try", ["good", "first"])
    assert done["epochs_done"] == done["epochs"] == 2
    assert done["best"]["valid_accuracy"] >= done["newest"]["valid_accuracy"]
    assert done["sessions"][0]["reason"] == "complete"
    assert found["failed"]["end_reason"] == "failed: the disk is gone"


def test_a_narrow_terminal_has_the_columns_that_count(runs: Path) -> None:
    for width, titles in (
        (80, "run state epochs valid % test % time"),
        (105, "run state epochs valid % test % time tags start"),
        (200, "run state arch task loss epochs valid % test % time tags start"),
        (40, "run state valid % test %"),
    ):
        console = Console(width=width, force_terminal=True, color_system=None, record=True)
        with console.capture() as captured:
            console.print(runs_table(list_runs(runs), runs, console))
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(lines[0].split()) == titles


def test_one_run_or_none(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "done")]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("done ")
    assert main([str(tmp_path)]) == 0
    assert main([str(runs), "--tag", "best"]) == 0
    out = capsys.readouterr().out
    assert out == f"no runs in {tmp_path}\nno runs with the tag best in {runs}\n"
    with refused("nowhere cannot be read: No such file or directory; name a folder of runs"):
        main(["nowhere"])
