"""The command `rayff predict`: classifies image files with a trained network."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rayff.cli import parse, run_command
from rayff.config.errors import UserError
from rayff.config.text import printable

DESCRIPTION = """\
Classify image files with the trained network of a run.

Examples:
  rayff predict runs/first photo.png
  rayff predict runs/first scans/*.jpg --early-exit 0.9 --json
  rayff predict runs/first photo.png --readout fusion

Prints each image's class, its probability and the number of layers computed.
"""


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """The options."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run directory, which holds config.json and model.safetensors."""
    images: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]
    ] = ()
    """Image files to classify, one or more."""
    readout: Literal["window", "last", "fusion"] = "window"
    """How the layers' logits become one classifier: the window of layers that was chosen on the
    validation images (SIP), the last layer alone, or the fusion of all layers."""
    early_exit: float | None = None
    """Stop at the first layer of the window that gives a class this probability, above 0 and up
    to 1. Default: compute every layer of the readout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto is a GPU where there is one."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a JSON list with one object per image."""

    def __post_init__(self) -> None:
        if not self.images:
            raise UserError("no images are given: name one image file or more after RUN")
        if self.early_exit is not None and not 0 < self.early_exit <= 1:
            raise UserError(
                f"--early-exit {self.early_exit:g} is no probability: choose one above 0 and up "
                "to 1, such as 0.9"
            )
        if self.early_exit is not None and self.readout != "window":
            raise UserError(
                f"--early-exit goes with --readout window alone, not with {self.readout}: leave "
                "one of them out"
            )


def main(args: Sequence[str]) -> int:
    """Predict and print."""
    command = parse(PredictCommand, module="rayff.predict", description=DESCRIPTION, args=args)
    from rayff.engine.prediction import pick_device, predict
    from rayff.runs.model_file import read_model

    device = pick_device(command.device)
    model = read_model(Path(command.run)).to(device)
    model.readout = command.readout
    predictions = list(predict(model, command.images, command.early_exit))
    if not model.calibrated:
        note = "note: the model has no temperatures, so its probabilities are uncalibrated"
        print(note, file=sys.stderr)
    if command.json:
        pairs = zip(command.images, predictions, strict=True)
        print(json.dumps([{"file": f, **dataclasses.asdict(p)} for f, p in pairs], indent=1))
        return 0
    names = [printable(file) for file in command.images]
    file_width = max(map(len, names))
    class_width = max(len(prediction.class_name) for prediction in predictions)
    for name, p in zip(names, predictions, strict=True):
        print(
            f"{name:<{file_width}}  {p.class_name:<{class_width}}  {p.probability:.4f}  "
            f"{p.layers_used} of {p.layers} layers"
        )
    return 0


if __name__ == "__main__":
    run_command(main)
