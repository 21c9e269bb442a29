"""The formats that a trained network is exported to: how a file is made and loaded."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

FormatName = Literal["onnx", "pt2", "torchscript"]

Run = Callable[[Tensor], Tensor]
"""Returns probabilities, (B, C), of uint8 images, (B, K, S, S)."""


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    file_name: str
    """Of the file in the run directory."""
    packages: tuple[str, ...]
    """That it needs beside torch."""
    write: Callable[[nn.Module, Tensor, Mapping[str, str]], bytes]
    """Returns the content of a file: of a module, a batch to trace it with, which may stay in the
    file, and the texts to keep there by name."""
    load: Callable[[bytes], Run]
    """Returns what the content of a file computes."""


def _program(module: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """Return the graph of a module for any number of images, without paths of this machine."""
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _write_onnx(module: nn.Module, images: Tensor, texts: Mapping[str, str]) -> bytes:
    program = torch.onnx.export(
        _program(module, images),
        dynamo=True,
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(texts)
    content: bytes = program.model_proto.SerializeToString()
    return content


def _load_onnx(content: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (probabilities,) = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(probabilities)

    return run


def _write_pt2(module: nn.Module, images: Tensor, texts: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    torch.export.save(_program(module, images), content, extra_files=dict(texts))
    return content.getvalue()


def _load_pt2(content: bytes) -> Run:
    run: Run = torch.export.load(io.BytesIO(content)).module()
    return run


def _write_torchscript(module: nn.Module, images: Tensor, texts: Mapping[str, str]) -> bytes:
    content = io.BytesIO()
    traced = torch.jit.trace(module, images, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, content, _extra_files=dict(texts))
    return content.getvalue()


def _load_torchscript(content: bytes) -> Run:
    run: Run = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return run


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        *("model.onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx)
    ),
    "pt2": Format("model.pt2", (), _write_pt2, _load_pt2),
    "torchscript": Format("model.pt", (), _write_torchscript, _load_torchscript),
}
