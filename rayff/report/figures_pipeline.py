"""Timeline, utilization and throughput of a run's pipeline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rayff.config.errors import UserError
from rayff.config.text import layer_range, plural
from rayff.report.page import Block, Note, Table, picture
from rayff.report.reader import Run
from rayff.report.style import BLUE, GREEN, ORANGE, epoch_axis, label_ends, marker
from rayff.runs.metrics import EpochRecord
from rayff.runs.timeline import FILE, KINDS, Span, read_timeline

COLOURS = {"train": BLUE, "valid": ORANGE, "test": GREEN}
NAMES = {"train": "training", "valid": "validation", "test": "test"}
COMMANDS = 10
"""Approximate length of an excerpt, in commands of the first stage."""

Excerpt = tuple[float, float]
"""Start and end of a part of the timeline, in seconds since 1970."""


def pipeline_blocks(run: Run) -> list[Block]:
    """Return timeline, stages and throughput; backpropagation has no stages."""
    throughput = picture("throughput", "Throughput", "Evaluation is not counted.", 2.6,
                         draw_throughput, run.records)  # fmt: skip
    if run.config.method != "ff":
        return [throughput]
    try:
        spans = read_timeline(run.path / FILE) if (run.path / FILE).exists() else []
        reason = f"the run has no {FILE}, or it has no rows"
    except UserError as error:
        spans, reason = [], str(error)
    timeline: list[Block] = [Note(title="Timeline of the pipeline", text=f"Not drawn: {reason}.")]
    same_cuts = [record for record in run.records if record.cuts == run.last.cuts]
    shares = np.mean([record.stage_busy for record in same_cuts], axis=0)
    layers = stage_layers(run)
    waits = [record.data_wait for record in same_cuts]
    text = (
        f"The first stage waited for images to be read and decoded {100 * np.mean(waits):.1f}% of "
        "the time, which counts as busy above: more CPUs, or smaller files, make it faster."
    )
    return [
        *(timeline_pictures(spans) if spans else timeline),
        _stage_table(layers, shares, spans),
        picture(
            "busy",
            "Utilization of the stages",
            f"Mean of {plural(len(same_cuts), 'epoch')}, evaluation included; the busiest stage "
            "limits the throughput.",
            max(2.0, 0.9 + 0.42 * len(layers)),
            draw_utilization,
            [f"stage {stage}\n{each}" for stage, each in enumerate(layers)],
            shares,
        ),
        *([Note(title="Waiting for images", text=text)] if max(waits) else []),
        throughput,
    ]


def stage_layers(run: Run) -> list[str]:
    """Return the layers of each stage in the newest epoch, such as "layers 0-4"."""
    bounds = [0, *run.last.cuts, len(run.last.layer_loss)]
    return [layer_range(first, end - 1) for first, end in zip(bounds, bounds[1:], strict=False)]


def timeline_pictures(spans: Sequence[Span]) -> list[Block]:
    """Return how the pipeline fills, goes over to evaluation and drains."""
    first, newest = spans[0].epoch, spans[-1].epoch
    height = max(2.0, 1.1 + 0.36 * (1 + max(span.stage for span in spans)))
    starts = (
        "The pipeline fills: a stage starts when the first chunk reaches it. A bar is a chunk, "
        "labelled with its first batch."
    )
    turns = "Evaluation chunks follow training chunks without draining the pipeline."
    ends = "The pipeline drains: the last chunks leave it stage by stage."
    return [
        picture(f"timeline-{name}", title, caption, height, draw_timeline, spans, excerpt)
        for name, title, caption, excerpt in (
            ("fill", f"Timeline: epoch {first} starts", starts, fill(spans)),
            ("turn", f"Timeline: epoch {first} is evaluated", turns, evaluation_start(spans)),
            ("drain", f"Timeline: epoch {newest} ends", ends, drain(spans)),
        )
    ]


def fill(spans: Sequence[Span]) -> Excerpt:
    """Return the start of the first epoch, until every stage has finished a command."""
    own = of_epoch(spans, spans[0].epoch)
    start = min(span.started_s for span in own)
    return start, _all_stages_s(own, COMMANDS + 1, start)


def evaluation_start(spans: Sequence[Span]) -> Excerpt:
    """Return where the first epoch goes over from training to evaluation."""
    own = of_epoch(spans, spans[0].epoch)
    training = sorted(s.started_s for s in own if s.stage == 0 and s.kind == "train")
    evaluation = [span for span in own if span.kind != "train"]
    start = min(training[-COMMANDS // 2 :] or [span.started_s for span in own])
    return start, _all_stages_s(evaluation, COMMANDS // 2, start)


def drain(spans: Sequence[Span]) -> Excerpt:
    """Return the end of the newest epoch, until every stage has finished."""
    own = of_epoch(spans, spans[-1].epoch)
    end = max(span.started_s + span.busy_s for span in own)
    first_stage = sorted(span.started_s for span in own if span.stage == 0)
    return min([*first_stage[-COMMANDS:], end]), end


def of_epoch(spans: Sequence[Span], epoch: int) -> list[Span]:
    """Return the spans of one epoch."""
    return [span for span in spans if span.epoch == epoch]


def _all_stages_s(spans: Sequence[Span], count: int, start: float) -> float:
    """Return when the first stage has finished `count` commands and every stage one."""
    ends: dict[int, list[float]] = defaultdict(list)
    for span in spans:
        ends[span.stage].append(span.started_s + span.busy_s)
    first_stage = sorted(ends[0])[:count]
    return max([start, *first_stage[-1:], *(min(times) for times in ends.values() if times)])


def _stage_table(layers: Sequence[str], shares: Sequence[float], spans: Sequence[Span]) -> Table:
    newest = of_epoch(spans, spans[-1].epoch) if spans else []
    rows = []
    for stage, (each, share) in enumerate(zip(layers, shares, strict=True)):
        times = [
            [1000 * s.busy_s for s in newest if (s.stage, s.kind) == (stage, kind)]
            for kind in KINDS
        ]
        medians = [f"{median(values):,.1f}" if values else "-" for values in times]
        rows.append((str(stage), each.partition(" ")[2], f"{share:.0%}", *medians))
    return Table(
        title="Stages",
        columns=("stage", "layers", "busy", *(f"{kind} ms" for kind in KINDS)),
        rows=rows,
        caption="Milliseconds per chunk: medians of the newest epoch.",
        numeric=(2, 3, 4, 5),
        wide=False,
    )


def draw_timeline(figure: Figure, spans: Sequence[Span], excerpt: Excerpt) -> None:
    """Draw a Gantt chart of the excerpt: a row per stage, a bar per command."""
    start, end = excerpt[0], max(excerpt[1], excerpt[0] + 1e-3)
    shown = [s for s in spans if s.started_s < end and s.started_s + s.busy_s >= start]
    num_stages = 1 + max(span.stage for span in shown)
    first_epoch, last_epoch = shown[0].epoch, shown[-1].epoch
    started = np.array([span.started_s for span in shown])
    ended = started + [span.busy_s for span in shown]
    left = np.clip(started, start, end) - start
    width = np.clip(ended, start, end) - start - left
    colours = [_colour(span.kind, later=span.epoch > first_epoch) for span in shown]
    labels = [
        str(span.step) if share > 0.008 + 0.018 * len(str(span.step)) else ""  # where it fits
        for span, share in zip(shown, width / (end - start), strict=True)
    ]
    axes = figure.subplots()
    stages = [span.stage for span in shown]
    bars = axes.barh(stages, width, 0.72, left, color=colours, edgecolor="white", linewidth=0.7)
    axes.bar_label(bars, labels, label_type="center", color="white", fontsize=7)
    axes.set_xlim(0, end - start)
    axes.set_ylim(num_stages - 0.4, -0.6)
    axes.set_yticks(range(num_stages), [f"stage {stage}" for stage in range(num_stages)])
    axes.set_xlabel("seconds")
    axes.grid(visible=False, axis="y")
    kinds = [kind for kind in KINDS if any(span.kind == kind for span in shown)]
    keys = [Patch(color=COLOURS[kind], label=NAMES[kind]) for kind in kinds]
    if last_epoch > first_epoch:
        keys.append(Patch(color=_colour("train", later=True), label=f"epoch {last_epoch}"))
    figure.legend(handles=keys, loc="outside upper left", ncols=4, handlelength=1.2)


def _colour(kind: str, *, later: bool) -> tuple[float, float, float, float]:
    """Return the colour of a command; those of a later epoch are paler."""
    return to_rgba(COLOURS[kind], 0.45 if later else 1.0)


def draw_utilization(figure: Figure, names: Sequence[str], shares: Sequence[float]) -> None:
    """Draw the share of time that each stage computes, the busiest one highlighted."""
    busiest = int(np.argmax(shares)) if len(names) > 1 else -1
    stages = range(len(names))
    axes = figure.subplots()
    colours = [ORANGE if stage == busiest else BLUE for stage in stages]
    bars = axes.barh(stages, 100 * np.array(shares), color=colours, height=0.62)
    labels = [
        f"{share:.0%}{'  busiest' if stage == busiest else ''}"
        for stage, share in enumerate(shares)
    ]
    axes.bar_label(bars, labels, padding=4, fontsize=8.5)
    axes.set_yticks(stages, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 125)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("time spent computing (%)")
    axes.grid(visible=False, axis="y")


def draw_throughput(figure: Figure, records: Sequence[EpochRecord]) -> None:
    """Draw training images per second by epoch."""
    epochs = [record.epoch for record in records]
    speeds = [record.images_per_s for record in records]
    axes = figure.subplots()
    label = f"{speeds[-1]:,.0f}"
    axes.plot(epochs, speeds, color=BLUE, marker=marker(epochs), label=label)
    axes.set_ylim(0, 1.12 * max(*speeds, 1e-9))
    axes.set_ylabel("training images / s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    epoch_axis(axes, epochs)
    label_ends(axes)
