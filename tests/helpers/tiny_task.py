"""A task so small that training on it takes a second."""

from pathlib import Path
from typing import Any

from rayff import TrainConfig
from tests.data.files import write_parquet

BATCHES = 3
"""Of an epoch of `tiny_config`: 40, 40 and 16 images. With a chunk a batch, and one chunk each for
validation and test, an epoch is 5 chunks."""


def write_tiny_task(folder: Path, *, num_train: int = 96) -> str:
    """Write RGB images of noise in four classes; return the folder as --task takes it."""
    for split, num_images in (("train", num_train), ("validation", 20), ("test", 30)):
        labels: list[int | None] = [row % 4 for row in range(num_images)]
        write_parquet(folder / f"{split}.parquet", labels, channels=3)
    return str(folder)


def tiny_config(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    """Return two epochs of a narrow tinycnn on the task."""
    options = {"width": 4, "epochs": 2, "batch_size": 40, "lr": 0.01, "seed": 3, **changes}
    return TrainConfig(task=task, run_dir=str(run_dir), **options)
