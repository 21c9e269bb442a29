"""Images as arrays: every image of every source becomes uint8 of shape (K, S, S).

Shapes: N images, K channels (1 grey, 3 colour), S pixels a side.
"""

import enum
import functools
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from rayff.config.errors import UserError
from rayff.config.train_config import Resize

Pixels = npt.NDArray[np.uint8]
Split = Literal["train", "valid", "test"]

_FINGERPRINTED = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """The images of one split with their labels."""

    images: Pixels
    """Shape (N, K, S, S), values 0 to 255; none after `release`."""
    labels: npt.NDArray[np.int64]
    """Shape (N,), the class of each image, counted from 0."""

    def __post_init__(self) -> None:
        shape = self.images.shape
        if len(shape) != 4 or shape[0] != len(self.labels) or shape[2] != shape[3]:
            raise ValueError(
                f"images of shape {shape} and {len(self.labels)} labels: expected square images "
                "(N, K, S, S) and as many labels"
            )
        if self.images.dtype != np.uint8 or self.labels.dtype != np.int64:
            raise ValueError(
                f"images are {self.images.dtype}, expected uint8; "
                f"labels are {self.labels.dtype}, expected int64"
            )

    @classmethod
    def empty(cls, channels: int, size: int) -> "ImageSet":
        """Return a set without images."""
        images = np.empty((0, channels, size, size), np.uint8)
        return cls(images=images, labels=np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image, (K, S, S)."""
        return self.images.shape[1:]

    def some(self) -> Pixels:
        """Return a few images from everywhere, for a fingerprint."""
        some = np.linspace(0, max(0, len(self) - 1), min(len(self), _FINGERPRINTED))
        chosen: Pixels = self.images[some.astype(int)]
        return chosen

    def release(self) -> None:
        """Let the memory of the images go; shape, number and labels stay."""
        object.__setattr__(self, "images", np.empty((0, *self.image_shape), np.uint8))

    def take(self, indices: npt.NDArray[np.int64]) -> "ImageSet":
        """Return a copy of the images at `indices`, in that order."""
        return ImageSet(images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True)
class ImageFormat:
    """What every image of a data set becomes."""

    channels: int
    """1 for grey, 3 for colour."""
    size: int
    """Pixels a side."""
    resize: Resize = "crop"
    """What happens to an image that is not square."""
    grey_only: bool = False
    """Refuse images of colour, since a sample of the data set had none."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (K, S, S)."""
        return self.channels, self.size, self.size


class Change(enum.Enum):
    """What was done to an image to fit the format, in the words of a note."""

    SHRUNK = "were shrunk by more than half"
    ENLARGED = "were enlarged"
    CROPPED = "were cropped to a square"
    STRETCHED = "were stretched to a square"
    PADDED = "were padded with black to a square"
    TURNED = "were turned as their EXIF orientation says"
    FLATTENED = "have transparent pixels, which were laid on white"
    HALVED = "have 16 bits a channel, of which the upper 8 were kept"
    GREYED = "are of colour and became grey"
    FIRST_FRAME = "have several frames, of which the first was taken"


@dataclass
class Survey:
    """What the images of a data set were like before they became arrays."""

    images: int = 0
    changes: dict[Change, int] = field(default_factory=dict)
    least: tuple[int, int] = (0, 0)
    """Smallest width and smallest height."""
    most: tuple[int, int] = (0, 0)
    """Largest width and largest height."""

    def add(self, other: "Survey") -> None:
        """Take another part of the data set into account."""
        for change, number in other.changes.items():
            self.changes[change] = self.changes.get(change, 0) + number
        if other.images:
            least, most = (self.least, self.most) if self.images else (other.least, other.most)
            self.least = min(least[0], other.least[0]), min(least[1], other.least[1])
            self.most = max(most[0], other.most[0]), max(most[1], other.most[1])
        self.images += other.images

    def record(self, image: "Decoded") -> None:
        """Take an image into account."""
        size = image.original_size
        self.add(Survey(1, dict.fromkeys(image.changes, 1), size, size))

    @property
    def sizes(self) -> str:
        """The sizes of the images in words, such as 64x64, or 100x75 to 500x500."""
        least, most = ("x".join(map(str, size)) for size in (self.least, self.most))
        return least if least == most else f"{least} to {most}"

    def notes(self) -> list[str]:
        """Return a sentence for each kind of change."""
        return [
            f"{number:,} of {self.images:,} images {change.value}"
            for change, number in sorted(self.changes.items(), key=lambda item: item[0].name)
        ]


class UnsuitableImageError(ValueError):
    """An image that can be decoded, but not be used."""


class ColourImageError(UnsuitableImageError):
    """An image of colour where only grey ones are expected."""


class Decoded(NamedTuple):
    """An image as an array, and what it was before."""

    pixels: Pixels
    """(K, S, S)."""
    original_size: tuple[int, int]
    """Width and height, as a viewer shows it."""
    changes: tuple[Change, ...]


FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded, all of them pixels: to draw EPS, Pillow would run a program."""

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".pbm", ".pgm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
"""How the names of image files end."""

MAX_PIXELS = 2**26
"""Pixels of an image at most, 8192 x 8192: a few bytes can claim to be far more."""

BACKGROUND = "white"
"""What transparent pixels are laid on, whatever colour is hidden under them."""

_SCALED_16_BITS = {"PNG", "PPM"}
"""Formats whose grey images of 16 bits Pillow opens as whole numbers of 32."""


def holds_grey(data: bytes) -> bool:
    """Return whether an image file holds grey values alone, by the mode it is stored in.

    Raises:
        ValueError: the bytes are no image that Pillow knows.
    """
    with _opened(data) as image:
        return is_grey(image)


def is_grey(image: Image.Image) -> bool:
    """Return whether an image is stored as grey values; a palette counts as colour."""
    return image.mode in {"1", "L", "LA", "La", "I", "F"} or image.mode.startswith("I;")


def decode_image(data: bytes, form: ImageFormat) -> Decoded:
    """Decode an image file's bytes to an array of `form`.

    Raises:
        UnsuitableImageError: its values have no known range, or colours are not wanted.
        ValueError: the bytes are no image that Pillow can decode.
    """
    with _opened(data) as image:
        return convert(image, form)


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
    except UnsuitableImageError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError("no known image format") from error
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"damaged or unsafe image: {reason}") from error


def read_image(path: Path, form: ImageFormat) -> Pixels:
    """Read an image file to an array of `form`.

    Raises:
        UserError: there is no such file, or it is no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror}") from error
    try:
        return decode_image(data, form).pixels
    except ValueError as error:
        raise UserError(
            f"{path} is not an image that can be decoded ({error}): give a PNG, JPEG or other "
            "image file"
        ) from error


