"""Trained networks as files that run without rayff: ONNX, PyTorch's pt2 and TorchScript."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rayff.config.errors import UserError
from rayff.config.version import VERSION
from rayff.engine.evaluation import image_batches, load_data
from rayff.engine.export_formats import FORMATS, FormatName
from rayff.learning.classifier import Classifier
from rayff.learning.readout import ReadoutName
from rayff.runs.files import write_atomically
from rayff.runs.model_file import read_model

METADATA = "rayff.json"
"""Name of the description inside the file, the same in every format."""
BATCH_SIZES = (1, 2, 7)
"""Batches on which a file is compared with the model."""
TOLERANCE = 1e-3
"""Largest difference of a probability that counts as rounding."""
MAX_ONNX_BYTES = 2**31 - 2**20
"""Weights of an ONNX file, which is one protobuf message of less than 2 GiB."""

_CONSTANT = " (a module with len(x) makes a constant of it: write x.shape[0])"


@dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was written, and how it was checked."""

    path: Path
    size: int
    """In bytes."""
    description: Mapping[str, Any]
    """What the file holds as `rayff.json`."""
    images: str
    """On which it was compared with the model."""
    difference: float
    """Largest difference of a probability from the model's."""
    notes: tuple[str, ...]


def export(
    run_dir: Path,
    format_name: FormatName,
    *,
    readout: ReadoutName = "window",
    output: Path | None = None,
    overwrite: bool = False,
    data_dir: Path | None = None,
) -> Export:
    """Write the network of a run to a file that classifies without rayff.

    Before it is written, it is loaded again and compared with the model on images of the run's
    task, in batches of several sizes.

    Args:
        run_dir: the run directory.
        format_name: onnx, pt2 or torchscript.
        readout: window, last or fusion.
        output: the file; by default one in the run directory.
        overwrite: whether it may be there already.
        data_dir: folder of the data set; by default where the run had it.

    Raises:
        UserError: no usable model, the readout or a package is missing, the file is there already
            or cannot be written, or it would not compute what the model computes.
    """
    path = run_dir / FORMATS[format_name].file_name if output is None else output
    _check_packages(format_name)
    trained = read_model(run_dir)
    model = trained if trained.dtype == torch.float32 else read_model(run_dir, torch.float32)
    trained.readout = model.readout = readout
    _check_output(path, format_name, overwrite=overwrite)
    batches, source, notes = _batches(run_dir, model, data_dir)
    expected = [model.probabilities(batch) for batch in batches]
    if model is not trained:
        change = _difference(expected, [trained.probabilities(batch) for batch in batches])
        notes.append(
            f"the run computed in {str(trained.dtype).removeprefix('torch.')}, the file computes "
            f"in float32: the probabilities of these images differ by up to {change:.1g}"
        )
    if not model.calibrated and readout != "fusion":
        notes.append("the model has no temperatures, so its probabilities are uncalibrated")
    description = describe(model)
    content = _content(format_name, model, batches[-1], description)
    difference = _compare(format_name, model, content, batches, expected)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; name another file with --output"
        ) from error
    return Export(
        path=path,
        size=len(content),
        description=description,
        images=source,
        difference=difference,
        notes=tuple(notes),
    )


def describe(model: Classifier) -> dict[str, Any]:
    """Return what one must know to use a model's file, as JSON can hold it."""
    channels, size, _ = model.architecture.image_shape
    return {
        "rayff_version": VERSION,
        "architecture": model.architecture.name,
        "class_names": list(model.class_names),
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", channels, size, size]},
        "preprocessing": {
            "mode": {1: "L", 3: "RGB"}[channels],
            "size": size,
            "resize": model.resize,
            "filter": "bilinear",
            "normalisation": "in the file",
        },
        "output": {
            "name": "probabilities",
            "dtype": "float32",
            "shape": ["batch", len(model.class_names)],
        },
        "readout": model.readout,
        "window": list(model.window),
        "temperature": model.temperature,
        "calibrated": model.calibrated,
    }


class _Probabilities(nn.Module):
    """What is exported.

    Args:
        model: with the readout that is wanted.
    """

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities, (B, C), of uint8 images (B, K, S, S)."""
        return self.model.probabilities(images)


class _Used(TorchFunctionMode):
    """Collects the identities of the tensors that functions of torch take."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.ids.update(map(id, tree_leaves((args, kwargs))))
        return func(*args, **kwargs)


