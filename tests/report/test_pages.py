"""The text of pages, from records made by hand; the run directories do not exist."""

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from rayff.config.train_config import TrainConfig
from rayff.engine.evaluation import Evaluation, Mistake, ReadoutScore
from rayff.learning.calibration import EarlyExit, reliability
from rayff.report.comparison import comparison_page, distinct_names
from rayff.report.page import Page, Picture
from rayff.report.reader import Run, Trial
from rayff.report.run_report import config_command, flags_command, run_page
from rayff.report.search_report import search_page
from rayff.runs.record import Session
from rayff.runs.run_directory import RunDirectory
from rayff.train import read_flags
from tests.helpers.records import RECORD
from tests.helpers.snapshots import check_snapshot
from tests.report.runs import page_text

SECOND = dataclasses.replace(
    RECORD, epoch=2, valid_accuracy=75.25, test_accuracy=70.5, sip_first=1, images_per_s=300.0
)
ONE_LAYER = dataclasses.replace(
    RECORD,
    **{name: [50.0] for name in ("layer_loss", "layer_valid_accuracy", "layer_test_accuracy")},
    **{"stage_busy": [0.5], "cuts": [], "sip_last": 0, "sip_accuracy": [[50.0]]},
)


THIRD = dataclasses.replace(
    SECOND, valid_accuracy=74.25, test_accuracy=70.0, last_test_accuracy=52.0,
    fusion_test_accuracy=73.0,
)  # fmt: skip
"""Of another seed, with a fusion."""


SESSIONS = [
    Session(start="2026-11-28T07:00:00+00:00"),
    Session(
        start="2026-11-28T08:00:00+00:00",
        end="2026-11-28T09:00:00+00:00",
        reason="stopped by SIGINT",
        command="rayff train --run-dir runs/first --resume",
        folder="/home/me",
        host="n1",
        nodes=["n1", "n2"],
        devices={"NVIDIA H100": 2},
        versions={"torch": "2.9", "ray": "2.60"},
        git_commit="c0ffee",
        git_dirty=True,
    ),
]
"""The first one's process was killed."""


def run(path: str = "runs/first", **options: object) -> Run:
    config = TrainConfig(run_dir=path, **options)
    return Run(path=Path(path), config=config, records=[RECORD, SECOND])


def score(accuracy: float, probability: float, temperature: float) -> ReadoutScore:
    """Of 200 images in one bin, whose plain logits have a probability of 100%."""
    correct = np.arange(200) < 2 * accuracy
    return ReadoutScore(
        accuracy=accuracy,
        temperature=temperature,
        reliability=reliability(np.full(200, probability), correct),
        uncalibrated=reliability(np.ones(200), correct),
    )


EXITS = [
    EarlyExit(threshold=threshold, mean_layers=1 + threshold, accuracy=threshold)
    for threshold in (0.25, 0.5, 0.9)
]
EVALUATION = Evaluation(
    accuracy=70.5,
    layer_accuracy=(50.0, 60.0),
    window=(0, 1),
    confusion=np.array([[100, 0], [59, 41]]),
    class_names=("cat", "dog"),
    num_images=200,
    mistakes=(
        Mistake(image=np.zeros((3, 32, 32), np.uint8), true=1, predicted=0, probability=0.75),
    ),
    readouts={
        "window": score(70.5, 0.75, 2.0),
        "last": score(60.0, 0.5, 0.125),
        "fusion": score(80.0, 0.8125, 1.0),
    },
    calibrated=True,
    early_exits={
        "calibrated": EXITS,
        "uncalibrated": [dataclasses.replace(e, mean_layers=1.0, accuracy=0.125) for e in EXITS],
    },
)


def trial(name: str, valid: float | None, error: str = "", **config: object) -> Trial:
    return Trial(
        trial=name,
        run_dir=f"runs/search/trials/{name}",
        status="failed" if valid is None else "finished",
        config=config,
        epoch=None if valid is None else 2,
        valid_accuracy=valid,
        test_accuracy=valid,
        seconds=65.0,
        records=[] if valid is None or error else [RECORD, SECOND],
        error=error,
    )


def one_run(run: Run, evaluation: Evaluation | None = None) -> Page:
    with pytest.MonkeyPatch.context() as patch:
        if evaluation is not None:
            patch.setattr("rayff.report.run_report.evaluated", lambda *args: evaluation)
        return run_page(run, data_dir=None, device="cpu", limit=None)


