"""python -m rayff.tune as a user has it: mistakes, signals, and going on."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rayff.spec import UserError
from rayff.tune import main, read_options
from tests.cli.test_train import PATIENCE_S, start
from tests.tasks import write_tiny_task

SPACE = """
from ray import tune
param_space = {{
    "width": 4, "task": {task!r}, "batch_size": 16, "epochs": 30, "precision": "fp32",
    "lr": tune.grid_search([0.01, 0.02, 0.03]), "cpus_per_stage": 1,
}}
max_concurrent = 1
"""


class TestAMistake:
    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            ([], "name a search space, such as quick"),
            (["quik"], r"no search space 'quik' \(did you mean 'quick'\?\)"),
            (["no/such.py"], r"no file no/such\.py"),
            (["quick", "--set", "lrr=1"], r"--set lrr=1: .*\(did you mean 'lr'\?\)"),
            (["quick", "--set", "lr"], r"--set lr: give OPTION=VALUE"),
            (["quick", "--seeds", "0"], "--seeds must be 1 or more, not 0"),
            (["quick", "--scheduler", "pbt"], "but lr varies"),
            (["quick", "--search", "optuna"], r"lr is a grid: use tune\.choice"),
            (["--resume"], "--resume needs --run-dir"),
            (["--resume", "--run-dir", "."], r"holds no search \(it has no search\.json\)"),
            (
                ["quick", "--resume", "--run-dir", "x", "--epochs", "3"],
                "leave out SPACE, --epochs",
            ),
        ],
    )
    def test_is_one_sentence(
        self,
        args: list[str],
        sentence: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=sentence) as error:
            main(args)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []

    def test_is_a_folder_with_something_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match=r"is not empty: add --resume"):
            main(["quick", "--run-dir", str(tmp_path)])

    def test_is_a_search_without_a_first_trial(self, tmp_path: Path) -> None:
        (tmp_path / "search.json").write_text("{}")
        with pytest.raises(UserError, match="is not the file of a search"):
            main(["--resume", "--run-dir", str(tmp_path)])

    def test_is_optuna_that_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        args = ["learning_rate", "--search", "optuna", "--run-dir", str(tmp_path / "search")]
        with pytest.raises(UserError, match=r"pip install 'rayff\[optuna\]'"):
            main(args)
        assert not (tmp_path / "search").exists()


def test_options_for_all_trials_have_the_types_of_a_training() -> None:
    texts = ["lr=1e-2", "stages=2", "cuts=1,3", "arch=vgg", "download=true", "lr-min=0"]
    assert read_options(texts) == {
        "lr": 0.01,
        "stages": 2,
        "cuts": (1, 3),
        "arch": "vgg",
        "download": True,
        "lr_min": 0.0,
    }
    with pytest.raises(SystemExit) as exit_info:
        read_options(["stages=x"])
    assert exit_info.value.code == 2


def read_until(process: subprocess.Popen[str], *words: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if all(word in line for word in words):
            return
    raise AssertionError(f"ended without a line of {words}")


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_that_was_interrupted_goes_on_without_repeating_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    task = write_tiny_task(tmp_path / "task")
    (tmp_path / "space.py").write_text(SPACE.format(task=task))
    first = start("space.py", "--run-dir", "search", cwd=tmp_path, module="rayff.tune")
    read_until(first, "trial-00001  epoch 1 ")
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=PATIENCE_S)
    trials = tmp_path / "search" / "trials"
    finished = (trials / "trial-00000" / "metrics.parquet").stat().st_mtime_ns

    resume = ["--run-dir", "search", "--resume"]
    second = start(*resume, cwd=tmp_path, module="rayff.tune")
    read_until(second, "trial-00002  epoch 1 ")
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 130, err
    assert "SIGINT: stopping; go on with --run-dir" in out
    assert "Traceback" not in out + err
    rows = pq.read_table(tmp_path / "search" / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished", "finished", "unfinished"]

    third = start(*resume, cwd=tmp_path, module="rayff.tune")
    out, err = third.communicate(timeout=PATIENCE_S)
    assert third.returncode == 0, err
    assert err == ""
    assert "trial-00000  starts" not in out
    assert "trial-00001  starts" not in out
    rows = pq.read_table(tmp_path / "search" / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * 3
    assert [row["epoch"] for row in rows] == [30] * 3
    assert [json.loads(row["config"])["lr"] for row in rows] == [0.01, 0.02, 0.03]
    assert (trials / "trial-00000" / "metrics.parquet").stat().st_mtime_ns == finished
    for trial in trials.iterdir():
        epochs = pq.read_table(trial / "metrics.parquet").column("epoch").to_pylist()
        assert epochs == list(range(1, 31)), "each epoch once"
