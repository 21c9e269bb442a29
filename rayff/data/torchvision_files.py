"""Data sets in the files that torchvision downloads."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rayff.config.errors import UserError
from rayff.data.images import ImageFormat, ImageSet, Pixels, Survey, convert


def torchvision_folder(class_name: str, root: Path) -> Path:
    """Return the folder under `root` in which `torchvision.datasets.<class_name>` keeps files."""
    return root / getattr(_dataset_class(class_name), "base_folder", f"{class_name}/raw")


def read_torchvision(
    class_name: str,
    root: Path,
    *,
    form: ImageFormat,
    num_classes: int,
    download: bool,
    survey: Survey,
) -> tuple[ImageSet, ImageSet]:
    """Return the (train, test) splits of `torchvision.datasets.<class_name>` under `root`.

    What the images were like goes to `survey`. torchvision checks the md5 of whatever it unpickles
    (CIFAR's files) before it does so.

    Raises:
        UserError: the download fails, or files are missing or damaged.
    """
    dataset_class = _dataset_class(class_name)
    splits = []
    for train in (True, False):
        _check_no_pickle(dataset_class, root)
        try:
            dataset = dataset_class(root=root, train=train, download=download)
            images = _to_arrays(np.asarray(dataset.data), form, survey)
            split = ImageSet(images=images, labels=np.asarray(dataset.targets, np.int64))
            if not (0 <= split.labels.min() and split.labels.max() < num_classes):
                raise ValueError(f"a label is not in 0 to {num_classes - 1}")
        except Exception as error:  # whatever the network, an archive or a parser raises
            raise UserError(_failure(class_name, root, download, error)) from error
        splits.append(split)
    return splits[0], splits[1]


def _check_no_pickle(dataset_class: Any, root: Path) -> None:
    """Raise a UserError for the files of old versions, which torchvision would unpickle."""
    folder = root / dataset_class.__name__ / "processed"
    for name in ("training_file", "test_file"):
        path = folder / getattr(dataset_class, name, "none")
        if path.exists():
            raise UserError(
                f"{path} is of an old torchvision, in a format that can hold code and is not "
                f"read: delete {folder}"
            )


def _dataset_class(class_name: str) -> Any:
    from torchvision import datasets  # takes a second, and most sources do without

    return getattr(datasets, class_name)


def _failure(class_name: str, root: Path, download: bool, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    folder = torchvision_folder(class_name, root)
    if download:
        return (
            f"cannot download {class_name} to {root} ({reason}): check the network and the disk, "
            f"delete {folder} if it is there, or pass --data-dir DIR with a copy of the data"
        )
    return (
        f"the files in {folder} are incomplete or damaged ({reason}): "
        "delete that folder and pass --download"
    )


def _to_arrays(pixels: Pixels, form: ImageFormat, survey: Survey) -> Pixels:
    """Convert pixels of shape (N, H, W) or (N, H, W, 3) to images of shape (N, K, S, S)."""
    images = np.empty((len(pixels), *form.shape), np.uint8)
    for image, array in zip(images, pixels, strict=True):
        decoded = convert(Image.fromarray(array), form)
        image[:] = decoded.pixels
        survey.record(decoded)
    return images
