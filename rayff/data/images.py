"""Images as arrays: every image of every source becomes uint8 of shape (K, 32, 32).

Shapes: N images, K channels (1 grey, 3 colour).
"""

import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from rayff.config.errors import UserError
from rayff.models.architecture import IMAGE_SIZE

Split = Literal["train", "valid", "test"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images of one split with their labels."""

    images: npt.NDArray[np.uint8]
    """Shape (N, K, 32, 32), values 0 to 255."""
    labels: npt.NDArray[np.int64]
    """Shape (N,), the class of each image, counted from 0."""

    def __post_init__(self) -> None:
        expected = (len(self.labels), *self.images.shape[1:2], IMAGE_SIZE, IMAGE_SIZE)
        if self.images.shape != expected:
            raise ValueError(f"images of shape {self.images.shape}, expected {expected}")
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int64:
            raise ValueError(
                f"images are {self.images.dtype}, expected uint8; "
                f"labels are {self.labels.dtype}, expected int64"
            )

    @classmethod
    def empty(cls, channels: int) -> "ImageSet":
        """Return a set without images."""
        images = np.empty((0, channels, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        return cls(images=images, labels=np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "ImageSet":
        """Return a copy of the images at `indices`, in that order."""
        return ImageSet(images=self.images[indices], labels=self.labels[indices])

    def first(self, num_images: int | None) -> "ImageSet":
        """Return the first images, or all of them for None; they share this set's memory."""
        return ImageSet(images=self.images[:num_images], labels=self.labels[:num_images])


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, all of them pixels: to draw EPS, Pillow would run a program."""

MAX_PIXELS = 2**26
"""Pixels of an image at most, 8192 x 8192: a few bytes can claim to be far more."""


def decode_image(data: bytes, channels: int) -> npt.NDArray[np.uint8]:
    """Decode an image file's bytes to shape (`channels`, 32, 32), resized where needed.

    Raises:
        ValueError: the bytes are no image that Pillow can decode.
    """
    with _opened(data) as image:
        return to_array(image, channels)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of the formats that this Pillow has."""
    # images so large are refused with a sentence of their own
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open an image of a known format and size; all that Pillow finds wrong is a ValueError."""
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}"
                )
            yield image
    except UnidentifiedImageError as error:
        raise ValueError("no known image format") from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"damaged or unsafe image: {reason}") from error


def read_image(path: Path, channels: int) -> npt.NDArray[np.uint8]:
    """Read an image file to shape (`channels`, 32, 32), resized where needed.

    Raises:
        UserError: there is no such file, or it is no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    try:
        return decode_image(data, channels)
    except ValueError as error:
        raise UserError(
            f"{path} is not an image that can be decoded ({error}): give a PNG, JPEG or other "
            "image file"
        ) from error


def to_array(image: Image.Image, channels: int) -> npt.NDArray[np.uint8]:
    """Convert a Pillow image to uint8 of shape (`channels`, 32, 32), resized bilinearly."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # 16-bit grey: keep the high byte, where Pillow would clip at 255 and return white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert({1: "L", 3: "RGB"}[channels])
    if image.size != (IMAGE_SIZE, IMAGE_SIZE):
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return np.transpose(pixels.reshape(IMAGE_SIZE, IMAGE_SIZE, channels), (2, 0, 1))


def is_grey(data: bytes) -> bool:
    """Return whether an image file holds grey values alone, by the mode it is stored in.

    Raises:
        ValueError: the bytes are no image that Pillow knows.
    """
    with _opened(data) as image:
        return image.mode in {"1", "L", "LA", "I", "F"} or image.mode.startswith("I;")
