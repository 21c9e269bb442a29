"""A task so small that training on it takes a second."""

from pathlib import Path

from tests.data.files import write_parquet


def write_tiny_task(folder: Path, *, num_train: int = 96) -> str:
    """Write RGB images of noise in four classes; return the folder as --task takes it."""
    for split, num_images in (("train", num_train), ("validation", 20), ("test", 30)):
        labels: list[int | None] = [row % 4 for row in range(num_images)]
        write_parquet(folder / f"{split}.parquet", labels, channels=3)
    return str(folder)
