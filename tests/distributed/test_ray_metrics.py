"""A run's counts in Ray's metrics: exact, cheap, and never worth a training."""

import re
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from rayff import TrainConfig
from rayff.distributed import ray_metrics
from rayff.distributed.ray_metrics import GAUGES, RUN_COUNTERS, STAGE_COUNTERS, RayMetrics
from rayff.engine.commands import Report, Train
from rayff.models.zoo import architecture
from rayff.runs.checkpoint import Progress
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import train_on_ray
from tests.helpers.stages import OPTIONS


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
    monkeypatch.setattr(ray_metrics, "instruments", fakes)
    return fakes


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_metrics, "EVERY_S", 0.01)


@pytest.fixture
def metrics(instruments: Instruments) -> Iterator[RayMetrics]:
    """The callback of a run of three epochs that has just begun."""
    run: Any = SimpleNamespace(
        directory=SimpleNamespace(name="first"),
        recipe=SimpleNamespace(epochs=3),
        splits={"train": range(100)},
        progress=Progress(),
    )
    plan: Any = SimpleNamespace(stage_names=["some layers"] * 2)
    metrics = RayMetrics()
    metrics.on_start(run, plan)
    yield metrics
    metrics.on_end(None)


def chunk(stages: int = 2) -> tuple[Train, list[Report]]:
    command = Train(epoch=1, step=0, lrs=(0.1, 0.1), batches=(np.arange(8), np.arange(8)))
    reports = [
        Report(started_s=0, busy_s=1 + stage, images=16, sent_bytes=100 * (stage == 0))
        for stage in range(stages)
    ]
    return command, reports


def test_sums_are_exported_once(instruments: Instruments, metrics: RayMetrics) -> None:
    for _ in range(3):
        metrics.on_chunk_end(*chunk())
    metrics.export()
    metrics.export()
    assert instruments["rayff_images_total"] == {("first", "0"): 48, ("first", "1"): 48}
    assert instruments["rayff_batches_total"] == {("first", "0"): 6, ("first", "1"): 6}
    assert instruments["rayff_busy_seconds_total"] == {("first", "0"): 3, ("first", "1"): 6}
    assert instruments["rayff_sent_bytes_total"] == {("first", "0"): 300}


def test_restarts_and_images_that_are_trained_again_count(
    instruments: Instruments, metrics: RayMetrics
) -> None:
    metrics.on_chunk_end(*chunk())
    metrics.on_restart(["all"], Progress())
    metrics.export()
    assert instruments["rayff_epoch"] == {("first",): 1}
    metrics.on_chunk_end(*chunk(stages=1))
    metrics.export()
    assert instruments["rayff_restarts_total"] == {("first",): 1}
    assert instruments["rayff_images_total"][("first", "0")] == 32
    assert instruments["rayff_epoch"] == {("first",): 2}


def test_a_chunk_takes_the_loop_next_to_no_time(metrics: RayMetrics) -> None:
    command, reports = chunk(stages=17)
    metrics.on_restart(["a layer"] * 17, Progress())
    before = time.perf_counter()
    for _ in range(1000):
        metrics.on_chunk_end(command, reports)
    assert time.perf_counter() - before < 1, "a chunk takes about a third of a second"


@pytest.mark.usefixtures("often")
def test_a_thread_exports_until_the_run_is_over(
    instruments: Instruments, metrics: RayMetrics
) -> None:
    metrics.on_chunk_end(*chunk())
    deadline = time.monotonic() + 10
    while not instruments["rayff_images_total"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert instruments["rayff_images_total"] == {("first", "0"): 16, ("first", "1"): 16}
    metrics.on_chunk_end(*chunk())
    metrics.on_end(None)
    assert instruments["rayff_images_total"] == {("first", "0"): 32, ("first", "1"): 32}


@pytest.mark.usefixtures("often")
def test_metrics_that_ray_refuses_do_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, metrics: RayMetrics
) -> None:
    refused: list[bool] = []

    def refuse() -> None:
        refused.append(True)
        raise RuntimeError("no metrics today")

    monkeypatch.setattr(ray_metrics, "instruments", refuse)
    while not refused:
        time.sleep(0.01)
    metrics.on_chunk_end(*chunk())
    metrics.on_end(None)
    assert len(refused) == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(_system_config={"metrics_report_interval_ms": 500}):
        yield


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_training_is_on_the_metrics_port_to_the_last_image_and_byte(
    tiny_task: str, tmp_path: Path
) -> None:
    options = {**OPTIONS, "task": tiny_task, "run_dir": str(tmp_path / "counted")}
    result = train_on_ray(TrainConfig(**options, cuts=(2,)))
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    images, batches, evaluated = 3 * 96, 3 * 6, 3 * (20 + 30)
    found: dict[tuple[str, str], float] = {}
    deadline = time.monotonic() + 30
    while found.get(("images_total", "1")) != images and time.monotonic() < deadline:
        time.sleep(0.5)
        found = scraped(address, "counted")
    for stage in ("0", "1"):
        assert found["images_total", stage] == images
        assert found["batches_total", stage] == batches
        assert 0 < found["busy_seconds_total", stage] < 60
    # features and labels, and in evaluation the logits of two layers
    layer = architecture("tinycnn", num_classes=4, image_channels=3, width=4)[2]
    each = 4 * layer.in_channels * layer.in_size**2 + 8
    assert found["sent_bytes_total", "0"] == images * each + evaluated * (each + 4 * 2 * 4)
    assert {f"rayff_{name}" for name, stage in found if not stage} == GAUGES.keys()
    last = result.metrics[-1]
    assert found["valid_accuracy", ""] == pytest.approx(last.valid_accuracy)
    assert found["test_accuracy", ""] == pytest.approx(last.test_accuracy)
    assert (found["epoch", ""], found["chunks_in_flight", ""], found["window", ""]) == (3, 0, 4)


def scraped(address: str, run: str) -> dict[tuple[str, str], float]:
    """Return the metrics of a run in Prometheus' text, by name and stage."""
    with urllib.request.urlopen(address, timeout=5) as response:
        lines = response.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_rayff_") and f'run="{run}"' in line:
            stage = re.search(r'stage="(\d+)"', line)
            name = line.partition("{")[0].removeprefix("ray_rayff_")
            found[name, stage[1] if stage else ""] = float(line.rpartition(" ")[2])
    return found
