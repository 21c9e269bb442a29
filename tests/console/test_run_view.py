"""The console view, driven by records made by hand."""

import contextlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rayff.config.kernels import Kernels
from rayff.config.train_config import TrainConfig
from rayff.console.frame import duration, layer_lines, stage_lines
from rayff.console.run_view import LiveView, PlainView, console_view, observe, observe_quietly
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.preparation import Prepared, prepare
from rayff.engine.progress import MovingRate
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, StageResources
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

NUM_IMAGES = 1000


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Driver:
    """A view on a console that writes to a string, and what a loop would tell it."""

    def __init__(
        self,
        *,
        terminal: bool = False,
        width: int = 80,
        height: int = 24,
        stages: int = 2,
        epochs: int = 4,
        start: Progress | None = None,
    ) -> None:
        self.file = io.StringIO()
        self.clock = Clock()
        self.stages = stages
        self.console = Console(
            file=self.file,
            force_terminal=terminal,
            width=width,
            height=height,
            _environ={"TERM": "xterm"},
        )
        self.view = console_view(
            self.console,
            header="tinycnn on digits, seed 7\nrun directory runs/first",
            epochs=epochs,
            num_train_images=NUM_IMAGES,
            stage_names=[f"layers {2 * i}-{2 * i + 1}" for i in range(stages)],
            start=start,
            clock=self.clock,
        )

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def train(self, epoch: int, images: int, seconds: float, busy: float = 0.5) -> None:
        self.clock.now_s += seconds
        command = Train(epoch=epoch, step=0, lr=0.1, batches=())
        self.view.on_result(command, self.reports(images, seconds * busy))

    def evaluate(self, epoch: int, seconds: float) -> None:
        self.clock.now_s += seconds
        command = Evaluate(epoch=epoch, split="test", batches=())
        self.view.on_result(command, self.reports(100, seconds))

    def reports(self, images: int, busy_s: float) -> list[Report]:
        """The last stage is busy for `busy_s`, those before it for half of that."""
        shares = [0.5] * (self.stages - 1) + [1.0]
        return [Report(started_s=0.0, busy_s=busy_s * s, images=images) for s in shares]

    def finish(self, epoch: int, num_layers: int = 4) -> None:
        accuracy = np.linspace(20, 90, num_layers).tolist()
        self.view.on_epoch(
            EpochRecord(
                epoch=epoch + 1,
                step=10 * (epoch + 1),
                lr=0.1,
                train_loss=1.5 / (epoch + 1),
                valid_accuracy=91.25,
                test_accuracy=89.75,
                sip_first=1,
                sip_last=num_layers - 1,
                images_per_s=1234.4,
                elapsed_s=12.5,
                layer_loss=[1.0] * num_layers,
                layer_valid_accuracy=accuracy,
                layer_test_accuracy=accuracy,
                stage_busy=[0.5] * self.stages,
                cuts=[],
                sip_accuracy=[],
            )
        )

    def frame(self) -> list[str]:
        """The lines that the live view shows now."""
        assert isinstance(self.view, LiveView)
        console = Console(file=io.StringIO(), width=self.console.width, height=self.console.height)
        with console.capture() as capture:
            console.print(self.view.frame())
        return capture.get().splitlines()


