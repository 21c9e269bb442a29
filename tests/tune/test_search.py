"""Searches on one small local Ray: what they find, stop, refuse and log, and how they resume."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest

import rayff
from rayff import load_model
from rayff.config.errors import UserError
from rayff.console.search_view import SearchView
from rayff.runs.metrics import read_metrics
from rayff.runs.run_directory import RunDirectory
from rayff.tune.__main__ import main
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ASHA = """
from ray import tune
param_space = {
    "width": 10, "limit": 200, "epochs": 6, "precision": "fp32", "lr_min": 0.0,
    "kernels": "conv/conv",
    "stages": 2, "cpus_per_stage": 1, "lr": tune.grid_search([0.02, 0.0, 1e30]),
}
scheduler = "asha"
max_concurrent = 1
published = {("tinycnn", "digits"): 99.0}
"""

THREE = """
from ray import tune
param_space = {
    "width": 4, "task": "task", "batch_size": 16, "epochs": 20, "precision": "fp32",
    "kernels": "conv/conv", "lr": tune.grid_search([0.01, 0.02, 0.03]), "cpus_per_stage": 1,
}
max_concurrent = 1
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def asha(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Folder, exit code and output of three trials: one learns, one cannot, one diverges."""
    folder = tmp_path_factory.mktemp("asha")
    (folder / "space.py").write_text(ASHA)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(folder / "space.py"), "--run-dir", str(folder / "search")])
    return folder / "search", code, out.getvalue()


class TestASearch:
    def test_stops_early_what_learns_less(self, asha: tuple[Path, int, str]) -> None:
        rows = results(asha[0])
        assert [row["trial"] for row in rows] == ["trial-00000", "trial-00001", "trial-00002"]
        assert [row["status"] for row in rows] == ["finished", "stopped", "failed"]
        assert (rows[0]["epoch"], rows[2]["epoch"]) == (6, 0)
        assert 1 <= rows[1]["epoch"] < 6, "how far it gets until Tune stops it is a race"
        assert rows[0]["valid_accuracy"] > rows[1]["valid_accuracy"]
        assert [json.loads(row["config"])["lr"] for row in rows] == [0.02, 0.0, 1e30]

    def test_ends_with_code_1_if_a_trial_failed(self, asha: tuple[Path, int, str]) -> None:
        _, code, out = asha
        assert code == 1
        (sentence,) = [x for x in out.splitlines() if x.startswith("trial-00002 failed: ")]
        assert "try a lower --lr" in sentence
        assert "Traceback" not in out
        assert "99.00" in out, "published"

    def test_leaves_each_trial_a_run_directory(self, asha: tuple[Path, int, str]) -> None:
        for row in results(asha[0])[:2]:
            directory = RunDirectory(Path(row["run_dir"]))
            config = directory.read_config()
            assert (config.stages, config.cpus_per_stage, config.limit) == (2, 1.0, 200)
            load_model(directory.path)
            metrics = read_metrics(directory.path / "metrics.parquet")
            assert len(metrics[0].stage_busy) == 2
            assert metrics[-1].test_accuracy == row["test_accuracy"]

    @pytest.mark.parametrize(
        ("option", "sentence"),
        [
            ("cpus_per_stage=64", r"cannot hold the plan: 1 actor of .* 64 CPUs"),
            ("method=bp", r"method 'bp', but trials learn by Forward-Forward"),
        ],
    )
    def test_that_cannot_run_is_refused(self, option: str, sentence: str, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=sentence):
            main(["quick", "--run-dir", str(tmp_path / "search"), "--set", option])
        assert not (tmp_path / "search").exists()


def test_trials_run_side_by_side_with_each_seed_and_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "search"
    options = ["--limit", "100", "--epochs", "1", "--set", "lr=0.01", "--seeds", "2"]
    options += ["--set", "width=10", "--logger", "tensorboard,mlflow,wandb"]
    assert main(["quick", "--run-dir", str(folder), *options]) == 0
    rows = results(folder)
    assert [json.loads(row["config"])["seed"] for row in rows] == [0, 1]
    assert {row["status"] for row in rows} == {"finished"}
    assert rows[0]["valid_accuracy"] != rows[1]["valid_accuracy"]
    out = capsys.readouterr().out
    started = [out.index(f"trial-0000{number}  starts") for number in (0, 1)]
    assert max(started) < out.index("epoch 1"), "both before the first one has an epoch"
    assert "±" in out
    assert "\x1b" not in out

    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'rayff'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {row["trial"] for row in rows}
    for row in rows:
        run = runs[row["trial"]]
        assert (run.info.status, run.data.tags["search"]) == ("FINISHED", "search")
        assert run.data.params["lr"] == "0.01"
        assert run.data.metrics["valid_accuracy"] == row["valid_accuracy"]
        assert Path(row["run_dir"], "tensorboard").exists()
    assert len(list(folder.glob("tune/trial-*/wandb/offline-run-*/run-*.wandb"))) == 2


def kill_search_at(words: str, *args: str, cwd: Path) -> None:
    """Start a search as a user does, and kill its process at a line with these words."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(rayff.__file__).parents[1]), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "rayff.tune", *args]
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert any(words in line for line in process.stdout), f"ended without {words!r}"
        process.kill()


def test_an_interrupted_search_resumes_without_repeating_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_task(tmp_path / "task")
    Path("space.py").write_text(THREE)
    kill_search_at("trial-00001  epoch 1 ", "space.py", "--run-dir", "search", cwd=tmp_path)
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
    assert "SIGINT: stopping (again" in out
    assert (
        out.splitlines()[-1] == f"continue with: rayff tune --run-dir {Path.cwd()}/search --resume"
    )
    assert "trial-00000  starts" not in out
    assert [row["status"] for row in results(Path("search"))] == ["finished", "unfinished"]

    assert main(resume) == 0
    assert "trial-00000  starts" not in capsys.readouterr().out
    rows = results(Path("search"))
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert [json.loads(row["config"])["lr"] for row in rows] == [0.01, 0.02, 0.03]
    assert (trials / "trial-00000" / "metrics.parquet").stat().st_mtime_ns == written
    for trial in trials.iterdir():
        epochs = [record.epoch for record in read_metrics(trial / "metrics.parquet")]
        assert epochs == list(range(1, 21)), "each epoch once"

    table = Path("search", "results.parquet").read_bytes()
    assert main(resume) == 0, "though nothing is left to do"
    assert Path("search", "results.parquet").read_bytes() == table
    out = capsys.readouterr().out
    assert "starts" not in out
    assert "best: trial-0000" in out
