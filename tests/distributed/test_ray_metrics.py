"""What is counted in Ray's metrics: the right numbers, at no cost, and whatever fails."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from rayff.distributed.training import train

from rayff.config.train_config import TrainConfig
from rayff.console.run_view import observe_quietly
from rayff.distributed import ray_metrics as metrics
from rayff.distributed.ray_metrics import GAUGES, RUN_COUNTERS, STAGE_COUNTERS, RunMetrics
from rayff.engine.commands import Report, Train
from rayff.engine.progress import Tracker
from rayff.models.zoo import architecture
from rayff.runs.checkpoint import Progress
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

IMAGES = {"train": 96, "valid": 20, "test": 30}
EPOCHS = 2


class Instrument:
    """A counter or gauge that remembers."""

    def __init__(self) -> None:
        self.values: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def inc(self, amount: float, tags: Mapping[str, str]) -> None:
        assert amount > 0, "Ray refuses it"
        self.values[tuple(tags.values())] += amount

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        self.values[tuple(tags.values())] = value


class Instruments:
    """In the place of Ray's."""

    def __init__(self) -> None:
        self.counters = {name: Instrument() for name in (*STAGE_COUNTERS, *RUN_COUNTERS)}
        self.gauges = {name: Instrument() for name in GAUGES}

    def __call__(self) -> Any:
        return self.counters, self.gauges

    def __getitem__(self, name: str) -> dict[tuple[str, ...], float]:
        return dict({**self.counters, **self.gauges}[name].values)


@pytest.fixture
def instruments(monkeypatch: pytest.MonkeyPatch) -> Instruments:
    fakes = Instruments()
    monkeypatch.setattr(metrics, "instruments", fakes)
    return fakes


def watching(stages: int = 2) -> RunMetrics:
    tracker = Tracker(
        epochs=3, num_train_images=100, stage_names=["some layers"] * stages, start=Progress()
    )
    return RunMetrics("first", tracker)


def chunk(stages: int = 2) -> tuple[Train, list[Report]]:
    command = Train(epoch=1, step=0, lr=0.1, batches=(np.arange(8), np.arange(8)))
    reports = [
        Report(started_s=0, busy_s=1 + stage, images=16, sent_bytes=100 * (stage == 0))
        for stage in range(stages)
    ]
    return command, reports


