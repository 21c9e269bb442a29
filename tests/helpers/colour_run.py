"""A run whose network was made by hand, so that its results can be worked out on paper.

The images are red, green or blue in their left half and black in the right, which is the whole
class. Layer-normalised, the coloured half is sqrt(5) in its own channel, and all else is
negative. So with single taps in the middle of the kernels

- layer 0 gives the colour's class a goodness of sqrt(5)/2 and the others 0; its features are +1
  (left) and -1 (right) in the colour's group, and 0 elsewhere; so are those of all layers below;
- layer 1 gives the *next* class (red -> green -> blue -> red) 4/2 = 2;
- layer 2 turns that around and gives the colour's own class 0.5/2 = 0.25;
- layer 3 gives class red 0.2 for whatever it sees: taps of 0.1 on the four channels of a group.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from rayff.config.train_config import TrainConfig
from rayff.learning.fusion import Fusion
from rayff.learning.readout import Temperatures
from rayff.models.zoo import architecture
from rayff.runs.model_file import ModelDescription, write_model
from rayff.runs.run_directory import RunDirectory
from tests.data.files import encoded, write_parquet

CLASSES = ("red", "green", "blue")
TEST_COLOURS = (0, 0, 0, 1, 1, 2, 0)
TEST_LABELS = (0, 0, 0, 1, 1, 2, 1)
"""The last image is red and calls itself green."""


def pixels(colour: int) -> np.ndarray:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16, colour] = 255
    return image


def write_image(path: Path, colour: int) -> Path:
    Image.fromarray(pixels(colour)).save(path)
    return path


def write_task(folder: Path, class_names: tuple[str, ...] = CLASSES) -> Path:
    """Write the Parquet of the task; the validation images are one of each colour."""
    for split, colours, labels in (
        ("train", (0, 1, 2), (0, 1, 2)),
        ("validation", (0, 1, 2), (0, 1, 2)),
        ("test", TEST_COLOURS, TEST_LABELS),
    ):
        images: list[bytes | None] = [encoded(pixels(colour)) for colour in colours]
        write_parquet(
            folder / f"{split}.parquet", list(labels), images, class_names=list(class_names)
        )
    return folder


def hand_set_weights() -> list[torch.Tensor]:
    shapes = [(3, 3, 5, 5), (6, 3, 5, 5), (12, 6, 3, 3), (12, 12, 3, 3)]
    weights = [torch.zeros(shape) for shape in shapes]
    for colour in range(3):
        shown = (colour + 1) % 3
        weights[0][colour, colour, 2, 2] = 1.0
        weights[1][2 * shown : 2 * shown + 2, colour, 2, 2] = 4.0
        weights[2][4 * colour : 4 * colour + 4, 2 * shown, 1, 1] = 0.5
    weights[3][0:4, :, 1, 1] = 0.1
    return weights


def fusion_of_layer(layer: int, factor: float = 1.0) -> Fusion:
    """Return a fusion that takes one layer's logits times a factor."""
    weight = np.zeros((3, 12), np.float32)
    weight[:, 3 * layer : 3 * layer + 3] = factor * np.eye(3)
    return Fusion(weight=weight, bias=np.zeros(3, np.float32))


def write_run(
    path: Path,
    task: Path,
    window: tuple[int, int] = (0, 0),
    temperatures: Temperatures | None = None,
    fusion: Fusion | None = None,
    class_names: tuple[str, ...] = CLASSES,
) -> Path:
    """Leave in `path` what a training would."""
    directory = RunDirectory(path)
    directory.create(TrainConfig(arch="tinycnn", width=3, task=str(task)))
    states = {
        index: np.frombuffer(save({"weight": weight}), dtype=np.uint8)
        for index, weight in enumerate(hand_set_weights())
    }
    description = ModelDescription(
        architecture=architecture("tinycnn", num_classes=3, image_channels=3, width=3),
        sip_window=window,
        class_names=class_names,
        precision="fp32",
        temperatures=temperatures,
    )
    write_model(path, description, states, fusion)
    return path