class TestPlainView:
    def test_a_pipe_gets_the_plain_view(self) -> None:
        driver = Driver()
        assert type(driver.view) is PlainView

    def test_a_dumb_terminal_and_one_without_unicode_get_it_too(self) -> None:
        dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        ascii_file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        ascii_only = Console(file=ascii_file, force_terminal=True, _environ={"TERM": "xterm"})
        for console in (dumb, ascii_only):
            view = console_view(
                console, header="", epochs=1, num_train_images=1, stage_names=["layer 0"]
            )
            assert type(view) is PlainView

    def test_a_whole_run_is_a_few_lines_for_a_log(self) -> None:
        driver = Driver(epochs=2)
        with driver.view:
            for epoch in range(2):
                driver.train(epoch, 600, 3.0)
                driver.train(epoch, 400, 2.0)
                driver.evaluate(epoch, 1.0)
                driver.finish(epoch)
                driver.view.on_checkpoint(Path(f"checkpoints/step-0000001{epoch}"))
        assert driver.text.splitlines() == [
            "tinycnn on digits, seed 7",
            "run directory runs/first",
            "epoch 1/2  loss 1.5000  valid 91.25%  test 89.75%  window 1-3  1,234 images/s  "
            "12.5 s  left 6.0 s",
            "checkpoint step-00000010",
            "epoch 2/2  loss 0.7500  valid 91.25%  test 89.75%  window 1-3  1,234 images/s  "
            "12.5 s  left 0.0 s",
            "checkpoint step-00000011",
            "all 2 epochs done, after 12.0 s: valid 91.25%, test 89.75% with layers 1-3 (epoch 2)",
        ]

    def test_a_long_epoch_gets_a_line_every_ten_seconds(self) -> None:
        driver = Driver(epochs=2)
        with driver.view:
            for _ in range(25):
                driver.train(0, 20, 1.0)
        progress = [line for line in driver.text.splitlines() if "training" in line]
        assert progress == [
            "epoch 1/2  200/1,000 images  training  20 images/s  left 0:01:30",
            "epoch 1/2  400/1,000 images  training  20 images/s  left 0:01:20",
        ]

    def test_there_are_no_control_characters(self) -> None:
        driver = Driver()
        with driver.view:
            driver.train(0, 500, 20.0)
            driver.view.on_warning("the disk is full [red]")
            driver.finish(0)
        assert not re.search(r"[^\n -~]", driver.text)
        assert "warning: the disk is full [red]\n" in driver.text

    def test_a_run_that_ends_early_says_where(self) -> None:
        driver = Driver()
        with contextlib.suppress(KeyboardInterrupt), driver.view:
            driver.train(0, 1000, 5.0)
            driver.finish(0)
            driver.train(1, 300, 1.0)
            raise KeyboardInterrupt
        assert driver.text.splitlines()[-1] == (
            "ended in epoch 2/4  300/1,000 images, after 6.0 s: valid 91.25%, test 89.75% "
            "with layers 1-3 (epoch 1)"
        )

    def test_a_resumed_run_counts_from_where_it_was(self) -> None:
        driver = Driver(start=Progress(epoch=2, batch=5, images=500))
        with driver.view:
            driver.train(2, 100, 10.0)
        # 1,400 images are left of the 1,500 that were, and 100 took ten seconds
        assert "epoch 3/4  600/1,000 images  training  10 images/s  left 0:02:20" in driver.text

    def test_nothing_left_to_do_is_said(self) -> None:
        driver = Driver(epochs=2, start=Progress(epoch=2))
        with driver.view:
            pass
        assert driver.text.splitlines()[-1] == "all 2 epochs done, after 0.0 s"


class TestLiveView:
    def test_a_terminal_gets_it(self) -> None:
        assert type(Driver(terminal=True).view) is LiveView

    def test_the_frame_shows_where_the_run_stands(self) -> None:
        driver = Driver(terminal=True)
        driver.train(0, 1000, 10.0)
        driver.finish(0)
        driver.view.on_checkpoint(Path("checkpoints/step-00000010"))
        driver.train(1, 250, 2.5)
        frame = driver.frame()
        assert frame[0].startswith("epoch 2 of 4 ")
        assert frame[0].endswith(" 250/1,000")
        assert frame[1].split() == [
            *("training", "100", "images/s"),
            *("left", "27.5", "s", "step-00000010"),
        ]
        text = "\n".join(line.rstrip() for line in frame)
        assert "valid % by layer, epoch 1, SIP window 1-3" in text
        assert " 0 \u2581  20.0   1 \u2583  43.3   2 \u2586  66.7   3 \u2588  90.0" in text
        assert re.search(r"^layers 0-1 \W+ 25%$", text, re.MULTILINE)
        assert re.search(r"^layers 2-3 \W+ 50%\*$", text, re.MULTILINE)
        assert frame[-1].split() == ["1", "1.5000", "91.25", "89.75", "1-3", "1,234", "12.5", "s"]

    @pytest.mark.parametrize("num_layers", [4, 17, 100])
    @pytest.mark.parametrize("stages", [1, 4, 17])
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (40, 6), (200, 60)])
    def test_the_frame_fits_the_terminal(
        self, num_layers: int, stages: int, width: int, height: int
    ) -> None:
        driver = Driver(terminal=True, width=width, height=height, stages=stages, epochs=99)
        for epoch in range(30):
            driver.train(epoch, 1000, 1.0)
            driver.finish(epoch, num_layers)
        frame = driver.frame()
        assert len(frame) < height
        assert max(map(len, frame)) <= width
        assert frame[0].startswith("epoch 30 of 99")
        assert frame[-1].split()[0] == "30"

    def test_on_80_by_24_nothing_is_left_out(self) -> None:
        driver = Driver(terminal=True, stages=17)
        driver.train(0, 1000, 1.0)
        driver.finish(0, num_layers=100)
        text = "\n".join(driver.frame())
        for part in ("epoch 1 of 4", "valid % by layer", "layers 32-33", " 90 ", "images/s"):
            assert part in text

    def test_the_header_stands_above_and_the_summary_below(self) -> None:
        driver = Driver(terminal=True, epochs=1)
        with driver.view:
            driver.train(0, 1000, 1.0)
            driver.finish(0)
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", driver.text)
        lines = [line.rstrip() for line in plain.splitlines()]
        assert lines[:2] == ["tinycnn on digits, seed 7", "run directory runs/first"]
        assert "1 epoch done, after 1.0 s: valid 91.25%, test 89.75%" in plain

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_the_terminal_is_given_back_after_an_error(self, error: type[BaseException]) -> None:
        driver = Driver(terminal=True)
        stdout = sys.stdout
        with contextlib.suppress(error), driver.view:
            driver.train(0, 100, 1.0)
            raise error
        assert driver.text.count("\x1b[?25l") == 1
        assert driver.text.rindex("\x1b[?25h") > driver.text.rindex("\x1b[?25l")
        assert sys.stdout is stdout
        assert "ended in epoch 1/4" in driver.text

    def test_a_warning_stands_above_the_display(self) -> None:
        driver = Driver(terminal=True)
        with driver.view:
            driver.view.on_warning("the disk is full")
        assert "warning: the disk is full" in driver.text


