"""Replicas change the rounding of sums and nothing else, and have the same bits as one another."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from rayff import TrainConfig
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import layer_files, train_locally, train_on_ray
from tests.helpers.tiny_task import tiny_config

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with local_ray(num_cpus=5):
        yield


def config_of(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    """A narrow resnet; an epoch's last batch has one image, fewer than there are replicas."""
    options = {
        "arch": "resnet",
        "width": 8,
        "batch_size": 47,
        "limit": 95,
        "lr": 0.001,
        "optimizer": "sgd",
        "cpus_per_stage": 1,
        "precision": "fp32",
        "kernels": "conv",
        **changes,
    }
    return tiny_config(task, run_dir, **options)


@pytest.fixture(scope="module")
def one_process(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    train_locally(config_of(tiny_task, run_dir))
    return run_dir


def assert_alike(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """Weights are the same up to rounding, and so is momentum, but for a filter or two.

    A convolution of a share rounds otherwise than that of the whole batch. Of millions of
    activations one may so lie on the other side of zero, and adds its part to its filter's
    gradient or not. A mistake in shares, bits or scales would show in all filters.
    """
    assert len(found) == len(expected) == 17
    turned = []
    for name in expected:
        for tensor, own in load(expected[name]).items():
            other = load(found[name])[tensor]
            if tensor == "weight":
                torch.testing.assert_close(other, own, rtol=1e-4, atol=1e-6)
                continue
            close = torch.isclose(other, own, rtol=1e-4, atol=1e-6).flatten(1).all(dim=1)
            turned += [(name, place) for place in (~close).nonzero().flatten().tolist()]
            torch.testing.assert_close(other, own, rtol=1e-4, atol=2e-3)
    assert len(set(turned)) <= 3, turned


@pytest.mark.parametrize(
    "plan",
    [
        {"replicas": "1,2", "chunk": 1},
        {"replicas": "2,3", "cuts": (10,), "chunk": 3, "window": 1},
    ],
    ids=str,
)
def test_replicas_learn_what_one_process_learns(
    plan: dict[str, Any], tiny_task: str, one_process: Path, tmp_path: Path
) -> None:
    """That replicas have the same bits is checked by every snapshot of the run itself."""
    result = train_on_ray(config_of(tiny_task, tmp_path / "run", **plan))
    assert all(len(record.stage_busy) == 2 for record in result.metrics)
    for step in (3, 6):
        assert_alike(layer_files(result.run_dir, step), layer_files(one_process, step))


def test_a_run_resumes_with_other_replicas(
    tiny_task: str, one_process: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_task, tmp_path / "run", replicas="2,1")
    train_on_ray(config)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    alone = dataclasses.replace(config, replicas=None, stages=1)
    result = train_on_ray(alone, resume=True)
    assert [len(record.stage_busy) for record in result.metrics] == [2, 1]
    assert_alike(layer_files(tmp_path / "run", 6), layer_files(one_process, 6))
