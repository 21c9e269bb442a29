"""One trial: its resources, its reports to Ray Tune, and checkpoints of other trials."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

import rayff.tune.trial
from rayff.config.train_config import TrainConfig
from rayff.distributed.placement import Node
from rayff.engine.preparation import prepare
from rayff.partition.plan import StageResources
from rayff.runs.run_directory import RunDirectory
from rayff.tune.trial import (
    TrialCallback,
    clone_checkpoint,
    trial_bundles,
    trial_config,
    trial_resources,
)
from tests.helpers.runs import layer_files, train_locally
from tests.helpers.tiny_task import write_tiny_task

EIGHT_CPUS = [Node(cpus=8, gpus=2)]
TWO_CPUS = [Node(cpus=2, gpus=0)]


class TestResources:
    @pytest.mark.parametrize(
        ("options", "there", "expected"),
        [
            ({"stages": 2, "device": "cpu"}, EIGHT_CPUS, (2, 1, 0)),
            ({"cuts": (1, 2), "device": "cpu"}, EIGHT_CPUS, (3, 1, 0)),
            ({"elastic": "2:4", "device": "cpu"}, EIGHT_CPUS, (4, 1, 0)),
            ({"stages": 4}, TWO_CPUS, (4, 0.5, 0)),
            ({"stages": 2, "cpus_per_stage": 3, "gpus_per_stage": 0.5}, EIGHT_CPUS, (2, 3, 0.5)),
        ],
    )
    def test_are_one_cpu_per_stage_by_default_or_a_share(
        self, options: dict[str, Any], there: list[Node], expected: tuple[int, float, float]
    ) -> None:
        count, cpus, gpus = expected
        found = trial_resources(TrainConfig(**options), there)
        assert found == (count, StageResources(cpus=cpus, gpus=gpus))

    def test_are_next_to_nothing_if_it_cannot_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rayff.tune.trial, "nodes", lambda: TWO_CPUS)
        assert trial_bundles({"stages": 2}).bundles == [{"CPU": 1.0}, {"CPU": 1.0}]
        assert trial_bundles({"lr": -1}).bundles == [{"CPU": 0.01}], "a function may draw that"

    def test_are_read_from_numbers_of_numpy(self) -> None:
        assert trial_config({"stages": np.int64(2), "lr": np.float64(0.5)}).stages == 2


class TestReports:
    @pytest.fixture
    def reports(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[str]]]:
        """Epochs reported to Tune, each with the checkpoints in the run directory then."""
        found: list[tuple[int, list[str]]] = []

        def report(values: dict[str, Any], checkpoint: tune.Checkpoint | None = None) -> None:
            names = [] if checkpoint is None else [p.name for p in Path(checkpoint.path).iterdir()]
            found.append((values["epoch"], sorted(names)))

        monkeypatch.setattr(tune, "report", report)
        return found

    def test_come_once_an_epoch_is_on_disk_and_again_when_it_goes_on(
        self, tmp_path: Path, reports: list[tuple[int, list[str]]]
    ) -> None:
        run = TrainConfig(
            task=write_tiny_task(tmp_path / "task"),
            width=4,
            batch_size=48,
            epochs=3,
            checkpoint_every=2,
            run_dir=str(tmp_path / "run"),
        )
        train_locally(run, TrialCallback(clones=True))
        assert reports == [
            (1, []),
            (2, ["metrics.parquet", "step-00000004"]),
            (3, ["metrics.parquet", "step-00000006"]),
        ]
        del reports[:]
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
        train_locally(run, TrialCallback(clones=False), resume=True)
        assert reports == [(2, []), (3, [])]


def test_a_trial_continues_from_another_with_another_learning_rate(tmp_path: Path) -> None:
    task = write_tiny_task(tmp_path / "task")
    donor = TrainConfig(task=task, width=4, batch_size=48, epochs=1, run_dir=str(tmp_path / "run"))
    train_locally(donor)
    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    given = tmp_path / "given"
    shutil.copytree(newest, given / newest.name)
    shutil.copy(tmp_path / "run" / "metrics.parquet", given)

    clone = RunDirectory(tmp_path / "clone")
    (clone.checkpoints / "step-00000001").mkdir(parents=True)
    run = dataclasses.replace(donor, lr=0.5, epochs=2, run_dir=str(clone.path))
    clone_checkpoint(clone, run, tune.Checkpoint.from_directory(str(given)))
    assert layer_files(clone.path) == layer_files(donor.run_dir)
    prepared = prepare(run, resume=True)
    assert (prepared.progress.epoch, prepared.recipe.lr) == (1, 0.5)
    assert [path.name for path in prepared.checkpoints.list()] == [newest.name]
