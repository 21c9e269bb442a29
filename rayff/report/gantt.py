"""The pipeline's timeline: which stage did what when."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rayff.report.style import BLUE, GREEN, ORANGE
from rayff.runs.timeline import KINDS, Span

COLOURS = {"train": BLUE, "valid": ORANGE, "test": GREEN}
NAMES = {"train": "training", "valid": "validation", "test": "test"}
COMMANDS = 10
"""Commands of the first stage that an excerpt is about as long as."""

Excerpt = tuple[float, float]
"""Where a picture of the timeline begins and ends, in seconds since 1970."""


def fill(spans: Sequence[Span]) -> Excerpt:
    """Return the beginning of the first epoch: one stage after the other gets to work."""
    own = of_epoch(spans, spans[0].epoch)
    start = min(span.started_s for span in own)
    entered = sorted(end_s(span) for span in own if span.stage == 0)[: COMMANDS + 1]
    reached = [
        min(end_s(span) for span in own if span.stage == stage)
        for stage in {span.stage for span in own}
    ]
    return start, max(entered[-1:] + reached)


def turn(spans: Sequence[Span]) -> Excerpt:
    """Return the place of the first epoch where training runs into evaluation."""
    own = of_epoch(spans, spans[0].epoch)
    training = sorted(s.started_s for s in own if s.stage == 0 and s.kind == "train")
    evaluation = sorted((span for span in own if span.kind != "train"), key=end_s)
    start = min(training[-COMMANDS // 2 :] or [evaluation[0].started_s])
    entered = [end_s(span) for span in evaluation if span.stage == 0][: COMMANDS // 2]
    reached = [
        next(end_s(span) for span in evaluation if span.stage == stage)
        for stage in {span.stage for span in evaluation}
    ]
    return start, max([start + 1e-3, *entered, *reached])


def drain(spans: Sequence[Span]) -> Excerpt:
    """Return the end of the newest epoch: one stage after the other has nothing left to do."""
    own = of_epoch(spans, spans[-1].epoch)
    entered = sorted(span.started_s for span in own if span.stage == 0)[-COMMANDS:]
    end = max(end_s(span) for span in own)
    return min([*entered, end - 1e-3]), end


def of_epoch(spans: Sequence[Span], epoch: int) -> list[Span]:
    """Return the spans of one epoch."""
    return [span for span in spans if span.epoch == epoch]


def end_s(span: Span) -> float:
    """Return when a span ended, in seconds since 1970."""
    return span.started_s + span.busy_s


def draw_timeline(figure: Figure, spans: Sequence[Span], excerpt: Excerpt) -> None:
    """Draw a row a stage, and in it a bar for whatever the stage did within the excerpt."""
    start, end = excerpt
    shown = [s for s in spans if s.started_s < end and end_s(s) > start]
    num_stages = 1 + max(span.stage for span in shown)
    epochs = sorted({span.epoch for span in shown})
    axes = figure.subplots()
    for kind in KINDS:
        for epoch in epochs:
            of_kind = [span for span in shown if (span.kind, span.epoch) == (kind, epoch)]
            for stage in range(num_stages):
                bars = [
                    (span.started_s - start, span.busy_s)
                    for span in of_kind
                    if span.stage == stage
                ]
                axes.broken_barh(
                    bars,
                    (stage - 0.36, 0.72),
                    facecolor=COLOURS[kind],
                    alpha=1.0 if epoch == epochs[0] else 0.45,
                    edgecolor="white",
                    linewidth=0.7,
                )
    length = end - start
    for span in shown:
        middle = (max(span.started_s, start) + min(end_s(span), end)) / 2 - start
        text = str(span.step)
        visible = min(end_s(span), end) - max(span.started_s, start)
        if visible > length * (0.008 + 0.018 * len(text)):
            axes.text(
                middle, span.stage, text, ha="center", va="center", color="white", fontsize=7
            )
    axes.set_xlim(0, length)
    axes.set_ylim(num_stages - 0.4, -0.6)
    axes.set_yticks(range(num_stages), [f"stage {stage}" for stage in range(num_stages)])
    axes.set_xlabel("seconds")
    axes.grid(visible=False, axis="y")
    keys = [
        Patch(color=COLOURS[kind], label=NAMES[kind])
        for kind in KINDS
        if any(span.kind == kind for span in shown)
    ]
    if len(epochs) > 1:
        keys.append(Patch(color=BLUE, alpha=0.45, label=f"epoch {epochs[-1]}"))
    figure.legend(handles=keys, loc="outside upper left", ncols=4, handlelength=1.2)
