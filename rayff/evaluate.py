"""The command `rayff evaluate`: the accuracy of a trained network on its data set."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.errors import UserError
from rayff.config.text import layer_range
from rayff.runs.files import write_atomically

if TYPE_CHECKING:
    from rayff.engine.evaluation import Evaluation

DESCRIPTION = """\
Evaluate the trained network of a run on the data set it was trained on.

Examples:
  rayff evaluate runs/first
  rayff evaluate runs/first --readout last --split valid --save tables

Prints accuracy and calibration of every readout, the accuracy of each layer, and
the confusions.
"""

MAX_MATRIX_CLASSES = 20
NUM_PAIRS = 20


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """The options."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run directory, which holds config.json and model.safetensors."""
    data_dir: str | None = None
    """Folder of the data set. Default: the one that the run was trained on."""
    readout: Literal["window", "last", "fusion"] = "window"
    """Readout of the headline and the confusions: the window of layers that was chosen on the
    validation images (SIP), the last layer alone, or the fusion of all layers."""
    split: Literal["test", "valid", "train"] = "test"
    """Images to classify."""
    limit: int | None = None
    """Images to classify at most, each class in proportion. Default: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto is a GPU where there is one."""
    batch_size: int = 256
    """Images per batch; it changes memory and speed only."""
    save: str | None = None
    """Folder to write accuracy.csv, layer_accuracy.csv and confusion.csv to."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit must be a number of 1 or more, not {self.limit}")


def main(args: Sequence[str]) -> int:
    """Evaluate, print, and save where asked."""
    command = parse(EvaluateCommand, module="rayff.evaluate", description=DESCRIPTION, args=args)
    from rayff.engine.evaluation import evaluate

    evaluation = evaluate(
        Path(command.run),
        data_dir=None if command.data_dir is None else Path(command.data_dir),
        split=command.split,
        readout=command.readout,
        device=command.device,
        batch_size=command.batch_size,
        limit=command.limit,
    )
    if command.save is not None:  # first, so that a pager that is left early loses nothing
        save(evaluation, command.split, Path(command.save))
    show(evaluation, command.split, Console(highlight=False, emoji=False))
    if command.save is not None:
        print(f"saved to {command.save}")
    return 0


def show(evaluation: Evaluation, split: str, console: Console) -> None:
    """Print accuracies, and the confusion matrix, or its largest entries where it does not fit."""
    first, last = evaluation.window
    by_layer = evaluation.layer_accuracy
    headline = f"accuracy {evaluation.accuracy:.2f}% on {evaluation.num_images:,} {split} images"
    if by_layer[1:]:
        headline += f" with the readout {evaluation.readout}"
    console.print(headline, style="bold", soft_wrap=True)
    console.print("\nreadouts in percent: accuracy, mean probability, calibration error")
    console.print(readout_table(evaluation), crop=False, soft_wrap=not console.is_terminal)
    if not evaluation.calibrated:
        console.print(
            "the model has no temperatures: its probabilities are those of the plain logits",
            style="yellow",
            soft_wrap=True,
        )
    if by_layer[1:]:
        console.print("\naccuracy by layer (* in the window)")
    for layer, accuracy in enumerate(by_layer if by_layer[1:] else ()):
        mark = "*" if first <= layer <= last else ""
        console.print(f"{layer:5d}  {accuracy:6.2f}%  {mark}".rstrip())
    matrix = confusion_table(evaluation)
    fits = not console.is_terminal or console.measure(matrix).maximum <= console.width
    if len(evaluation.class_names) <= MAX_MATRIX_CLASSES and fits:
        console.print("\nimages by true class (row) and predicted class (column)")
        console.print(matrix, crop=False, soft_wrap=not console.is_terminal)
        return
    from rayff.engine.evaluation import most_confused

    pairs = most_confused(evaluation.confusion, NUM_PAIRS)
    console.print(f"\nmost confused: images, true class, predicted class (top {len(pairs)})")
    for true, predicted, images in pairs:
        names = evaluation.class_names[true], evaluation.class_names[predicted]
        console.print(Text(f"{images:6d}  {names[0]}  as  {names[1]}"), soft_wrap=True)


def readout_table(evaluation: Evaluation) -> Table:
    """Return a row for each readout; with one classifier they are all the same."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("readout", no_wrap=True)
    table.add_column("of", no_wrap=True)
    for title in ("accuracy", "probability", "error", "temperature"):
        table.add_column(title, justify="right", no_wrap=True)
    several = len(evaluation.layer_accuracy) > 1
    for name, score in evaluation.readouts.items():
        first, last = readout_layers(evaluation, name)
        table.add_row(
            name,
            layer_range(first, last) if several else "all layers",
            f"{score.accuracy:.2f}",
            f"{100 * score.reliability.mean_probability:.2f}",
            f"{100 * score.reliability.calibration_error:.2f}",
            f"{score.temperature:.3g}",
        )
    return table


def readout_layers(evaluation: Evaluation, readout: str) -> tuple[int, int]:
    """Return the first and the last layer whose logits a readout uses."""
    end = len(evaluation.layer_accuracy) - 1
    return {"window": evaluation.window, "last": (end, end), "fusion": (0, end)}[readout]


def confusion_table(evaluation: Evaluation) -> Table:
    """Return the confusion matrix; a column goes by the number of its class."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("class", no_wrap=True)
    for predicted in range(len(evaluation.class_names)):
        table.add_column(str(predicted), justify="right", no_wrap=True)
    for true, (name, row) in enumerate(
        zip(evaluation.class_names, evaluation.confusion, strict=True)
    ):
        cells = [
            Text(str(count), "bold green" if column == true else "") if count else Text(".", "dim")
            for column, count in enumerate(row)
        ]
        label = name if name == str(true) else f"{true} {name}"
        table.add_row(Text(label), *cells)
    return table


def save(evaluation: Evaluation, split: str, folder: Path) -> None:
    """Write the three CSV files, each of them whole or not at all."""
    columns = "split images readout first_layer last_layer accuracy mean_probability "
    columns += "calibration_error temperature"
    tables: dict[str, list[Iterable[object]]] = {
        "accuracy.csv": [
            columns.split(),
            *(
                (
                    *(split, evaluation.num_images, name, *readout_layers(evaluation, name)),
                    score.accuracy,
                    100 * score.reliability.mean_probability,
                    100 * score.reliability.calibration_error,
                    score.temperature,
                )
                for name, score in evaluation.readouts.items()
            ),
        ],
        "layer_accuracy.csv": [("layer", "accuracy"), *enumerate(evaluation.layer_accuracy)],
        "confusion.csv": [
            ("true_class", *evaluation.class_names),
            *(
                (name, *row.tolist())
                for name, row in zip(evaluation.class_names, evaluation.confusion, strict=True)
            ),
        ],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in tables.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(rows)
            write_atomically(folder / name, text.getvalue().encode())
    except OSError as error:
        raise UserError(
            f"--save {folder} cannot be written: {error.strerror}; name another folder"
        ) from error


if __name__ == "__main__":
    run_command(main)
