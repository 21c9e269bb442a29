"""Small image files and Parquet files that the tests write for themselves."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pyarrow import fs

from rayff.data.loading import DataOptions, load_task
from rayff.data.sources import Location
from rayff.data.tasks import TaskData

Pixels = npt.NDArray[np.uint8]

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def load(task: str | Path, **options: Any) -> TaskData:
    """Load a task with some of the options of its data."""
    if options.get("data_dir"):
        options["data_dir"] = str(options["data_dir"])
    return load_task(DataOptions(task=str(task), **options))


def location(path: Path) -> Location:
    return Location(files=fs.LocalFileSystem(), path=str(path), shown=str(path))


def random_pixels(seed: int, *, size: int = 32, channels: int = 1) -> Pixels:
    """Pixels as Pillow has them: (H, W) for grey, (H, W, 3) for colour."""
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


def png(seed: int, *, size: int = 32, channels: int = 1) -> bytes:
    return encoded(random_pixels(seed, size=size, channels=channels))


def image_structs(images: list[bytes | None]) -> pa.Array:
    return pa.array([{"bytes": image, "path": None} for image in images], STRUCT)


def write_parquet(
    path: Path,
    labels: list[int | None],
    images: list[bytes | None] | None = None,
    *,
    channels: int = 1,
    class_names: list[str] | None = None,
) -> Path:
    """Write a split in the Hugging Face layout; the image of row i has i as its seed."""
    if images is None:
        images = [png(row, channels=channels) for row in range(len(labels))]
    table = pa.table({"image": image_structs(images), "label": pa.array(labels, pa.int64())})
    if class_names is not None:
        names = ", ".join(f'"{name}"' for name in class_names)
        label = f'{{"names": [{names}], "_type": "ClassLabel"}}'
        features = f'{{"info": {{"features": {{"label": {label}, "image": {{}}}}}}}}'
        table = table.replace_schema_metadata({"huggingface": features})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def write_columns(path: Path, **columns: object) -> Path:
    """Write columns as they are, for the files that are not as they should be."""
    pq.write_table(pa.table(columns), path)
    return path


def write_idx(path: Path, array: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.tobytes())


def write_mnist(folder: Path, train_labels: list[int], test_labels: list[int]) -> None:
    """MNIST's four files; the image of row i of a split is the constant i."""
    for prefix, labels in (("train", train_labels), ("t10k", test_labels)):
        values = np.arange(len(labels), dtype=np.uint8)[:, None, None]
        write_idx(
            folder / f"{prefix}-images-idx3-ubyte", np.broadcast_to(values, (len(labels), 28, 28))
        )
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.array(labels, np.uint8))
