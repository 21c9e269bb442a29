"""Promise 3: a failure changes nothing. Real processes and raylets are killed."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from rayff.distributed.training import TrainResult, train

from rayff.config.errors import RunError, UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed import stage_group as stage_group
from rayff.distributed.local_cluster import LocalNodes
from rayff.engine.loop import Callback
from rayff.runs.metrics import EpochRecord
from tests.engine.local_run import Diary, timeless
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OPTIONS: dict[str, Any] = {
    "arch": "tinycnn",
    "width": 4,
    "epochs": 3,
    "batch_size": 16,  # six batches an epoch
    "lr": 0.01,
    "chunk": 2,
    "precision": "fp32",
    "kernels": "conv",
    "cpus_per_stage": 1,
}
LAST = 18


class SearchCallback(Diary):
    """Writes down what it is told; `act` is called behind each line with the line."""

    def __init__(self, act: Callable[[str], object] = lambda line: None) -> None:
        super().__init__()
        self.act = act

    def _tell(self) -> None:
        self.act(self.lines[-1])

    def on_result(self, command: Any, reports: Any) -> None:
        super().on_result(command, reports)
        self._tell()

    def on_epoch(self, record: EpochRecord) -> None:
        super().on_epoch(record)
        self._tell()

    def on_checkpoint(self, path: Path) -> None:
        super().on_checkpoint(path)
        self._tell()

    def on_warning(self, message: str) -> None:
        super().on_warning(message)
        self._tell()


def train_watched(
    run: TrainConfig, watcher: SearchCallback | None = None, *, resume: bool = False
) -> tuple[TrainResult, SearchCallback]:
    seen = watcher or SearchCallback()

    @contextmanager
    def observe(*prepared_and_plan: Any) -> Iterator[Callback]:
        yield seen

    return train(run, observe, resume=resume, notify=seen.on_warning), seen


def layer_files(run_dir: Path, step: int = LAST) -> dict[str, bytes]:
    files = (run_dir / "checkpoints" / f"step-{step:08d}").glob("layer-*.safetensors")
    return {path.name: path.read_bytes() for path in files}


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def pid_of(name: str) -> int:
    return ray.get(ray.get_actor(name).__ray_call__.remote(lambda actor: os.getpid()))


def kill_stage(stage: int) -> None:
    os.kill(pid_of(f"run:stage-{stage}"), signal.SIGKILL)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


class TestOnOneNode:
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def cluster(cls) -> Iterator[None]:
        with local_ray():
            yield

    @pytest.fixture
    def run(self, task: str, tmp_path: Path) -> TrainConfig:
        return TrainConfig(**OPTIONS, cuts=(2,), task=task, run_dir=str(tmp_path / "run"))

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(
        cls, cluster: None, task: str, tmp_path_factory: pytest.TempPathFactory
    ) -> TrainResult:
        run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
        run = TrainConfig(**OPTIONS, cuts=(2,), task=task, run_dir=str(run_dir))
        return train_watched(run)[0]

    def same(self, result: TrainResult, undisturbed: TrainResult) -> bool:
        wanted = layer_files(undisturbed.run_dir)
        assert len(wanted) == 4
        assert timeless(result.records) == timeless(undisturbed.records)
        return layer_files(result.run_dir) == wanted

    @pytest.mark.parametrize(
        ("stage", "when"), [(0, "train 8"), (1, "valid"), (1, "step-00000006")], ids=str
    )
    def test_a_stage_that_is_killed_changes_no_bit(
        self, stage: int, when: str, run: TrainConfig, undisturbed: TrainResult
    ) -> None:
        """While it computes or sends, before the first snapshot, and behind one."""
        killed: list[float] = []

        def act(line: str) -> None:
            if line == when and not killed:
                kill_stage(stage)
                killed.append(time.time())

        result, seen = train_watched(run, SearchCallback(act))
        assert self.same(result, undisturbed)
        warned = [line for line in seen.lines if "died" in line]
        assert len(warned) == 1
        assert f"stage {stage} (layers {2 * stage}-{2 * stage + 1}) died" in warned[0]
        assert "failure 1 of 3" in warned[0]
        (lost,) = events(result.run_dir, "lost")
        assert lost["time"] - killed[0] < 5
        assert lost["step"] >= lost["snapshot"]
        assert lost["snapshot"] in (0, 6, 12)

    @pytest.mark.parametrize(("stage", "survived"), [(0, 0), (1, 1)])
    def test_a_stage_that_is_killed_while_its_snapshot_is_taken_changes_no_bit(
        self, stage: int, survived: int, run: TrainConfig, undisturbed: TrainResult
    ) -> None:
        """The other stage has taken its own; the run goes back to the whole snapshot before."""

        def die_in_snapshot(actor: Any) -> None:
            usual = actor.stage.learner.states
            taken: list[bool] = []

            def states() -> Any:
                result = usual()
                if len(taken) == survived:
                    os.kill(os.getpid(), signal.SIGKILL)
                taken.append(True)
                return result

            actor.stage.learner.states = states

        armed: list[bool] = []

        def act(line: str) -> None:
            # The window holds fewer commands than an epoch: no snapshot is under way yet.
            if line == "train 0" and not armed:
                armed.append(True)
                ray.get(ray.get_actor(f"run:stage-{stage}").__ray_call__.remote(die_in_snapshot))

        result, _ = train_watched(run, SearchCallback(act))
        assert self.same(result, undisturbed)
        (lost,) = events(result.run_dir, "lost")
        assert lost["snapshot"] == 6 * survived

    @pytest.mark.parametrize("moment", ["_await_start", "_set_up_calls", "measure"])
    def test_a_stage_that_is_killed_while_it_starts_changes_no_bit(
        self,
        moment: str,
        run: TrainConfig,
        undisturbed: TrainResult,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        usual = getattr(stage_group, moment)
        killed: list[bool] = []

        def deadly(*args: Any) -> Any:
            if not killed:
                killed.append(True)
                kill_stage(1)
            return usual(*args)

        monkeypatch.setattr(stage_group, moment, deadly)
        result, seen = train_watched(run)
        assert killed
        assert self.same(result, undisturbed)
        assert sum("died" in line for line in seen.lines) == 1

    def test_one_failure_too_many_ends_the_run_which_resumes(
        self, run: TrainConfig, undisturbed: TrainResult
    ) -> None:
        def act(line: str) -> None:
            if line == "train 8":
                kill_stage(0)

        few = TrainConfig(**{**run.to_dict(), "max_failures": 1})
        with pytest.raises(
            RunError,
            match=r"stage 0 \(layers 0-1\) died: .*that was failure 2, and --max-failures is 1; "
            "its last checkpoint stays, go on with --resume",
        ):
            train_watched(few, SearchCallback(act))
        result, _ = train_watched(few, resume=True)
        assert self.same(result, undisturbed)

    def test_a_slow_stage_loses_layers_at_a_snapshot(
        self, run: TrainConfig, undisturbed: TrainResult
    ) -> None:
        """Stage 1 computes on a machine that becomes slow; the bits do not change with the cut."""

        def slow_down(actor: Any) -> None:
            usual = actor.stage.learner.rules.learn

            def learn(*args: Any) -> Any:
                time.sleep(0.05)
                return usual(*args)

            actor.stage.learner.rules = actor.stage.learner.rules.__class__(
                **{**vars(actor.stage.learner.rules), "learn": learn}
            )

        slowed: list[bool] = []

        def act(line: str) -> None:
            if line == "train 0" and not slowed:
                slowed.append(True)
                ray.get(ray.get_actor("run:stage-1").__ray_call__.remote(slow_down))

        free = {**run.to_dict(), "cuts": None, "stages": 2, "rebalance": True, "chunk": 1}
        result, seen = train_watched(TrainConfig(**free), SearchCallback(act))
        assert self.same(result, undisturbed)
        (moved,) = events(result.run_dir, "rebalanced")[:1]
        cuts = [record.cuts for record in result.records]
        assert cuts[0] < cuts[1] == moved["cuts"]
        assert any("moving the cuts" in line for line in seen.lines)


class TestOnSeveralNodes:
    def test_the_plan_shrinks_and_grows_with_the_cluster(self, task: str, tmp_path: Path) -> None:
        options = {**OPTIONS, "epochs": 6, "elastic": "1:2", "task": task}
        with LocalNodes(2) as nodes:
            ray.init(nodes.cluster.address, log_to_driver=False, logging_level="error")
            try:
                whole, _ = train_watched(TrainConfig(**options, run_dir=str(tmp_path / "whole")))
                done: list[str] = []

                def act(line: str) -> None:
                    if line == "train 8" and not done:
                        done.append(line)
                        nodes.remove(0)
                    if line == "epoch 3" and len(done) == 1:
                        done.append(line)
                        nodes.add()
                        while ray.cluster_resources().get("CPU", 0) < 2:
                            time.sleep(0.1)

                result, seen = train_watched(
                    TrainConfig(**options, run_dir=str(tmp_path / "run")), SearchCallback(act)
                )
                missing = TrainConfig(
                    **{**options, "elastic": "3:4", "run_dir": str(tmp_path / "x")}
                )
                with pytest.raises(UserError, match="the cluster cannot hold the plan: 3 actors"):
                    train_watched(missing)
            finally:
                ray.shutdown()
        stages = [len(event["stages"]) for event in events(result.run_dir, "planned")]
        assert stages == [2, 1, 2]
        assert any("room for 2 stages again" in line for line in seen.lines)
        assert layer_files(result.run_dir, 36) == layer_files(whole.run_dir, 36)
        assert len(layer_files(whole.run_dir, 36)) == 4
        assert timeless(result.records) == timeless(whole.records)
