"""The digits that come with scikit-learn: 1,797 images of 8x8 pixels, no download needed."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from rayff.data.images import ImageFormat, ImageSet, convert

TEST_SIZE = 200
VALID_SIZE = 200
ORIGINAL_SIZES = "8x8"

_MAX_VALUE = 16
_SPLIT_SEED = 0


def read_digits(form: ImageFormat) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Return the (train, valid, test) splits: 1,397, 200 and 200 images, each class in proportion.

    The splits are the same in every run.
    """
    from sklearn.datasets import load_digits  # a second to import, and most tasks do without

    values, labels = load_digits(return_X_y=True)
    grey = np.rint(values.reshape(-1, 8, 8) * (255 / _MAX_VALUE)).astype(np.uint8)
    images = np.stack([convert(Image.fromarray(pixels), form).pixels for pixels in grey])
    whole = ImageSet(images=images, labels=labels.astype(np.int64))
    rest, test = _split(np.arange(len(whole)), whole.labels, TEST_SIZE)
    train, valid = _split(rest, whole.labels, VALID_SIZE)
    return whole.take(train), whole.take(valid), whole.take(test)


def _split(
    indices: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    from sklearn.model_selection import train_test_split

    kept, held_out = train_test_split(
        indices, test_size=size, stratify=labels[indices], random_state=_SPLIT_SEED
    )
    return kept, held_out
