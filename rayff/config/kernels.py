"""Convolution backends of each layer; a run saves them, so that it repeats bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from rayff.config.errors import UserError, nearest

BACKENDS = ("conv", "unfold", "winograd", "amx")
"""torch's convolution; the input unfolded and a matrix product; Winograd's transforms; products by
the tile units of a processor (bfloat16)."""


@dataclass(frozen=True)
class Kernels:
    """How one layer computes its convolution and the gradient of its weights."""

    forward: str = "conv"
    gradient: str = "conv"

    @property
    def backends(self) -> tuple[str, str]:
        """Backends of the forward pass and of the weight gradient."""
        return self.forward, self.gradient

    def __str__(self) -> str:
        same = self.forward == self.gradient
        return self.forward if same else f"{self.forward}/{self.gradient}"


def format_kernels(kernels: tuple[Kernels, ...]) -> str:
    """Return the kernels of all layers as `--kernels` takes them."""
    return ",".join(map(str, kernels))


def summarise_kernels(kernels: Iterable[Kernels | str]) -> str:
    """Return the kernels of all layers for a reader, repetitions counted: conv x4, winograd x2."""
    groups = [(str(each), len(list(same))) for each, same in groupby(kernels)]
    return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in groups)


def parse_kernels(text: str, num_layers: int | None = None) -> tuple[Kernels, ...]:
    """Read "winograd/unfold,conv,...": forward and gradient of each layer, or one for all.

    Args:
        text: one entry, or one a layer; an entry without a slash is both.
        num_layers: layers of the network; None where it is not known yet.

    Raises:
        UserError: an unknown backend, or another number of entries.
    """
    found = []
    for entry in text.split(","):
        backends = entry.strip().split("/")
        for backend in backends:
            if backend not in BACKENDS or len(backends) > 2:
                hint = "" if backend in BACKENDS else nearest(backend, BACKENDS)
                raise UserError(
                    f"--kernels: unknown {entry!r}{hint}; an entry is "
                    f"FORWARD/GRADIENT, each of {', '.join(BACKENDS)}"
                )
        found.append(Kernels(backends[0], backends[-1]))
    if num_layers is None or len(found) == num_layers:
        return tuple(found)
    if len(found) != 1:
        raise UserError(
            f"--kernels names {len(found)} layers, but the network has {num_layers}; give one "
            "entry a layer, or a single one for all"
        )
    return tuple(found * num_layers)