class TestObserve:
    @pytest.fixture
    def prepared(self, tmp_path: Path) -> Prepared:
        return prepare(TrainConfig(width=10, seed=3, run_dir=str(tmp_path / "run")), resume=False)

    @pytest.fixture
    def plan(self, prepared: Prepared) -> Plan:
        return Plan(
            architecture=prepared.architecture,
            cuts=(1,),
            replicas=(1, 1),
            resources=StageResources(cpus=1.0, gpus=0.0),
            costs=Costs(layer_s=(1.0,) * 4, boundary_s=(0.0,) * 4),
            precision="fp32",
            kernels=(Kernels(),) * 4,
        )

    def test_the_header_says_what_is_trained_and_where(
        self, prepared: Prepared, plan: Plan
    ) -> None:
        file = io.StringIO()
        with observe(prepared, plan, Console(file=file)):
            pass
        # 10*1*25 + 20*10*25 + 40*20*9 + 40*40*9 weights
        assert file.getvalue().splitlines()[:3] == [
            "tinycnn on digits: 4 layers, 26,850 weights, 1,397 images an epoch, seed 3",
            str(plan),
            f"run directory {prepared.directory.path}",
        ]

    def test_quietly_nothing_is_shown(
        self, prepared: Prepared, plan: Plan, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with observe_quietly(prepared, plan) as view:
            view.on_warning("unheard")
        assert capfd.readouterr() == ("", "")


class TestPieces:
    def test_durations(self) -> None:
        assert [duration(s) for s in (None, 0.04, 59.9, 61, 3725, 90000)] == [
            *("?", "0.0 s", "59.9 s"),
            *("0:01:01", "1:02:05", "1 day, 1:00:00"),
        ]

    def test_deep_networks_show_ten_layers_together(self) -> None:
        accuracy = [float(layer) for layer in range(100)]
        lines = [line.plain for line in layer_lines(accuracy, (3, 70), width=80)]
        assert len(lines) == 4
        assert max(map(len, lines)) <= 80
        assert " ".join(lines[0].split()[:3]) == "0 " + "\u2581" * 8 + "\u2582" * 2 + " 0-9"
        assert lines[3].split()[0] == "90"
        assert lines[3].split()[2] == "90-99"

    def test_equal_accuracies_are_shown(self) -> None:
        (line,) = layer_lines([10.0, 10.0], (0, 1), width=80)
        assert line.plain == " 0 \u2581  10.0   1 \u2581  10.0"

    def test_four_stages_stand_below_each_other_and_more_side_by_side(self) -> None:
        busy = np.full(17, 0.5)
        names = [f"layer {i}" for i in range(17)]
        assert len(stage_lines(names[:4], busy[:4], width=80)) == 4
        assert len(stage_lines(names, busy, width=80)) == 6
        assert len(stage_lines(names, busy, width=20)) == 17

    def test_a_name_that_is_too_long_is_cut_and_the_share_stays(self) -> None:
        names = ["layers 0-1 on gpu-1", "layers 2-3 on a-node-with-a-long-name"]
        for width, shown in (
            (80, names),
            (40, ["layers 0-1 on gpu-1   ", "layers 2-3 on a-node-\u2026 "]),
        ):
            console = Console(file=io.StringIO(), width=width)
            with console.capture() as capture:
                console.print(*stage_lines(names, np.array([0.5, 1.0]), width), sep="\n")
            lines = capture.get().splitlines()
            assert all(name in line for name, line in zip(shown, lines, strict=True))
            assert [line.split()[-1] for line in lines] == ["50%", "100%*"]

    def test_a_moving_rate_forgets(self) -> None:
        rate = MovingRate()
        assert rate.per_s() == 0.0
        rate.add(1000.0, 10.0)
        assert rate.per_s() == pytest.approx(100.0)
        for _ in range(100):
            rate.add(20.0, 1.0)
        assert rate.per_s() == pytest.approx(20.0, abs=0.5)
