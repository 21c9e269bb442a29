"""Searches on one small local Ray: what they find, stop, refuse, and how trials are cloned."""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray import tune as ray_tune

from rayff.config.errors import UserError
from rayff.console.search_view import SearchView
from rayff.engine.preparation import prepare
from rayff.runs.run_directory import RunDirectory
from rayff.tune.__main__ import main
from rayff.tune.trial import _replace
from tests.cli.test_train import PATIENCE_S, start
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

ASHA = """
from ray import tune
param_space = {
    "width": 10, "limit": 200, "epochs": 2, "precision": "fp32", "lr_min": 0.0,
    "kernels": "conv/conv",
    "stages": 2, "cpus_per_stage": 1, "lr": tune.grid_search([0.02, 0.0, 1e30]),
}
scheduler = "asha"
max_concurrent = 1
published = {("tinycnn", "digits"): 99.0}
"""

THREE = """
from ray import tune
param_space = {{
    "width": 4, "task": {task!r}, "batch_size": 16, "epochs": 20, "precision": "fp32",
    "kernels": "conv/conv", "lr": tune.grid_search([0.01, 0.02, 0.03]), "cpus_per_stage": 1,
}}
max_concurrent = 1
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
    return rows


@dataclass(frozen=True)
class Done:
    """A search that is over."""

    folder: Path
    code: int
    out: str


@pytest.fixture(scope="module")
def asha(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Three trials: one learns, one cannot learn, one diverges."""
    folder = tmp_path_factory.mktemp("asha")
    (folder / "space.py").write_text(ASHA)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(folder / "space.py"), "--run-dir", str(folder / "search")])
    return Done(folder=folder / "search", code=code, out=out.getvalue())


