"""The report of one run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rayff.config.text import layer_range, plural
from rayff.config.train_config import Device, TrainConfig
from rayff.console.frame import duration, setting
from rayff.report.figures_layers import layer_blocks
from rayff.report.figures_learning import run_curves, window_pictures
from rayff.report.figures_pipeline import pipeline_blocks, stage_layers
from rayff.report.figures_predictions import evaluated, filter_picture, prediction_blocks
from rayff.report.figures_readouts import readout_blocks
from rayff.report.page import Block, Code, Note, Page, Table
from rayff.report.reader import Run
from rayff.runs.record import Session

METHODS = {
    "ff": "Forward-Forward",
    "bp": "backpropagation",
    "bp-deepsup": "backpropagation with deep supervision",
}


def run_page(run: Run, *, data_dir: Path | None, device: Device, limit: int | None) -> Page:
    """Return the page of a run; for the other arguments see `evaluated`."""
    config, last = run.config, run.last
    evaluation = evaluated(run, data_dir, device, limit)
    is_pipeline = config.method == "ff"
    facts = {
        "test accuracy": f"{last.test_accuracy:.2f}%",
        "validation accuracy": f"{last.valid_accuracy:.2f}%",
    }
    if last.has_window:
        window = layer_range(last.sip_first, last.sip_last)
        facts["classifier"] = f"{window} of {len(last.layer_loss)}"
    if is_pipeline:
        facts["pipeline"] = plural(len(last.stage_busy), "stage")
    facts["training images / s"] = f"{run.images_per_s:,.0f}"
    facts["training time"] = duration(run.seconds)
    sections: dict[str, Sequence[Block]] = {"Learning": run_curves(run)}
    if last.has_window:
        sections["Layers of the classifier"] = window_pictures(last)
        sections["What each layer adds"] = layer_blocks(last)
    found = None if isinstance(evaluation, str) else evaluation
    sections["Readouts and probabilities"] = readout_blocks(run, found)
    sections["Predictions"] = [*prediction_blocks(run, evaluation), filter_picture(run)]
    sections["Pipeline" if is_pipeline else "Workers"] = pipeline_blocks(run)
    sections["Record"] = record_blocks(run)
    sections["Settings"] = _settings(run)
    return Page(
        title=f"{config.arch} on {Path(config.task).name or config.task}",
        subtitle=f"{METHODS[config.method]}, {plural(last.epoch, 'epoch')}, {run.path}",
        facts=facts,
        sections=sections,
    )


def record_blocks(run: Run) -> list[Block]:
    """Return what the run says of itself: with what, where and when it was trained."""
    if not run.sessions:
        return [Note(title="Sessions", text="Not known: the run has no run.json.")]
    *earlier, newest = run.sessions
    about = [("tags", ", ".join(run.config.tag_names)), ("notes", run.config.notes or "")]
    blocks: list[Block] = [
        Table(
            title="Newest session" if earlier else "Session",
            columns=("fact", "value"),
            rows=[(name, value) for name, value in (*about, *_session(newest)) if value],
        )
    ]
    if newest.command:
        folder = f"Typed in {newest.folder}."
        blocks.append(Code(title="Its command", text=newest.command, caption=folder))
    if earlier:
        rows = [(_time(s.start), _end(s, "its process was killed")) for s in reversed(earlier)]
        blocks.append(Table(title="Sessions before", columns=("start", "end"), rows=rows))
    return blocks


def _session(session: Session) -> list[tuple[str, str]]:
    """Return the facts of a session by name; those that are not known are empty."""
    state = " with changes" if session.git_dirty else ""
    return [
        ("start", _time(session.start)),
        ("end", _end(session, "not yet, or its process was killed")),
        ("host", session.host),
        ("nodes", ", ".join(session.nodes)),
        ("devices", ", ".join(f"{count} x {name}" for name, count in session.devices.items())),
        ("git commit", f"{session.git_commit}{state}" if session.git_commit else ""),
        ("versions", ", ".join(f"{name} {each}" for name, each in session.versions.items())),
    ]


def _end(session: Session, otherwise: str) -> str:
    """Return when and how a session ended; `otherwise` where it has no end."""
    return f"{_time(session.end)}, {session.reason}" if session.end else otherwise


def _time(moment: str) -> str:
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M:%S")


def _settings(run: Run) -> list[Block]:
    values = dataclasses.asdict(run.config)
    rows = [(name, setting(v, digits=15)) for name, v in values.items() if name != "run_dir"]
    if run.config.method == "ff":
        rows.append(("stages of the newest epoch", ", ".join(stage_layers(run))))
    return [
        Code(
            title="Commands that repeat this run",
            text=f"{config_command(run.path)}\n\n{flags_command(run.config)}",
            caption="The second needs no file of this run.",
        ),
        Table(title="config.json", columns=("setting", "value"), rows=rows),
    ]


def config_command(path: Path) -> str:
    """Return the command that trains with the config.json of a run directory."""
    return f"python -m rayff.train --config {shlex.quote(str(path / 'config.json'))}"


def flags_command(config: TrainConfig) -> str:
    """Return the command with a flag for every setting that differs from its default."""
    default = TrainConfig()
    words = ["python", "-m", "rayff.train"]
    for field in dataclasses.fields(TrainConfig):
        value = getattr(config, field.name)
        always = field.name in ("arch", "task", "seed")
        if field.name == "run_dir" or (value == getattr(default, field.name) and not always):
            continue
        words.append(f"--{field.name.replace('_', '-')}")
        if isinstance(value, tuple):
            words.append(",".join(map(str, value)))
        elif not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)
