"""The command `rayff export`: writes a trained network to a file that runs without rayff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.filesize import decimal

from rayff.cli import parse, run_command
from rayff.config.text import layer_range, printable

DESCRIPTION = """\
Write the trained network of a run to a file that classifies without rayff.

Examples:
  rayff export runs/first
  rayff export runs/first --format pt2 --output digits.pt2
  rayff export runs/first --format torchscript --readout fusion --overwrite

The file takes uint8 images in batches of any size and gives calibrated probabilities. It
holds the normalisation and the readout, and class names and preprocessing as rayff.json.
It is compared with the model on images of the run's task before it is written.
"""


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """The options."""

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]
    """The run directory, which holds config.json and model.safetensors."""
    format: Literal["onnx", "pt2", "torchscript"] = "onnx"
    """Kind of file: ONNX, for ONNX Runtime and other engines, or one of PyTorch's:
    torch.export's pt2, or TorchScript."""
    readout: Literal["window", "last", "fusion"] = "window"
    """How the layers' logits become one classifier: the window of layers that was chosen on the
    validation images (SIP), the last layer alone, or the fusion of all layers."""
    output: str | None = None
    """File to write. Default: model.onnx, model.pt2 or model.pt in the run directory."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace a file that is there already."""
    data_dir: str | None = None
    """Folder of the data set, for the comparison. Default: the one that the run was trained
    on, or else random images."""


def main(args: Sequence[str]) -> int:
    """Export, and print what was written."""
    command = parse(ExportCommand, module="rayff.export", description=DESCRIPTION, args=args)
    from rayff.engine.export import BATCH_SIZES, TOLERANCE, export
    from rayff.kernels.precision import configure_torch

    configure_torch()
    found = export(
        Path(command.run),
        command.format,
        readout=command.readout,
        output=None if command.output is None else Path(command.output),
        overwrite=command.overwrite,
        data_dir=None if command.data_dir is None else Path(command.data_dir),
    )
    about = found.description
    readout = about["readout"]
    if readout == "window":
        readout += f" ({layer_range(*about['window'])})"
    shapes = ["({})".format(", ".join(map(str, about[x]["shape"]))) for x in ("input", "output")]
    *sizes, largest = BATCH_SIZES
    print(
        f"{printable(str(found.path))}: {decimal(found.size)}\n"
        f"images uint8 {shapes[0]} -> probabilities {shapes[1]} of the readout {readout}\n"
        f"checked on {found.images} in batches of {', '.join(map(str, sizes))} and {largest}: "
        f"probabilities differ by up to {found.difference:.1g} ({TOLERANCE:g} is allowed)"
    )
    for note in found.notes:
        print(f"note: {note}")
    return 0


if __name__ == "__main__":
    run_command(main)