@pytest.fixture(autouse=True)
def no_png(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn but not rendered, which takes the most time."""
    monkeypatch.setattr("rayff.report.page.render", lambda draw, height: draw(Figure()) or b"")


PAGES = {
    "run": lambda: one_run(run()),
    "backpropagation": lambda: one_run(
        Run(path=Path("runs/bp"), config=TrainConfig(method="bp"), records=[ONE_LAYER])
    ),
    "run-evaluated": lambda: one_run(
        dataclasses.replace(run(tags="a,b"), sessions=SESSIONS), EVALUATION
    ),
    "run-uncalibrated": lambda: one_run(
        run(), dataclasses.replace(EVALUATION, calibrated=False, window=(1, 1))
    ),
    "comparison-seeds": lambda: comparison_page(
        [
            run("runs/wide", width=200),
            run("runs/first", stages=2),
            dataclasses.replace(run("runs/second", seed=1), records=[RECORD, THIRD]),
        ]
    ),
    "search-seeds": lambda: search_page(
        Path("runs/search"),
        [
            trial("trial-1", 90.0, lr=0.1, seed=1),
            trial("trial-0", 80.0, lr=0.1, seed=0),
            trial("trial-2", 86.0, lr=0.2, seed=0),
        ],
    ),
    "comparison-same": lambda: comparison_page([run(), run("runs/second")]),
    "comparison": lambda: comparison_page(
        [dataclasses.replace(run("runs/second", lr=0.01), records=[RECORD]), run()]
    ),
    "search": lambda: search_page(
        Path("runs/search"),
        [
            trial("trial-2", 90.0, lr=0.1, optimizer="adam", arch="vgg"),
            trial("trial-0", 80.0, "its metrics.parquet is damaged", lr=1e-4, optimizer="muon"),
            trial("trial-1", None, lr=0.0123456, arch="vgg"),
        ],
    ),
    "search-empty": lambda: search_page(Path("runs/search"), [trial("trial-0", None)]),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads(name: str) -> None:
    page = PAGES[name]()
    # the settings change with every new option
    sections = {title: blocks for title, blocks in page.sections.items() if title != "Settings"}
    html = dataclasses.replace(page, sections=sections).html()
    check_snapshot(__file__, f"{name}.txt", page_text(html))


def test_names_are_data_and_not_markup() -> None:
    name = "<script>alert('&')"
    search = search_page(
        Path(name), [trial(name, 9.0, lr=name), trial("b", 8.0, error="<b>", **{name: 1})]
    )
    for page in (one_run(run(name, data_dir=name)), comparison_page([run(name), run()]), search):
        assert "<script" not in page.html()
        assert "&lt;script&gt;" in page.html()
    blocks = [block for blocks in search.sections.values() for block in blocks]
    names = [block.name for block in blocks if isinstance(block, Picture)]
    assert all(re.fullmatch("[A-Za-z0-9_-]+", name) for name in names)


def test_runs_of_the_same_name_are_told_apart_by_their_folder() -> None:
    assert distinct_names([Path("a/first"), Path("a/second")]) == ["first", "second"]
    assert distinct_names([Path("a/x/first"), Path("b/x/first")]) == ["a/x/first", "b/x/first"]


RUNS = [
    TrainConfig(),
    TrainConfig(arch="resnet", task="cifar10", data_dir="my data", download=True, cuts=(5, 9)),
    TrainConfig(epochs=3, lr=0.006, lr_min=3e-4, kernels="conv/unfold,winograd", precision="bf16"),
    TrainConfig(replicas="1,2", transport="object-store", gpus_per_stage=0.5, rule="plain"),
]


@pytest.mark.parametrize("config", RUNS)
def test_the_commands_repeat_the_run(config: TrainConfig, tmp_path: Path) -> None:
    folder = tmp_path / "a run's folder"
    RunDirectory(folder).create(config)
    for line in (flags_command(config), config_command(folder)):
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "rayff.train"]
        command = read_flags(words[3:])
        fields = dataclasses.fields(TrainConfig)
        read = TrainConfig(**{field.name: getattr(command, field.name) for field in fields})
        assert read == config
    assert "run-dir" not in flags_command(TrainConfig(run_dir="runs/first"))
