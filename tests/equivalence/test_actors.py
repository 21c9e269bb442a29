"""Promises 2 and 4 with actors: the bits of one process for every plan, and for a resumption."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayff import TrainConfig, load_model
from rayff.config.kernels import parse_kernels
from rayff.distributed import stage_group, transport
from rayff.distributed.transport import DirectTransport
from rayff.runs.run_directory import RunDirectory
from tests.helpers.augmentations import DARKEN
from tests.helpers.losses import LINEAR
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import layer_files, timeless, train_locally, train_on_ray
from tests.helpers.tiny_task import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# A narrow resnet: its cuts lie inside blocks and between them, with shortcuts that are added,
# concatenated and pooled. Of an epoch's three batches the last is smaller. Its layers use every
# backend, those with stride 2 (5, 9 and 13) too.
KERNELS = (
    "conv,winograd,conv/winograd,unfold,conv/unfold,winograd,winograd/conv,winograd,unfold/winograd,"
    "unfold,winograd/unfold,winograd,conv,winograd/unfold,winograd,unfold/conv,conv/unfold"
)
OWN = {
    "loss": LINEAR,
    "augment": f"crop:4,flip,{DARKEN},cutout:8,translate:2",
    "optimizer": "torch.optim:RMSprop",
}
"""A user's local loss, whose heads learn too, augmentation and optimizer."""


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


def config_of(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    options = {
        "arch": "resnet",
        "width": 8,
        "cpus_per_stage": 1,
        "precision": "fp32",
        "kernels": KERNELS,
        **changes,
    }
    return tiny_config(task, run_dir, **options)


@pytest.fixture(scope="module")
def one_process(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    train_locally(config_of(tiny_task, run_dir))
    return run_dir


def remove_last_checkpoint(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")


class TestEveryPlan:
    """Parameters and optimizer state of every layer against training in one process."""

    @pytest.mark.parametrize(
        "plan",
        [
            {"stages": 2, "chunk": 1},
            {"cuts": (2, 7, 12), "chunk": 1, "window": 1},  # all cuts inside blocks
            {"stages": 4, "chunk": 3, "window": 9},
        ],
        ids=str,
    )
    def test_gives_the_same_bits(
        self, plan: dict[str, Any], tiny_task: str, one_process: Path, tmp_path: Path
    ) -> None:
        train_on_ray(config_of(tiny_task, tmp_path / "run", **plan))
        for step in (3, 6):
            expected = layer_files(one_process, step)
            assert len(expected) == 17
            assert layer_files(tmp_path / "run", step) == expected

    def test_gives_the_same_bits_whatever_way_crosses_each_boundary(
        self,
        tiny_task: str,
        one_process: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ways = ["object-store", "gloo", "object-store"]
        monkeypatch.setattr(transport, "direct_ways", lambda places: ways)
        monkeypatch.setattr(
            stage_group, "make_transport", lambda *_, **__: DirectTransport("auto", print)
        )
        train_on_ray(config_of(tiny_task, tmp_path / "run", cuts=(2, 7, 12), chunk=2))
        assert layer_files(tmp_path / "run", 6) == layer_files(one_process, 6)

    @pytest.mark.parametrize(
        "how",
        [{"rule": "plain", "kernels": None}, {"precision": "bf16"}, {"kernels": None, **OWN}],
        ids=["plain rule", "bfloat16", "extensions"],
    )
    def test_does_so_whatever_the_layers_learn_by(
        self, how: dict[str, Any], tiny_task: str, tmp_path: Path
    ) -> None:
        """And the local backend has the bits of the actors on 1 and on 3 stages."""
        files, records = [], []
        for name, plan, train in (
            ("local-1", {}, train_locally),
            ("local-3", {"cuts": (3, 8)}, train_locally),
            ("ray-1", {"stages": 1}, train_on_ray),
            ("ray-3", {"cuts": (3, 8), "chunk": 2}, train_on_ray),
        ):
            config = config_of(tiny_task, tmp_path / name, epochs=1, **plan, **how)
            records.append(timeless(train(config).metrics))
            files.append(layer_files(tmp_path / name))
        assert len(files[0]) == 17
        assert files == [files[0]] * 4
        assert records == [records[0]] * 4


class TestTheDefaultCommand:
    def test_gives_the_same_bits_for_every_number_of_stages(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        """With the kernels and the precision that the table and the machine give."""
        found = {"kernels": None, "precision": None, "epochs": 1, "cpus_per_stage": 0.5}
        files, kernels = [], set()
        for stages in (1, 2, 4):
            run_dir = tmp_path / str(stages)
            train_on_ray(config_of(tiny_task, run_dir, stages=stages, **found))
            files.append(layer_files(run_dir))
            kernels.add(RunDirectory(run_dir).read_config().kernels)
        assert len(set(parse_kernels(*kernels))) > 1, "otherwise any choice gives these bits"
        assert files == [files[0]] * 3


class TestAResumedRun:
    def test_keeps_the_kernels_that_it_resolved(self, tiny_task: str, tmp_path: Path) -> None:
        found = {"kernels": None, "precision": None}
        first = config_of(tiny_task, tmp_path / "run", stages=2, **found)
        train_on_ray(first)
        whole = layer_files(tmp_path / "run", 6)
        config = RunDirectory(tmp_path / "run").read_config()
        assert config.precision in ("fp32", "bf16")
        assert len(parse_kernels(config.kernels or "")) == 17
        remove_last_checkpoint(tmp_path / "run")
        train_on_ray(dataclasses.replace(first, stages=3), resume=True)
        assert RunDirectory(tmp_path / "run").read_config().kernels == config.kernels
        assert layer_files(tmp_path / "run", 6) == whole

    def test_of_four_stages_goes_on_as_two(
        self, tiny_task: str, one_process: Path, tmp_path: Path
    ) -> None:
        config = config_of(tiny_task, tmp_path / "run", stages=4)
        train_on_ray(config)
        remove_last_checkpoint(tmp_path / "run")
        result = train_on_ray(dataclasses.replace(config, stages=2), resume=True)
        assert [record.epoch for record in result.metrics] == [1, 2]
        assert [len(record.stage_busy) for record in result.metrics] == [4, 2]
        assert layer_files(tmp_path / "run", 6) == layer_files(one_process, 6)
        reference = load_model(one_process).state_dict()
        for name, weight in load_model(tmp_path / "run").state_dict().items():
            assert torch.equal(weight, reference[name])