def _drop_unused(module: nn.Module, images: Tensor) -> None:
    """Drop the parameters that the output does not depend on: those of deeper layers and heads."""
    with _Used() as used:
        module(images)
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in used.ids:
                setattr(part, name, None)


def _check_packages(format_name: FormatName) -> None:
    missing = [name for name in FORMATS[format_name].packages if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {format_name} needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )


def _check_output(path: Path, format_name: FormatName, *, overwrite: bool) -> None:
    for name, other in FORMATS.items():
        if name != format_name and path.suffix == Path(other.file_name).suffix:
            raise UserError(
                f"--output {path} is the name of another format's file: use --format {name}, or "
                f"end it in {Path(FORMATS[format_name].file_name).suffix}"
            )
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} is there already: replace it with --overwrite, or name another file with "
            "--output"
        )


def _batches(
    run_dir: Path, model: Classifier, data_dir: Path | None
) -> tuple[list[Tensor], str, list[str]]:
    """Return batches to compare on, what they are, and notes: of the task, or else random."""
    number, shape = sum(BATCH_SIZES), model.architecture.image_shape
    source, notes = f"{number} random images", []
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (number, *shape), dtype=torch.uint8, generator=generator)
    try:
        test = load_data(run_dir, model, data_dir=data_dir, limit=number).test
    except UserError as error:
        if data_dir is not None:
            raise
        notes.append(f"images of the run's task cannot be read here: {error}")
    else:
        pixels = next(image_batches(test, number))
        source = f"{len(pixels)} test images of the run's task"
        images = torch.from_numpy(np.resize(pixels, (number, *shape)))  # few are repeated
    return list(torch.split(images, list(BATCH_SIZES))), source, notes


def _content(
    format_name: FormatName, model: Classifier, images: Tensor, description: Mapping[str, Any]
) -> bytes:
    """Return the content of the file.

    Raises:
        UserError: torch cannot export the network.
    """
    module = _Probabilities(model).eval().requires_grad_(False)
    _drop_unused(module, images)
    size = sum(parameter.nbytes for parameter in module.parameters())
    if format_name == "onnx" and size > MAX_ONNX_BYTES:
        raise UserError(
            f"--format onnx: the network has {size / 2**30:.1f} GiB of weights, and a file holds "
            "less than 2; use --format pt2"
        )
    texts = {METADATA: json.dumps(description, indent=1)}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what matters of them, the comparison finds
            return FORMATS[format_name].write(module, torch.zeros_like(images), texts)
    except Exception as error:  # of the user's modules, or of what torch makes of them
        reason = f"torch cannot export it for any number of images: {_one_line(error)}"
        raise _refused(format_name, model, f"{reason}{_CONSTANT}") from error


def _compare(
    format_name: FormatName,
    model: Classifier,
    content: bytes,
    batches: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> float:
    """Load the content of a file, and return how far its probabilities are off.

    Raises:
        UserError: too far, or it cannot be used with one of the batches.
    """
    sizes = ", ".join(map(str, BATCH_SIZES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = FORMATS[format_name].load(content)
            found = [run(batch) for batch in batches]
    except Exception as error:  # of a graph that some number is a constant of
        reason = f"the file fails with batches of {sizes}: {_one_line(error)}"
        raise _refused(format_name, model, f"{reason}{_CONSTANT}") from error
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            reason = f"the file gives {tuple(one.shape)} for {len(other)} images"
            raise _refused(format_name, model, f"{reason}{_CONSTANT}")
    difference = _difference(found, expected)
    if not difference <= TOLERANCE:
        reason = (
            f"the file's probabilities differ from the model's by up to {difference:.1g}, and "
            f"{TOLERANCE:g} is allowed"
        )
        raise _refused(format_name, model, reason)
    return difference


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def _refused(format_name: FormatName, model: Classifier, reason: str) -> UserError:
    others = " or ".join(name for name in FORMATS if name != format_name)
    return UserError(
        f"--format {format_name}: {model.architecture.name} was not exported, as {reason}; try "
        f"--format {others}"
    )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if text[200:] else ''}"
