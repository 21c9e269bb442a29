"""The view of a run, driven by events made by hand."""

import dataclasses
import io
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayff.config.activity import activity
from rayff.config.train_config import TrainConfig
from rayff.console.frame import duration, layer_columns, setting
from rayff.console.run_view import ConsoleCallback
from rayff.engine.commands import Report, Train
from rayff.engine.progress import MovingRatio, Tracker
from rayff.runs.checkpoint import Progress
from tests.helpers.records import RECORD
from tests.helpers.runs import train_locally
from tests.helpers.snapshots import check_snapshot

TWO_STAGES = ("layers 0-1", "layers 2-3")
MANY_STAGES = tuple(f"layers {2 * i}-{2 * i + 1}" for i in range(17))


class Driver:
    """Sends events of a run with 1,000 images an epoch to a view that writes to a string."""

    def __init__(
        self,
        *,
        terminal: bool = False,
        size: tuple[int, int] = (80, 24),
        stages: tuple[str, ...] = TWO_STAGES,
        layers: int = 4,
        epochs: int = 4,
        start: Progress | None = None,
    ) -> None:
        self.layers = layers
        self.file = io.StringIO()
        self.now_s = 100.0
        width, height = size
        console = Console(
            file=self.file,
            force_terminal=terminal,
            width=width,
            height=height,
            _environ={"TERM": "xterm"},
        )
        tracker = Tracker(
            epochs=epochs,
            num_train_images=1000,
            stage_names=stages,
            start=start or Progress(),
            clock=lambda: self.now_s,
            now=lambda: datetime(2026, 11, 24, 14) + timedelta(seconds=self.now_s),
        )
        self.view = ConsoleCallback(console)
        self.view.start(tracker, "tinycnn on digits\nrun directory runs/first")

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def train(self, epoch: int, images: int, seconds: float) -> None:
        """The last stage is busy for half of the time, those before it for a quarter.

        All layers but one are in the first stage; the loss of layer n is 2 - n/100.
        """
        self.now_s += seconds
        shares = [0.25] * (len(self.view.tracker.stage_names) - 1) + [0.5]
        losses = tuple(images * (2 - layer / 100) for layer in range(self.layers))
        first = self.layers - len(shares) + 1
        own = [losses[:first], *((loss,) for loss in losses[first:])]
        reports = [
            Report(
                started_s=0.0,
                busy_s=seconds * share,
                idle_s=seconds * (1 - share),
                images=images,
                memory_bytes=1_250_000_000,
                loss_sums=loss_sums,
            )
            for share, loss_sums in zip(shares, own, strict=True)
        ]
        self.view.on_chunk_end(Train(epoch=epoch, step=0, lrs=(0.08,), batches=()), reports)

    def finish(self, epoch: int, num_layers: int = 4, valid_accuracy: float = 60.0) -> None:
        record = dataclasses.replace(
            RECORD,
            epoch=epoch + 1,
            valid_accuracy=valid_accuracy,
            sip_last=num_layers - 1,
            layer_loss=[1.0] * num_layers,
            layer_valid_accuracy=np.linspace(20, 90, num_layers).tolist(),
        )
        self.view.on_epoch_end(record)

    def frame(self) -> str:
        """What the live view shows now."""
        self.view.on_end(None)
        size = self.view.console.size
        console = Console(file=io.StringIO(), width=size.width, height=size.height)
        with console.capture() as capture:
            console.print(self.view.frame())
        return capture.get()


class TestLines:
    def test_are_for_pipes_dumb_terminals_and_those_without_unicode(self) -> None:
        dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        ascii_only = Console(file=ascii_file, force_terminal=True, _environ={"TERM": "xterm"})
        for console in (Console(file=io.StringIO()), dumb, ascii_only):
            view = ConsoleCallback(console)
            view.start(Driver().view.tracker, "")
            assert view.live is None

    def test_are_a_few_without_control_characters(self) -> None:
        driver = Driver(epochs=3)
        driver.train(0, 1000, 6.0)
        driver.finish(0)
        driver.view.on_checkpoint(Path("checkpoints/step-00000010"))
        driver.train(1, 400, 2.0)
        driver.view.on_warning("[red] no \x1b[2J here")
        driver.view.on_restart(["layers 0-3"], Progress(epoch=1))
        driver.train(1, 1000, 5.0)
        driver.finish(1, num_layers=1, valid_accuracy=60.01)
        for _ in range(25):
            driver.train(2, 40, 1.0)
        driver.finish(2)
        driver.view.on_end(None)
        check_snapshot(__file__, "plain.txt", driver.text)

    def test_name_a_checkpoint_once(self) -> None:
        """A run that is stopped at the end of an epoch writes its snapshot again."""
        driver = Driver()
        for name in ("step-00000010", "step-00000020", "step-00000020"):
            driver.view.on_checkpoint(Path("checkpoints") / name)
        lines = [line for line in driver.text.splitlines() if "checkpoint" in line]
        assert lines == ["checkpoint step-00000010", "checkpoint step-00000020"]

    def test_computes_the_pace_of_a_resumed_run_from_its_start(self) -> None:
        driver = Driver(start=Progress(epoch=2, batch=5, images=500))
        driver.train(2, 100, 10.0)
        # 1,400 of 1,500 images are left, and 100 took ten seconds
        assert "epoch 3/4  600/1,000 images  training  loss 1.9850  lr 0.08" in driver.text
        assert "  10 images/s  left 0:02:20 (to 14:04)" in driver.text

    def test_names_the_day_on_which_a_long_run_ends(self) -> None:
        driver = Driver(epochs=100)
        driver.train(0, 100, 100.0)
        assert "(to Wed 25 Nov 17:48)" in driver.text

    def test_say_what_the_run_waits_for(self) -> None:
        driver = Driver()
        driver.now_s += 12.0
        assert driver.view._now() == ["waiting for the first chunk (12 s)"]
        with activity("setting up 2 stages"):
            assert driver.view._now() == ["setting up 2 stages (0 s)"]


