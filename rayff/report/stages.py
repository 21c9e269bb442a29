"""What the stages of a run did: its timeline, how busy they were, and how fast it all went."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np

from rayff.config.errors import UserError
from rayff.config.text import plural
from rayff.report import curves, gantt
from rayff.report.page import Block, Note, Table, picture
from rayff.report.sources import Run
from rayff.runs.timeline import FILE, KINDS, Span, read_timeline

TITLE = "Timeline of the pipeline"


def pipeline_blocks(run: Run) -> list[Block]:
    """Return the pictures of the pipeline, or a word in the place of a missing timeline.

    The workers of backpropagation all do the same: there is only how fast it went.
    """
    throughput = picture(
        "throughput",
        "Throughput",
        "Training images a second in each epoch; evaluation is not counted.",
        partial(curves.draw_throughput, records=run.records),
        height=2.6,
    )
    if run.spec.method != "ff":
        return [throughput]
    spans, why_not = _spans(run)
    last = run.last
    same = [record for record in run.records if record.cuts == last.cuts]
    shares = np.array([record.stage_busy for record in same]).mean(axis=0).tolist()
    layers = stage_layers(run)
    names = [
        f"stage {stage}\nlayer{'s' if '-' in which else ''} {which}"
        for stage, which in enumerate(layers)
    ]
    return [
        *([Note(title=TITLE, text=why_not)] if why_not else _timeline(spans)),
        _stages(layers, shares, spans),
        picture(
            "busy",
            "How busy each stage is",
            f"Mean of {plural(len(same), 'epoch')}, evaluation included; the busiest stage sets "
            "the pace.",
            partial(curves.draw_busy, names=names, shares=shares),
            height=max(2.0, 0.9 + 0.42 * len(names)),
        ),
        throughput,
    ]


def stage_layers(run: Run) -> list[str]:
    """Return the layers of each stage in the newest epoch, such as 0-4."""
    bounds = [0, *run.last.cuts, len(run.last.layer_loss)]
    return [f"{first}-{after - 1}" for first, after in zip(bounds, bounds[1:], strict=False)]


def _spans(run: Run) -> tuple[list[Span], str]:
    """Return the spans of the timeline, or none and why."""
    path = run.path / FILE
    if not path.exists():
        return [], f"Not drawn: the run has no {FILE}."
    try:
        spans = read_timeline(path)
    except UserError as error:
        return [], f"Not drawn: {error}."
    return spans, "" if spans else f"Not drawn: {FILE} has no rows."


def _timeline(spans: Sequence[Span]) -> list[Block]:
    first, newest = spans[0].epoch, spans[-1].epoch
    num_stages = 1 + max(span.stage for span in spans)
    excerpts = (
        (
            "timeline-fill",
            f"Timeline: epoch {first} begins",
            "The pipeline fills: a stage begins when the first chunk reaches it. A bar is a chunk "
            "of batches with the number of its first batch.",
            gantt.fill(spans),
        ),
        (
            "timeline-turn",
            f"Timeline: epoch {first} turns to evaluation",
            "Evaluation follows training from stage to stage; nothing waits for the pipeline to "
            "be empty.",
            gantt.turn(spans),
        ),
        (
            "timeline-drain",
            f"Timeline: epoch {newest} ends",
            "The last chunks leave the pipeline, stage by stage.",
            gantt.drain(spans),
        ),
    )
    return [
        picture(
            name,
            title,
            caption,
            partial(gantt.draw_timeline, spans=spans, excerpt=excerpt),
            height=max(2.0, 1.1 + 0.36 * num_stages),
        )
        for name, title, caption, excerpt in excerpts
    ]


def _stages(layers: Sequence[str], shares: Sequence[float], spans: Sequence[Span]) -> Table:
    """Return a row a stage: its layers, its share, and what a chunk takes it, where known."""
    newest = gantt.of_epoch(spans, spans[-1].epoch) if spans else []
    rows = []
    for stage, (which, share) in enumerate(zip(layers, shares, strict=True)):
        times = [
            [span.busy_s for span in newest if (span.stage, span.kind) == (stage, kind)]
            for kind in KINDS
        ]
        medians = [f"{1000 * median(each):,.1f}" if each else "-" for each in times]
        rows.append((str(stage), which, f"{share:.0%}", *medians))
    return Table(
        title="Stages",
        columns=("stage", "layers", "busy", *(f"{kind} ms" for kind in KINDS)),
        rows=tuple(rows),
        caption="Milliseconds are the medians of the newest epoch's chunks.",
        numbers=frozenset({2, 3, 4, 5}),
        wide=False,
    )
