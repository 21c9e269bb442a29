"""Which kernels a run computes with: a static choice, unless the user asks for another."""

from __future__ import annotations

from collections.abc import Callable

from rayff.config.kernels import Kernels, parse_kernels
from rayff.config.resolved import resolve_rule
from rayff.config.train_config import Precision, TrainConfig
from rayff.kernels.precision import DTYPES
from rayff.kernels.table import table_kernels
from rayff.models.architecture import Architecture


def choose_kernels(
    config: TrainConfig,
    network: Architecture,
    batch_size: int,
    precision: Precision,
    device_class: str,
    tune: Callable[[], tuple[Kernels, ...]],
) -> tuple[Kernels, ...]:
    """Return each layer's kernels: the user's, by a timing where asked, or by the table.

    Args:
        config: the user's.
        network: all layers.
        batch_size: images of a batch.
        precision: of the run.
        device_class: of the least able device.
        tune: times the backends.
    """
    if config.method != "ff" or resolve_rule(config) == "plain":
        return (Kernels(),) * len(network)
    if config.kernels is not None:
        return parse_kernels(config.kernels, len(network))
    if config.autotune:
        return tune()
    return table_kernels(network, batch_size, device_class, DTYPES[precision])
