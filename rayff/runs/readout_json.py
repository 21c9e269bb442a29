"""Readouts as JSON, for manifests and model descriptions, and the checks of what is read back."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rayff.learning.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from rayff.learning.fusion import Fusion
from rayff.learning.readout import Readouts, Temperatures


def readouts_to_json(readouts: Readouts | None) -> dict[str, Any] | None:
    """Return readouts as JSON can hold them; fusion is a safetensors file in base64."""
    if readouts is None:
        return None
    fusion = readouts.fusion
    return {
        "window": list(readouts.window),
        "temperatures": temperatures_to_json(readouts.temperatures),
        "fusion": None if fusion is None else base64.b64encode(save(vars(fusion))).decode(),
    }


def readouts_from_json(data: Any, num_layers: int, num_classes: int) -> Readouts | None:
    """Read what `readouts_to_json` returned.

    Args:
        data: the JSON object; None where there are none.
        num_layers: layers that give logits.
        num_classes: of the network.

    Raises:
        ValueError: a value is missing, of another type, or does not fit the network.
    """
    if data is None:
        return None
    try:
        window = window_from_json(data["window"], num_layers)
        fusion = data["fusion"]
        return Readouts(
            window=window,
            temperatures=temperatures_from_json(data["temperatures"], window),
            fusion=None
            if fusion is None
            else _fusion_from_base64(fusion, num_layers, num_classes),
        )
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"its readouts are damaged: {error!r}") from error


def window_from_json(data: Any, num_layers: int) -> tuple[int, int]:
    """Read the first and last layer of a window; ValueError where it has none in the network."""
    first, last = data
    if not type(first) is type(last) is int or not 0 <= first <= last < num_layers:
        raise ValueError(f"its window does not fit {num_layers} layers that give logits")
    return first, last


def temperatures_to_json(temperatures: Temperatures | None) -> dict[str, Any] | None:
    """Return temperatures as JSON can hold them."""
    return None if temperatures is None else dataclasses.asdict(temperatures)


def temperatures_from_json(data: Any, window: tuple[int, int]) -> Temperatures | None:
    """Read the temperatures of a window, or None where they were not fitted.

    Raises:
        ValueError: one is no positive number, or their number is not that of the layers.
        TypeError: it is no JSON object.
        KeyError: a name is missing.
    """
    if data is None:
        return None
    sums, last = data["window"], data["last"]
    if type(sums) is not list or len(sums) != window[1] - window[0] + 1:
        raise ValueError("its temperatures do not fit its window")
    return Temperatures(window=tuple(map(_temperature, sums)), last=_temperature(last))


def _temperature(value: Any) -> float:
    if type(value) not in (int, float) or not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise ValueError("one of its temperatures is no positive number")
    return float(value)


def _fusion_from_base64(data: str, num_layers: int, num_classes: int) -> Fusion:
    return fusion_of(load(base64.b64decode(data, validate=True)), num_layers, num_classes)


def fusion_of(
    tensors: Mapping[str, NDArray[Any]], num_layers: int, num_classes: int, prefix: str = ""
) -> Fusion:
    """Return the fusion whose weight and bias are in `tensors`.

    Raises:
        ValueError: one is missing, of another shape or type, or not finite.
    """
    shapes = {"weight": (num_classes, num_layers * num_classes), "bias": (num_classes,)}
    if odd := {prefix + name for name in shapes} ^ tensors.keys():
        raise ValueError(f"weights and description differ in {min(odd)!a}")
    for name, shape in shapes.items():
        found = tensors[prefix + name]
        if found.shape != shape or found.dtype != np.float32:
            raise ValueError(
                f"{prefix}{name} is of shape {found.shape} and {found.dtype}, expected {shape} "
                "and float32"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"{prefix}{name} holds numbers that are not finite")
    return Fusion(**{name: tensors[prefix + name] for name in shapes})