class TestTheSums:
    def test_are_handed_on_once(self, instruments: Instruments) -> None:
        watched = watching()
        for _ in range(3):
            watched.on_result(*chunk())
        watched.export()
        watched.export()
        assert instruments["rayff_images_total"] == {("first", "0"): 48, ("first", "1"): 48}
        assert instruments["rayff_batches_total"] == {("first", "0"): 6, ("first", "1"): 6}
        assert instruments["rayff_busy_seconds_total"] == {("first", "0"): 3, ("first", "1"): 6}
        assert instruments["rayff_sent_bytes_total"] == {("first", "0"): 300}

    def test_count_restarts_and_images_that_are_trained_again(
        self, instruments: Instruments
    ) -> None:
        watched = watching()
        watched.on_result(*chunk())
        watched.on_restart(["all"], Progress())
        watched.export()
        assert instruments["rayff_epoch"] == {("first",): 1}
        watched.on_result(*chunk(stages=1))
        watched.export()
        assert instruments["rayff_restarts_total"] == {("first",): 1}
        assert instruments["rayff_images_total"][("first", "0")] == 32
        assert instruments["rayff_epoch"] == {("first",): 2}

    def test_take_the_loop_next_to_no_time(self) -> None:
        watched, (command, reports) = watching(stages=17), chunk(stages=17)
        before = time.perf_counter()
        for _ in range(1000):
            watched.on_result(command, reports)
        assert time.perf_counter() - before < 1, "a chunk takes about a third of a second"

    def test_come_from_a_thread_until_the_run_is_over(
        self, instruments: Instruments, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metrics, "EVERY_S", 0.01)
        with watching() as watched:
            watched.on_result(*chunk())
            deadline = time.monotonic() + 10
            while not instruments["rayff_images_total"] and time.monotonic() < deadline:
                time.sleep(0.01)
            assert instruments["rayff_images_total"] == {("first", "0"): 16, ("first", "1"): 16}
            watched.on_result(*chunk())
        assert instruments["rayff_images_total"] == {("first", "0"): 32, ("first", "1"): 32}

    def test_that_ray_refuses_end_the_metrics_and_not_the_run(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken() -> None:
            raise RuntimeError("no metrics today")

        monkeypatch.setattr(metrics, "EVERY_S", 0.01)
        monkeypatch.setattr(metrics, "instruments", broken)
        with watching() as watched:
            for _ in range(5):
                watched.on_result(*chunk())
                time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(_system_config={"metrics_report_interval_ms": 500}):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
class TestATraining:
    @pytest.fixture
    def run(self, tmp_path: Path) -> TrainConfig:
        return TrainConfig(
            width=4,
            task=write_tiny_task(tmp_path),
            epochs=EPOCHS,
            batch_size=16,
            precision="fp32",
            kernels="conv/conv",
            cuts=(2,),
            run_dir=str(tmp_path / "counted"),
        )

    def sent(self) -> int:
        """Return the bytes of the features and labels, and of the goodness in evaluation."""
        layer = architecture("tinycnn", num_classes=4, image_channels=3, width=4)[2]
        each = 4 * layer.in_channels * layer.in_size**2 + 8
        trained, evaluated = IMAGES["train"], IMAGES["valid"] + IMAGES["test"]
        return EPOCHS * (trained * each + evaluated * (each + 4 * 2 * 4))

    def test_is_counted_to_the_last_image_and_byte(
        self, run: TrainConfig, instruments: Instruments
    ) -> None:
        result = train(run, observe_quietly)
        stages = [("counted", "0"), ("counted", "1")]
        images, batches = EPOCHS * IMAGES["train"], EPOCHS * 6
        assert instruments["rayff_images_total"] == dict.fromkeys(stages, images)
        assert instruments["rayff_batches_total"] == dict.fromkeys(stages, batches)
        assert instruments["rayff_sent_bytes_total"] == {stages[0]: self.sent()}
        assert all(0 < instruments["rayff_busy_seconds_total"][stage] < 60 for stage in stages)
        last = result.records[-1]
        assert instruments["rayff_valid_accuracy"] == {("counted",): last.valid_accuracy}
        assert instruments["rayff_test_accuracy"] == {("counted",): last.test_accuracy}
        assert instruments["rayff_epoch"] == {("counted",): EPOCHS}
        assert instruments["rayff_chunks_in_flight"] == {("counted",): 0}
        assert instruments["rayff_window"] == {("counted",): 4}

    def test_is_on_the_metrics_port_of_its_node(self, run: TrainConfig) -> None:
        (node,) = ray.nodes()
        if node["MetricsExportPort"] <= 0:
            pytest.skip("Ray exports metrics where ray[default] is installed")
        train(run, observe_quietly)
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found: dict[tuple[str, str | None], float] = {}
        deadline = time.monotonic() + 30
        images, wanted = ("ray_rayff_images_total", "1"), EPOCHS * IMAGES["train"]
        while found.get(images) != wanted and time.monotonic() < deadline:
            time.sleep(0.5)
            found = scraped(address, "counted")
        for stage in ("0", "1"):
            assert found["ray_rayff_images_total", stage] == EPOCHS * IMAGES["train"]
            assert found["ray_rayff_batches_total", stage] == EPOCHS * 6
            assert found["ray_rayff_busy_seconds_total", stage] > 0
        assert found["ray_rayff_sent_bytes_total", "0"] == self.sent()
        assert {name for name, stage in found if stage is None} == {f"ray_{n}" for n in GAUGES}


def scraped(address: str, run: str) -> dict[tuple[str, str | None], float]:
    """Return the metrics of a run in Prometheus' text, by name and stage."""
    with urllib.request.urlopen(address, timeout=5) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_rayff_") and f'run="{run}"' in line:
            stage = re.search(r'stage="(\d+)"', line)
            name = line.partition("{")[0]
            found[name, stage[1] if stage else None] = float(line.rpartition(" ")[2])
    return found
