"""Promise 2: the cut changes nothing. Promise 4: a run resumes on another number of stages."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rayff
from rayff.config.kernels import parse_kernels
from rayff.config.train_config import TrainConfig
from rayff.engine.learner import StageSpec
from rayff.engine.loop import Loop
from rayff.engine.pipeline import LocalPipeline
from rayff.engine.preparation import prepare
from rayff.engine.stage import local_stage
from rayff.engine.stop import StopRequest
from rayff.runs.checkpoint_manager import RunRecorder
from rayff.runs.run_directory import RunDirectory
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

# A narrow resnet: its cuts lie inside blocks and between them, with shortcuts that are added,
# concatenated and pooled. Of an epoch's three batches the last is smaller.
# Its layers are computed in all ways that there are, those with stride 2 (5, 9 and 13) too.
KERNELS = (
    "conv,winograd,conv/winograd,unfold,conv/unfold,winograd,winograd/conv,winograd,unfold/winograd,"
    "unfold,winograd/unfold,winograd,conv,winograd/unfold,winograd,unfold/conv,conv/unfold"
)
RUN: dict[str, Any] = {
    "arch": "resnet",
    "width": 8,
    "epochs": 2,
    "batch_size": 40,
    "lr": 0.01,
    "cpus_per_stage": 1,
    "precision": "fp32",
    "kernels": KERNELS,
}


def layer_files(run_dir: Path, step: int) -> dict[str, bytes]:
    """Return weights and optimizer state of every layer, byte for byte."""
    files = (run_dir / "checkpoints" / f"step-{step:08d}").glob("layer-*.safetensors")
    return {path.name: path.read_bytes() for path in files}


class Silent:
    def on_result(self, command: Any, reports: Any) -> None: ...
    def on_epoch(self, record: Any) -> None: ...
    def on_checkpoint(self, path: Any) -> None: ...
    def on_warning(self, message: str) -> None: ...
    def on_restart(self, stage_names: Any, progress: Any) -> None: ...


def train_in_one_process(run: TrainConfig) -> Path:
    """Train with the plain pipeline: one stage, one thread, no Ray."""
    prepared = prepare(run, resume=False)
    precision = run.precision or "fp32"
    kernels = parse_kernels(run.kernels or "conv", len(prepared.architecture))
    prepared = prepared.settled(precision, kernels)
    prepared.directory.create(prepared.run)
    spec = StageSpec(
        architecture=prepared.architecture,
        is_last=True,
        recipe=prepared.recipe,
        seed=run.seed,
        precision=precision,
        rule=run.rule,
        kernels=kernels,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        pipeline = LocalPipeline([local_stage(spec, torch.device("cpu"), prepared.splits)])
        with RunRecorder(prepared, Silent()) as recorder:
            loop = Loop(
                prepared=prepared,
                schedule=prepared.schedule(chunk=1),
                cuts=(),
                callback=Silent(),
                recorder=recorder,
            )
            loop.train(pipeline, StopRequest())
    finally:
        torch.set_num_threads(threads)
    return prepared.directory.path


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=4):
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def one_process(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    return train_in_one_process(TrainConfig(**RUN, task=task, run_dir=str(run_dir)))


@pytest.mark.ray
@pytest.mark.slow
class TestEveryPlanGivesTheSameBits:
    """Every layer's weights and optimizer state against training in one process without Ray."""

    @pytest.mark.parametrize(
        "plan",
        [
            {"stages": 1, "chunk": 3},
            {"stages": 2, "chunk": 1},
            {"stages": 2, "chunk": 3},
            {"cuts": (2, 7, 12), "chunk": 1, "window": 1},  # all cuts inside blocks
            {"stages": 4, "chunk": 3, "window": 9},
            {"cuts": (5, 10), "chunk": 2, "transport": "gloo"},
        ],
        ids=str,
    )
    def test_actors_equal_one_process(
        self,
        plan: dict[str, Any],
        cluster: None,
        task: str,
        one_process: Path,
        tmp_path: Path,
    ) -> None:
        run = TrainConfig(**RUN, **plan, task=task, run_dir=str(tmp_path / "run"))
        result = rayff.train(run, quiet=True)
        for step in (3, 6):
            expected = layer_files(one_process, step)
            assert len(expected) == 17
            assert layer_files(result.run_dir, step) == expected

    @pytest.mark.parametrize(
        "how",
        [{"rule": "plain", "kernels": None}, {"precision": "bf16"}],
        ids=str,
    )
    def test_by_the_plain_rule_and_in_bfloat16_too(
        self, how: dict[str, Any], cluster: None, task: str, tmp_path: Path
    ) -> None:
        run = TrainConfig(**{**RUN, **how, "epochs": 1}, task=task, run_dir=str(tmp_path / "one"))
        expected = layer_files(train_in_one_process(run), 3)
        cut = dataclasses.replace(run, cuts=(3, 8), chunk=2, run_dir=str(tmp_path / "run"))
        result = rayff.train(cut, quiet=True)
        assert len(expected) == 17
        assert layer_files(result.run_dir, 3) == expected

    def test_a_run_that_finds_its_kernels_resumes_with_them(
        self, cluster: None, task: str, tmp_path: Path
    ) -> None:
        run_dir = tmp_path / "run"
        found = {**RUN, "kernels": None, "precision": None}
        rayff.train(TrainConfig(**found, task=task, stages=2, run_dir=str(run_dir)), quiet=True)
        whole = layer_files(run_dir, 6)
        config = RunDirectory(run_dir).read_config()
        assert config.precision in ("fp32", "bf16")
        assert len(parse_kernels(config.kernels or "")) == 17
        shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
        again = TrainConfig(**found, task=task, stages=3, run_dir=str(run_dir))
        rayff.train(again, resume=True, quiet=True)
        assert RunDirectory(run_dir).read_config().kernels == config.kernels
        assert layer_files(run_dir, 6) == whole

    def test_a_run_of_four_stages_resumes_as_two(
        self, cluster: None, task: str, one_process: Path, tmp_path: Path
    ) -> None:
        run_dir = tmp_path / "run"
        whole = TrainConfig(**RUN, task=task, stages=4, run_dir=str(run_dir))
        rayff.train(whole, quiet=True)
        shutil.rmtree(run_dir / "checkpoints" / "step-00000006")

        again = TrainConfig(**RUN, task=task, stages=2, run_dir=str(run_dir))
        result = rayff.train(again, resume=True, quiet=True)

        assert [record.epoch for record in result.records] == [1, 2]
        assert [len(record.stage_busy) for record in result.records] == [4, 2]
        assert layer_files(run_dir, 6) == layer_files(one_process, 6)
        reference = rayff.load(one_process).state_dict()
        for name, weight in rayff.load(run_dir).state_dict().items():
            assert torch.equal(weight, reference[name])
