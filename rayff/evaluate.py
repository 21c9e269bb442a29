"""The command `rayff evaluate`: the accuracy of a trained network on its data set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.text import layer_range
from rayff.console.activity_view import ActivityView
from rayff.console.outlet import ResultConsole
from rayff.runs.files import write_atomically
from rayff.runs.run_directory import RunDirectory

if TYPE_CHECKING:
    from rayff.engine.evaluation import Evaluation

DESCRIPTION = """\
Evaluate the trained network of a run on the data set it was trained on.

Examples:
  rayff evaluate runs/first
  rayff evaluate runs/first --readout last --split valid --save tables
  rayff evaluate runs/first --json

Prints accuracy and calibration of every readout, the accuracy of each layer, and
the confusions.
"""

SCORE = (
    *("first_layer", "last_layer", "accuracy", "mean_probability", "calibration_error"),
    "temperature",
)
"""What is known of a readout, in accuracy.csv and with --json."""
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
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object: accuracy and calibration of every readout, accuracy of each layer and
    each class, in percent."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit must be a number of 1 or more, not {self.limit}")


def main(args: Sequence[str]) -> int:
    """Evaluate, print, and save where asked."""
    command = parse(EvaluateCommand, module="rayff.evaluate", description=DESCRIPTION, args=args)
    with ActivityView(Console(stderr=True, emoji=False)):
        evaluation = evaluate(command)
    if command.save is not None:  # first, so that a pager that is left early loses nothing
        save(evaluation, command.split, Path(command.save))
    if command.json:
        print(json.dumps(facts(evaluation, command.run, command.split), indent=1))
        return 0
    show(evaluation, command.split, ResultConsole(highlight=False, emoji=False))
    if command.save is not None:
        print(f"saved to {command.save}")
    return 0


def evaluate(command: EvaluateCommand) -> Evaluation:
    """Evaluate the network as the options say."""
    RunDirectory(Path(command.run)).read_config()  # a mistake is said before torch is loaded
    with activity("loading torch"):
        from rayff.engine import evaluation

    return evaluation.evaluate(
        Path(command.run),
        data_dir=None if command.data_dir is None else Path(command.data_dir),
        split=command.split,
        readout=command.readout,
        device=command.device,
        batch_size=command.batch_size,
        limit=command.limit,
    )


def facts(evaluation: Evaluation, run: str, split: str) -> dict[str, Any]:
    """Return the evaluation as plain data; accuracies, probabilities and errors in percent."""
    correct, images = evaluation.confusion.diagonal(), evaluation.confusion.sum(axis=1)
    return {
        "run": run,
        "split": split,
        "images": evaluation.num_images,
        "readout": evaluation.readout,
        "accuracy": evaluation.accuracy,
        "readouts": {
            name: dict(zip(SCORE, values, strict=True)) for name, *values in scores(evaluation)
        },
        "calibrated": evaluation.calibrated,
        "layer_accuracy": evaluation.layer_accuracy,
        "classes": [
            {
                "class": name,
                "images": int(images[number]),
                "predicted": int(evaluation.confusion[:, number].sum()),
                "correct": int(correct[number]),
                "accuracy": 100 * int(correct[number]) / int(images[number])
                if images[number]
                else None,
            }
            for number, name in enumerate(evaluation.class_names)
        ],
    }


def scores(evaluation: Evaluation) -> Iterator[tuple[Any, ...]]:
    """Yield the name of each readout, and its values in the order of SCORE."""
    for name, score in evaluation.readouts.items():
        yield (
            *(name, *readout_layers(evaluation, name), score.accuracy),
            100 * score.reliability.mean_probability,
            100 * score.reliability.calibration_error,
            score.temperature,
        )


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
    tables: dict[str, list[Iterable[object]]] = {
        "accuracy.csv": [
            ("split", "images", "readout", *SCORE),
            *((split, evaluation.num_images, *values) for values in scores(evaluation)),
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
