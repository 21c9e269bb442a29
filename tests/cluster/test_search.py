"""Searches on one small local Ray: what they find, stop, refuse, and how trials are cloned."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray import tune as ray_tune

from rayff.cluster.trial import _replace
from rayff.spec import UserError
from rayff.training.preparation import prepare
from rayff.training.run_directory import RunDirectory
from rayff.tune import main

ASHA = """
from ray import tune
param_space = {
    "width": 10, "limit": 200, "epochs": 2, "precision": "fp32", "dropout": 0.0, "lr_min": 0.0,
    "stages": 2, "cpus_per_stage": 1, "lr": tune.grid_search([0.02, 0.0, 1e30]),
}
scheduler = "asha"
max_concurrent = 1
published = {("tinycnn", "digits"): 99.0}
"""


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def results(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
    return rows


@pytest.mark.ray
@pytest.mark.slow
class TestASearch:
    @pytest.fixture(scope="class")
    def asha(self, local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
        """Three trials: one learns, one cannot learn, one diverges."""
        folder = tmp_path_factory.mktemp("asha")
        (folder / "space.py").write_text(ASHA)
        code = main([str(folder / "space.py"), "--run-dir", str(folder / "search")])
        return folder / "search", code

    def test_stops_early_what_learns_less(self, asha: tuple[Path, int]) -> None:
        rows = results(asha[0])
        assert [row["trial"] for row in rows] == ["trial-00000", "trial-00001", "trial-00002"]
        assert [row["status"] for row in rows] == ["finished", "stopped", "failed"]
        assert [row["epoch"] for row in rows] == [2, 1, 0]
        assert rows[0]["valid_accuracy"] > rows[1]["valid_accuracy"]
        assert [json.loads(row["config"])["lr"] for row in rows] == [0.02, 0.0, 1e30]

    def test_ends_with_code_1_where_a_trial_failed(self, asha: tuple[Path, int]) -> None:
        assert asha[1] == 1

    def test_leaves_each_trial_a_run_directory_of_training(self, asha: tuple[Path, int]) -> None:
        for row in results(asha[0])[:2]:
            directory = RunDirectory(Path(row["run_dir"]))
            config = directory.read_config()
            assert (config.stages, config.cpus_per_stage, config.limit) == (2, 1.0, 200)
            directory.load_model()
            metrics = pq.read_table(directory.path / "metrics.parquet").to_pylist()
            assert len(metrics[0]["stage_busy"]) == 2
            assert metrics[-1]["test_accuracy"] == row["test_accuracy"]

    def test_that_is_whole_goes_on_with_what_failed_alone(
        self, asha: tuple[Path, int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = asha[0].parent / "copy"
        shutil.copytree(asha[0], copy)
        assert main(["--run-dir", str(copy), "--resume"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if "starts" in line] == [
            "trial-00002  starts  lr 1e+30",
        ]
        assert any(
            line.startswith("trial-00002 failed: ") and "try a lower --lr" in line
            for line in lines
        )
        assert [row["status"] for row in results(copy)] == ["finished", "stopped", "failed"]

    def test_can_clone_a_trial_with_another_learning_rate(
        self, asha: tuple[Path, int], tmp_path: Path
    ) -> None:
        donor = RunDirectory(asha[0] / "trials" / "trial-00000")
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
        self, local_ray: None, tmp_path: Path
    ) -> None:
        args = ["quick", "--run-dir", str(tmp_path / "search"), "--set", "cpus_per_stage=64"]
        with pytest.raises(UserError, match=r"cannot hold the plan: 1 actors of .* 64 CPUs"):
            main(args)
        assert not (tmp_path / "search").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_trials_run_side_by_side_and_each_point_with_each_seed(
    local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