def convert(image: Image.Image, form: ImageFormat) -> Decoded:
    """Convert a Pillow image to an array of `form`.

    It is turned as its EXIF data says, laid on white where it is transparent, and brought to a
    square of `form.size` pixels by a bilinear filter, with antialiasing where it shrinks.

    Raises:
        UnsuitableImageError: its values have no known range, or colours are not wanted.
    """
    changes: list[Change] = []
    if form.channels == 1 and not is_grey(image):
        if form.grey_only:
            raise ColourImageError(
                "it is of colour, and those that were sampled are grey: choose with "
                "--image-channels 1 or 3"
            )
        changes.append(Change.GREYED)
    if getattr(image, "is_animated", False):
        changes.append(Change.FIRST_FRAME)
    width, height = image.size
    # a JPEG file decodes to a fraction of its size, which is to be twice the final one at least
    image.draft(None, (2 * form.size, 2 * form.size))
    if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
        image = ImageOps.exif_transpose(image)
        changes.append(Change.TURNED)
        if (image.width > image.height) != (width > height):
            width, height = height, width
    image = _eight_bits(image, changes)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            changes.append(Change.FLATTENED)
            image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    image = image.convert({1: "L", 3: "RGB"}[form.channels])
    pixels: Pixels = np.asarray(_square(image, form, (width, height), changes))
    array = np.transpose(pixels.reshape(form.size, form.size, form.channels), (2, 0, 1))
    return Decoded(array, (width, height), tuple(changes))


_ORIENTATION = 0x0112


def _eight_bits(image: Image.Image, changes: list[Change]) -> Image.Image:
    """Return an image whose values reach from 0 to 255."""
    sixteen = image.mode.startswith("I;16") or (
        image.mode == "I" and image.format in _SCALED_16_BITS
    )
    if sixteen:
        # Pillow would clip at 255 and return white
        changes.append(Change.HALVED)
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode in {"F", "I"}:
        kind = {"F": "float", "I": "whole numbers of 32 bits"}[image.mode]
        raise UnsuitableImageError(
            f"its pixels are {kind}, whose black and white are not known: save them with 8 bits"
        )
    return image


def _square(
    image: Image.Image, form: ImageFormat, original: tuple[int, int], changes: list[Change]
) -> Image.Image:
    """Return the image at the size of `form`, and note how it got there."""
    target = (form.size, form.size)
    shorter, longer = sorted(original)
    if shorter > 2 * form.size:
        changes.append(Change.SHRUNK)
    elif (longer if form.resize == "pad" else shorter) < form.size:
        changes.append(Change.ENLARGED)
    filter_ = Image.Resampling.BILINEAR
    if shorter != longer:
        if form.resize == "crop":
            changes.append(Change.CROPPED)
            return ImageOps.fit(image, target, filter_)
        if form.resize == "pad":
            changes.append(Change.PADDED)
            return ImageOps.pad(image, target, filter_)
        changes.append(Change.STRETCHED)
    return image if image.size == target else image.resize(target, filter_)