class TestDisplay:
    @pytest.mark.parametrize(
        ("layers", "stages", "epochs", "size"),
        [
            (4, TWO_STAGES, 1, (80, 24)),
            (17, TWO_STAGES, 1, (200, 60)),
            (100, MANY_STAGES, 1, (80, 24)),
            (100, MANY_STAGES, 30, (60, 12)),
            (4, ("layers 0-1 on gpu-1", "layers 2-3 on a-node-with-a-long-name"), 30, (40, 16)),
            (1, TWO_STAGES[:1], 30, (40, 6)),
        ],
    )
    def test_fits_the_terminal(
        self, layers: int, stages: tuple[str, ...], epochs: int, size: tuple[int, int]
    ) -> None:
        driver = Driver(terminal=True, stages=stages, layers=layers, epochs=99, size=size)
        for epoch in range(epochs):
            driver.train(epoch, 1000, 10.0)
            driver.finish(epoch, layers)
        driver.view.on_checkpoint(Path("checkpoints/step-00000010"))
        driver.train(epochs, 250, 2.5)
        frame = driver.frame()
        assert len(frame.splitlines()) < size[1]
        assert max(map(len, frame.splitlines())) <= size[0]
        check_snapshot(__file__, f"display-{layers}-layers-{size[0]}x{size[1]}.txt", frame)

    def test_has_losses_before_the_first_epoch_is_complete(self) -> None:
        driver = Driver(terminal=True)
        driver.train(0, 250, 2.5)
        driver.view.on_restart(TWO_STAGES, Progress())
        driver.train(0, 500, 5.0)
        check_snapshot(__file__, "display-first-epoch.txt", driver.frame())

    def test_gives_the_terminal_back_at_the_end(self) -> None:
        stdout = sys.stdout
        driver = Driver(terminal=True)
        assert sys.stdout is not stdout
        driver.train(0, 1000, 5.0)
        driver.finish(0)
        driver.train(1, 300, 1.0)
        driver.view.on_warning("the disk is full")
        driver.view.on_end(KeyboardInterrupt())
        assert sys.stdout is stdout
        assert driver.text.count("\x1b[?25l") == 1
        assert driver.text.rindex("\x1b[?25h") > driver.text.rindex("\x1b[?25l")
        assert "run directory runs/first" in driver.text
        assert "warning: the disk is full" in driver.text
        end = "ended in epoch 2/4  300/1,000 images, after 6.0 s: valid 60.00%, test 50.00%"
        assert end in driver.text
        assert "continue with" not in driver.text, "there is no checkpoint"


def test_the_header_describes_the_run(tmp_path: Path) -> None:
    file = io.StringIO()
    callback = ConsoleCallback(Console(file=file))
    callback.on_warning("waiting for 2 CPUs")
    config = TrainConfig(width=10, seed=3, limit=32, epochs=1, rule="plain", run_dir=str(tmp_path))
    train_locally(config, callback)
    # 10*1*25 + 20*10*25 + 40*20*9 + 40*40*9 weights
    lines = file.getvalue().splitlines()
    assert lines[:2] == [
        "waiting for 2 CPUs",
        "tinycnn on digits: 4 layers, 26,850 weights, 32 images an epoch, seed 3",
    ]
    assert lines[2] == (
        "data: 32 train, 32 valid, 32 test images of 8x8 pixels in grey, now 32x32; 10 classes "
        "with 3 to 4 training images each"
    )
    assert lines[3].endswith("; 1 thread, fp32, plain rule")
    assert lines[4] == f"run directory {tmp_path}"
    assert lines[-2].startswith("1 epoch done, after ")
    percent = r"[0-9]+\.[0-9]{2}%"
    assert re.fullmatch(
        f"test accuracy by readout: window {percent}, last {percent}, fusion {percent}", lines[-1]
    )


def test_values_are_formatted_for_tables() -> None:
    durations = [duration(seconds) for seconds in (None, 0.04, 59.9, 61, 3725, 90000)]
    assert durations == ["?", "0.0 s", "59.9 s", "0:01:01", "1:02:05", "1 day, 1:00:00"]
    settings = [setting(value) for value in (None, 0.0012345678, (1, 3), (), 7, True)]
    assert settings == ["default", "0.001235", "1,3", "none", "7", "True"]
    assert setting(0.0012345678, digits=15) == "0.0012345678"
    equal = layer_columns([("{:.1f}", [10.0, 10.0])], (0, 1)).renderables
    assert [re.sub(r"\W+", " ", str(cell)) for cell in equal] == [" 0 10 0", " 1 10 0"]


def test_a_moving_ratio_forgets() -> None:
    ratio = MovingRatio()
    assert ratio.value == 0.0
    ratio.add(1000.0, 10.0, seconds=10.0)
    assert ratio.value == pytest.approx(100.0)
    for _ in range(100):
        ratio.add(20.0, 1.0, seconds=1.0)
    assert ratio.value == pytest.approx(20.0, abs=0.5)
