"""Ray counts a GPU that torch does not see: stages take CPUs, and `rayff doctor` tells."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.doctor import cluster
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import RecordingCallback, train_on_ray
from tests.helpers.stages import OPTIONS

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def counted_gpu() -> Iterator[None]:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device")
    with local_ray(num_gpus=1):
        yield


def test_stages_take_cpus_unless_gpus_are_asked_for(tiny_task: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "task": tiny_task, "epochs": 1, "run_dir": str(tmp_path / "run")}
    sentence = r"Ray counts a GPU on node \S+, but torch \S+ sees none there; use --device cpu"
    with pytest.raises(UserError, match=sentence):
        train_on_ray(TrainConfig(**options, device="cuda"))
    seen = RecordingCallback()
    assert train_on_ray(TrainConfig(**options), seen).complete
    (warning,) = [line for line in seen.lines if "GPU" in line]
    assert warning.endswith("training on CPUs")


def test_doctor_names_the_node() -> None:
    result = cluster.node_gpus()
    assert result is not None
    assert result.state == "fail"
    assert "torch sees none on 1 of 1 nodes with GPUs" in result.text
