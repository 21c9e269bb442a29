"""Whether a run fits its network and its batches."""

from __future__ import annotations

from rayff.config.errors import UserError
from rayff.config.train_config import OF_PIPELINES, TrainConfig, as_flag


def check_method(run: TrainConfig, batch_size: int) -> None:
    """Raise a UserError where an option belongs to the other way of learning."""
    if run.method == "ff":
        if run.workers is not None:
            raise UserError(
                f"--workers {run.workers} is for --method bp; Forward-Forward has --stages and "
                "--replicas"
            )
        return
    for name in OF_PIPELINES:
        value = getattr(run, name)
        if value != getattr(TrainConfig, name):
            raise UserError(
                f"--{name} {as_flag(value)} is for Forward-Forward: --method {run.method} has "
                "the whole network on each of its --workers; leave the option out"
            )
    if (run.workers or 1) > batch_size:
        raise UserError(
            f"--workers {run.workers} cannot share a batch of {batch_size}; use fewer, or a "
            "larger --batch-size"
        )


def check_cuts(cuts: tuple[int, ...], stages: int | None, num_layers: int) -> None:
    """Raise a UserError where cuts are out of order, out of range, or not stages - 1 in number."""
    shown = ",".join(map(str, cuts))
    if any(cut < 1 for cut in cuts) or any(
        after <= before for before, after in zip(cuts, cuts[1:], strict=False)
    ):
        raise UserError(
            f"--cuts {shown}: give the first layer of each later stage, ascending and from 1 on, "
            "such as 5,9,13"
        )
    if stages is not None and len(cuts) != stages - 1:
        raise UserError(
            f"--cuts {shown} makes {len(cuts) + 1} stages, but --stages says {stages}; "
            "leave one of the two out"
        )
    if cuts and cuts[-1] >= num_layers:
        raise UserError(
            f"--cuts {shown}: the network has {num_layers} layers, so a cut is at most "
            f"{num_layers - 1}"
        )


def check_replicas(run: TrainConfig, num_layers: int, batch_size: int) -> None:
    """Raise a UserError where replicas contradict stages, cuts, batch size or transport."""
    flag, counts = f"--replicas {run.replicas}", run.replica_counts
    if run.replicas == "auto":
        if run.cuts is not None:
            raise UserError(
                f"{flag} finds the cuts by itself; leave --cuts out, or give the actors of each "
                "stage, such as --replicas 1,2"
            )
    elif counts is not None:
        others = {
            "--stages": run.stages,
            "--cuts": None if run.cuts is None else len(run.cuts) + 1,
        }
        for other, stages in others.items():
            if stages not in (None, len(counts)):
                raise UserError(
                    f"{flag} makes {len(counts)} stages, but {other} makes {stages}; leave one "
                    "of the two out"
                )
        if len(counts) > num_layers:
            raise UserError(
                f"{flag} makes {len(counts)} stages, but the network has {num_layers} layers, and "
                f"a stage needs one at least; give {num_layers} numbers or fewer"
            )
        if max(counts) > batch_size:
            raise UserError(
                f"{flag}: {max(counts)} actors cannot share a batch of {batch_size}; use fewer, "
                "or a larger --batch-size"
            )
    replicated = run.replicas == "auto" or max(counts or (1,)) > 1
    if replicated and run.transport != "object-store":
        raise UserError(
            f"{flag}: --transport {run.transport} connects stages of one actor only; use "
            "--transport object-store"
        )
