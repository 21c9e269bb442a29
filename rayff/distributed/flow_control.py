"""Flow control: batches in a message, and messages in flight that the object store can hold."""

from __future__ import annotations

from collections.abc import Callable

from rayff.distributed.placement import nodes
from rayff.engine.run import Run
from rayff.kernels.precision import DTYPES
from rayff.partition.plan import Plan, default_chunk

STORE_SHARE = 0.5
"""Share of the smallest node's object store that the chunks in flight may take."""


def run_chunk(run: Run, plan: Plan) -> int:
    """Return how many batches a message of the run takes."""
    return run.config.chunk or default_chunk(
        plan,
        batch_size=run.recipe.batch_size,
        bytes_per_element=DTYPES[run.resolved.precision].itemsize,
    )


def run_window(run: Run, plan: Plan, chunk: int, warn: Callable[[str], None]) -> int:
    """Return how many chunks may be in flight: as asked, or as many as the smallest store holds.

    A chunk is in the store once, between two stages, wherever it is on its way.
    """
    asked = run.config.window or plan.num_stages + 2
    message = chunk * run.recipe.batch_size * DTYPES[run.resolved.precision].itemsize
    message *= max((plan.architecture.boundary_elements(cut) for cut in plan.cuts), default=0)
    smallest = min(node.store_bytes for node in nodes())
    if not message or not smallest:
        return asked
    window = max(1, min(asked, int(STORE_SHARE * smallest / message)))
    if window < asked:
        warn(
            f"the object store has {smallest / 2**20:.0f} MiB and a chunk {message / 2**20:.0f}: "
            f"the window shrinks from {asked} to {window} chunks; a larger --object-store-memory "
            "of `ray start`, or a smaller --chunk, keeps it open"
        )
    return window