@pytest.mark.ray
@pytest.mark.slow
class TestASearch:
    def test_stops_early_what_learns_less(self, asha: Done) -> None:
        rows = results(asha.folder)
        assert [row["trial"] for row in rows] == ["trial-00000", "trial-00001", "trial-00002"]
        assert [row["status"] for row in rows] == ["finished", "stopped", "failed"]
        assert [row["epoch"] for row in rows] == [2, 1, 0]
        assert rows[0]["valid_accuracy"] > rows[1]["valid_accuracy"]
        assert [json.loads(row["config"])["lr"] for row in rows] == [0.02, 0.0, 1e30]

    def test_ends_with_code_1_where_a_trial_failed(self, asha: Done) -> None:
        assert asha.code == 1
        lines = asha.out.splitlines()
        sentences = [line for line in lines if line.startswith("trial-00002 failed: ")]
        assert len(sentences) == 1
        assert "try a lower --lr" in sentences[0]
        assert "Traceback" not in asha.out

    def test_shows_the_published_figure_beside_its_own(self, asha: Done) -> None:
        assert "published test %" in asha.out
        assert "99.00" in asha.out

    def test_leaves_each_trial_a_run_directory_of_training(self, asha: Done) -> None:
        for row in results(asha.folder)[:2]:
            directory = RunDirectory(Path(row["run_dir"]))
            config = directory.read_config()
            assert (config.stages, config.cpus_per_stage, config.limit) == (2, 1.0, 200)
            directory.load_model()
            metrics = pq.read_table(directory.path / "metrics.parquet").to_pylist()
            assert len(metrics[0]["stage_busy"]) == 2
            assert metrics[-1]["test_accuracy"] == row["test_accuracy"]

    def test_can_clone_a_trial_with_another_learning_rate(
        self, asha: Done, tmp_path: Path
    ) -> None:
        donor = RunDirectory(asha.folder / "trials" / "trial-00000")
        given = tmp_path / "given"
        newest = max(donor.checkpoints.iterdir())
        shutil.copytree(newest, given / newest.name)
        shutil.copy(donor.path / "metrics.parquet", given)

        run = dataclasses.replace(donor.read_config(), lr=0.5, run_dir=str(tmp_path / "clone"))
        clone = RunDirectory(tmp_path / "clone")
        clone.checkpoints.mkdir(parents=True)
        (clone.checkpoints / "step-00000001").mkdir()
        _replace(clone, run, ray_tune.Checkpoint.from_directory(str(given)))

        prepared = prepare(run, resume=True)
        assert prepared.progress.epoch == 2
        assert prepared.recipe.lr == 0.5
        assert [path.name for path in prepared.checkpoints.list()] == [newest.name]

    def test_that_the_cluster_can_never_hold_is_refused(
        self, cluster: None, tmp_path: Path
    ) -> None:
        args = ["quick", "--run-dir", str(tmp_path / "search"), "--set", "cpus_per_stage=64"]
        with pytest.raises(UserError, match=r"cannot hold the plan: 1 actor of .* 64 CPUs"):
            main(args)
        assert not (tmp_path / "search").exists()

    def test_by_another_method_is_refused(self, cluster: None, tmp_path: Path) -> None:
        args = ["quick", "--run-dir", str(tmp_path / "search"), "--set", "method=bp"]
        with pytest.raises(UserError, match=r"method 'bp', but trials learn by Forward-Forward"):
            main(args)
        assert not (tmp_path / "search").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_trials_run_side_by_side_and_each_point_with_each_seed(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "search"
    options = ["--limit", "100", "--epochs", "1", "--set", "lr=0.01", "--seeds", "2"]
    assert main(["quick", "--run-dir", str(folder), *options, "--set", "width=10"]) == 0
    rows = results(folder)
    assert [json.loads(row["config"])["seed"] for row in rows] == [0, 1]
    assert {row["status"] for row in rows} == {"finished"}
    assert rows[0]["valid_accuracy"] != rows[1]["valid_accuracy"]
    out = capsys.readouterr().out
    started = [out.index(f"trial-0000{number}  starts") for number in (0, 1)]
    assert max(started) < out.index("epoch 1"), "both before the first one has an epoch"
    assert "±" in out
    assert "2 finished" in out
    assert "\x1b" not in out


def read_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    assert any(words in line for line in process.stdout), f"ended without a line of {words!r}"


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_search_goes_on_without_repeating_trials(
    cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    Path("space.py").write_text(THREE.format(task=write_tiny_task(tmp_path / "task")))
    process = start("space.py", "--run-dir", "search", cwd=tmp_path, module="rayff.tune")
    read_until(process, "trial-00001  epoch 1 ")
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    trials = tmp_path / "search" / "trials"
    written = (trials / "trial-00000" / "metrics.parquet").stat().st_mtime_ns

    resume = ["--run-dir", "search", "--resume"]
    show = SearchView.on_result

    def interrupt(self: SearchView, trial: str, values: Mapping[str, Any]) -> None:
        show(self, trial, values)
        if trial == "trial-00001":
            os.kill(os.getpid(), signal.SIGINT)
            monkeypatch.setattr(SearchView, "on_result", show)

    monkeypatch.setattr(SearchView, "on_result", interrupt)
    assert main(resume) == 130
    out = capsys.readouterr().out
    assert "SIGINT: stopping; go on with --run-dir" in out
    assert "trial-00000  starts" not in out
    assert [row["status"] for row in results(Path("search"))] == ["finished", "unfinished"]

    assert main(resume) == 0
    assert "trial-00000  starts" not in capsys.readouterr().out
    rows = results(Path("search"))
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert [json.loads(row["config"])["lr"] for row in rows] == [0.01, 0.02, 0.03]
    assert (trials / "trial-00000" / "metrics.parquet").stat().st_mtime_ns == written
    for trial in trials.iterdir():
        epochs = pq.read_table(trial / "metrics.parquet").column("epoch").to_pylist()
        assert epochs == list(range(1, 21)), "each epoch once"

    table = Path("search", "results.parquet").read_bytes()
    capsys.readouterr()
    assert main(resume) == 0, "though nothing is left to do"
    assert Path("search", "results.parquet").read_bytes() == table
    out = capsys.readouterr().out
    assert "starts" not in out
    assert "best: trial-0000" in out
