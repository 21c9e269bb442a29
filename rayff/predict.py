"""The command `rayff predict`: classifies image files with a trained network."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.text import printable
from rayff.console.activity_view import ActivityView

if TYPE_CHECKING:
    from rayff.engine.prediction import Prediction

DESCRIPTION = """\
Classify image files with the trained network of a run.

Examples:
  rayff predict runs/first photo.png
  rayff predict runs/first scans/ 'more/**/*.jpg' --early-exit 0.9 --json
  rayff predict runs/first photo.png --readout fusion

Prints each image's class, its probability and the number of layers computed.
Images that cannot be read are named at the end; the exit code is 1 then.
"""


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """The options."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run directory, which holds config.json and model.safetensors."""
    images: tyro.conf.Positional[
        Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]
    ] = ()
    """Image files, folders (with their subfolders) or patterns to classify, one or more; a file
    that is named twice counts once."""
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
    with ActivityView(Console(stderr=True, emoji=False)):
        predictions, problems = predict(command)
    if command.json:
        rows = [{"file": file, **dataclasses.asdict(found)} for file, found in predictions]
        print(json.dumps(rows, indent=1))
    else:
        show(predictions)
    sys.stdout.flush()
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    return 1 if problems else 0


def predict(command: PredictCommand) -> tuple[list[tuple[str, Prediction]], list[str]]:
    """Return each file with its prediction, and a sentence about each that has none."""
    with activity("loading torch"):
        from rayff.data.image_files import image_files
        from rayff.engine import prediction
        from rayff.runs.model_file import read_model

    device = prediction.pick_device(command.device)
    model = read_model(Path(command.run)).to(device)
    model.readout = command.readout
    if not model.calibrated:
        note = "note: the model has no temperatures, so its probabilities are uncalibrated"
        print(note, file=sys.stderr)
    files, problems = image_files(command.images)
    found: list[tuple[str, Prediction]] = []
    with activity("classifying images", len(files)) as classifying:
        for file in files:
            try:
                found += [
                    (file, each) for each in prediction.predict(model, [file], command.early_exit)
                ]
            except UserError as error:
                problems.append(str(error))
            classifying.advance()
    return found, problems


def show(predictions: Sequence[tuple[str, Prediction]]) -> None:
    """Print a line for each image."""
    names = [printable(file) for file, _ in predictions]
    file_width = max(map(len, names), default=0)
    class_width = max((len(found.class_name) for _, found in predictions), default=0)
    for name, (_, p) in zip(names, predictions, strict=True):
        print(
            f"{name:<{file_width}}  {p.class_name:<{class_width}}  {p.probability:.4f}  "
            f"{p.layers_used} of {p.layers} layers"
        )


if __name__ == "__main__":
    run_command(main)
