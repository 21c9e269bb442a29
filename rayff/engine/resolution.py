"""Resolution of a run by its devices: precision and kernels."""

from __future__ import annotations

from collections.abc import Callable

from rayff.config.kernels import Kernels, parse_kernels
from rayff.config.resolved import resolve_rule
from rayff.config.train_config import Precision
from rayff.engine.run import PreparedRun, Run
from rayff.kernels.precision import DTYPES
from rayff.kernels.table import table_kernels

_CPU_REMEDY = (
    "with a C++ compiler, such as g++, and with a RAYFF_CACHE_DIR that can be written and from "
    "which programs may run"
)
_GPU_REMEDY = "with Triton (pip install triton), a C compiler and Python's headers"


def resolve_run(
    prepared: PreparedRun,
    default_precision: Precision,
    device_class: str,
    tune: Callable[[Precision], tuple[Kernels, ...]],
) -> Run:
    """Return the run with nothing left open.

    Each layer's kernels are the user's, or chosen by a timing where asked (`--autotune`), or by
    the table of the device class: a static choice, so that runs repeat bit for bit.

    Args:
        prepared: the run.
        default_precision: of the least able device.
        device_class: of the least able device.
        tune: times the backends.
    """
    config, network = prepared.config, prepared.architecture
    precision = config.precision or default_precision
    of_modules = network.source is not None
    if config.method != "ff" or resolve_rule(config, of_modules=of_modules) == "plain":
        kernels = (Kernels(),) * len(network)
    elif config.kernels is not None:
        kernels = parse_kernels(config.kernels, len(network))
    elif config.autotune:
        kernels = tune(precision)
    else:
        images = prepared.recipe.batch_size
        kernels = table_kernels(network, images, device_class, DTYPES[precision])
    return prepared.resolve(precision, kernels)


def warn_of_missing_kernels(
    run: Run, missing: str | None, warn: Callable[[str], None], *, on_gpu: bool
) -> None:
    """Warn where a run goes without the compiled kernels that it would use.

    Args:
        run: what is trained.
        missing: why they are missing, in a clause; None where they are there.
        warn: called with the sentence.
        on_gpu: whether they are those of a GPU.
    """
    fast = run.config.method == "ff" and run.resolved.rule == "fast"
    if fast and missing is not None:
        remedy = _GPU_REMEDY if on_gpu else _CPU_REMEDY
        warn(f"the fast rule runs without its compiled kernels: {missing}; it is faster {remedy}")
