"""The command line of a report trains the same run again."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from rayff.config.train_config import TrainConfig
from rayff.report.command_line import from_config, from_flags
from rayff.runs.run_directory import RunDirectory
from rayff.train import read_flags

RUNS = [
    TrainConfig(),
    TrainConfig(arch="resnet", task="cifar10", data_dir="my data", download=True, cuts=(5, 9)),
    TrainConfig(epochs=3, lr=0.006, lr_min=3e-4, kernels="conv/unfold,winograd", precision="bf16"),
    TrainConfig(replicas="1,2", transport="object-store", gpus_per_stage=0.5, rule="plain"),
]


def read(line: str) -> TrainConfig:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "rayff.train"]
    command = read_flags(words[3:])
    return TrainConfig(
        **{f.name: getattr(command, f.name) for f in dataclasses.fields(TrainConfig)}
    )


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_its_flags_are_those_of_the_run(run: TrainConfig) -> None:
    assert read(from_flags(run)) == run


def test_its_config_is_that_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "a run's folder"
    RunDirectory(folder).create(RUNS[1])
    assert read(from_config(folder)) == RUNS[1]


def test_the_run_directory_is_not_named() -> None:
    assert "run-dir" not in from_flags(TrainConfig(run_dir="runs/first"))
