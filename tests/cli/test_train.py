"""python -m rayff.train as a user has it: real processes, real signals, exit codes."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pyarrow.parquet as pq
import pytest

import rayff
from rayff import Trainer
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.evaluation import evaluate
from rayff.runs.metrics import read_metrics
from rayff.train import main
from tests.helpers.runs import train_locally
from tests.helpers.tiny_task import write_tiny_task

TINY = ["--arch", "tinycnn", "--width", "4", "--batch-size", "16", "--lr", "0.01"]
PATIENCE_S = 120


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


def start(*args: str, cwd: Path, module: str = "rayff.train") -> subprocess.Popen[str]:
    """Start a command as a user does: from its own folder, output through pipes."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(Path(rayff.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def layer_files(run_dir: Path) -> dict[str, bytes]:
    newest = max((run_dir / "checkpoints").iterdir())
    return {path.name: path.read_bytes() for path in newest.glob("layer-*")}


@pytest.mark.ray
@pytest.mark.slow
class TestAWholeRun:
    def test_leaves_everything_in_its_directory(self, task: str, tmp_path: Path) -> None:
        process = start(*TINY, "--task", task, "--epochs", "2", "--stages=2", cwd=tmp_path)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert err == ""
        assert "\x1b" not in out, "plain lines where the output is no terminal"
        assert re.search(r"^epoch 2/2  loss \d", out, re.MULTILINE)
        (run_dir,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"tinycnn-task\d-\d{8}-\d{6}", run_dir.name)

        left = {path.name for path in run_dir.iterdir()}
        assert left == {
            "architecture.json",
            "checkpoints",
            "config.json",
            "events.jsonl",
            "log.txt",
            "metrics.csv",
            "metrics.parquet",
            "model.safetensors",
            "run.json",
            "tensorboard",
            "timeline.parquet",
        }
        rows = pq.read_table(run_dir / "metrics.parquet").to_pylist()
        assert [row["epoch"] for row in rows] == [1, 2]
        assert all(len(row["layer_loss"]) == 4 for row in rows)
        assert all(len(row["stage_busy"]) == 2 for row in rows)
        assert json.loads((run_dir / "config.json").read_text())["lr_min"] == 0.008
        evaluation = evaluate(run_dir)
        assert evaluation.accuracy == pytest.approx(rows[-1]["test_accuracy"])

    def test_the_options_of_one_run_make_another(self, task: str, tmp_path: Path) -> None:
        options = {"arch": "tinycnn", "width": 4, "task": task, "epochs": 7, "batch-size": 16}
        (tmp_path / "options.json").write_text(json.dumps(options))
        args = ["--config", "options.json", "--epochs", "1", "--run_dir", "here"]
        process = start(*args, cwd=tmp_path)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        config = json.loads((tmp_path / "here" / "config.json").read_text())
        assert (config["width"], config["epochs"], config["batch_size"]) == (4, 1, 16)


@pytest.mark.ray
@pytest.mark.slow
class TestStopping:
    ARGS = (*TINY, "--epochs", "2", "--stages=2", "--chunk=1")

    @pytest.fixture(scope="class")
    @classmethod
    def long_task(cls, tmp_path_factory: pytest.TempPathFactory) -> str:
        return write_tiny_task(tmp_path_factory.mktemp("long_task"), num_train=640)

    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, long_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed")
        process = start(*cls.ARGS, "--task", long_task, "--run-dir", "run", cwd=folder)
        process.communicate(timeout=PATIENCE_S)
        return folder / "run"

    def test_leaves_a_checkpoint_and_no_process_and_resumes_with_the_same_bits(
        self, long_task: str, undisturbed: Path, tmp_path: Path
    ) -> None:
        process = start(*self.ARGS, "--task", long_task, "--run-dir", "stopped", cwd=tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("run directory"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert family, "Ray was started"
        time.sleep(0.3)
        stopped_at = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 128 + signal.SIGINT, err
        assert "warning: SIGINT: stopping" in out
        assert "Traceback" not in err
        assert time.monotonic() - stopped_at < 30
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        assert len(gone) == len(family)

        code = self.resumed_on_a_terminal_that_is_closed(tmp_path / "stopped")
        assert code == 128 + signal.SIGHUP
        sessions = json.loads((tmp_path / "stopped/run.json").read_text())["sessions"]
        reasons = [session["reason"] for session in sessions]
        assert reasons == ["stopped by SIGINT", "stopped by SIGHUP"]
        again = start("--run-dir", "stopped", "--resume", cwd=tmp_path)
        _, err = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, err
        assert layer_files(tmp_path / "stopped") == layer_files(undisturbed)
        assert len(layer_files(undisturbed)) == 4
        assert self.losses(tmp_path / "stopped") == self.losses(undisturbed)

    @staticmethod
    def resumed_on_a_terminal_that_is_closed(run_dir: Path) -> int:
        """Return the exit code of a run whose terminal is closed in its first chunks."""

        def times_running() -> int:
            return (run_dir / "events.jsonl").read_text().count('"running"')

        before = times_running()
        command = [sys.executable, "-m", "rayff.train", "--run-dir", str(run_dir), "--resume"]
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["PYTHONPATH"] = str(Path(rayff.__file__).parent.parent)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where the tests ignore it
            os.execv(command[0], command)
        while times_running() == before:
            if select.select([terminal], [], [], 0.05)[0]:
                os.read(terminal, 4096)
        family = psutil.Process(pid).children(recursive=True)
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        return os.waitstatus_to_exitcode(status)

    @staticmethod
    def losses(run_dir: Path) -> list[list[float]]:
        return pq.read_table(run_dir / "metrics.parquet")["layer_loss"].to_pylist()

    def test_without_a_warning_leaves_no_process_and_resumes_with_the_same_bits(
        self, long_task: str, undisturbed: Path, tmp_path: Path
    ) -> None:
        """The driver is killed in the second epoch."""
        process = start(*self.ARGS, "--task", long_task, "--run-dir", "killed", cwd=tmp_path)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("checkpoint step-"):
                break
        family = psutil.Process(process.pid).children(recursive=True)
        stages = [child for child in family if "StageActor" in " ".join(child.cmdline())]
        assert stages
        process.kill()
        process.wait(10)
        _, alive = psutil.wait_procs(stages, timeout=10)
        assert not alive
        again = start("--run-dir", "killed", "--resume", cwd=tmp_path)
        _, err = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 0, err
        assert layer_files(tmp_path / "killed") == layer_files(undisturbed)
        assert self.losses(tmp_path / "killed") == self.losses(undisturbed)
        _, alive = psutil.wait_procs(family, timeout=90)  # Ray's agents look up now and then
        assert not alive


class TestMistakes:
    """Each is one sentence that names the value and the remedy, and nothing is left behind."""

    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            (["--arch", "resnt"], r"unknown architecture 'resnt' \(did you mean 'resnet'\?\)"),
            (["--task", "cifer10"], r"no task 'cifer10' \(did you mean 'cifar10'\?\)"),
            (["--task", "mnist"], r"--data-dir"),
            (["--task", "mnist", "--data-dir", "nowhere"], r"nowhere"),
            (["--width", "7"], r"7 channels of layer 0 do not split into 10.*--width 10"),
            (["--stages", "5"], r"--stages 5: the network has 4 layers.*--stages 4 or fewer"),
            (["--cuts", "3,1"], r"--cuts 3,1:.*ascending"),
            (["--cuts", "2,4"], r"--cuts 2,4: the network has 4 layers.*at most 3"),
            # before the data is looked for
            (["--task=mnist", "--cuts=2", "--stages=3"], r"makes 2 stages, but --stages says 3"),
            (["--task=mnist", "--backend=local", "--transport=gloo"], r"gloo is for actors"),
            (["--task=mnist", "--freeze=3-1"], r"3-1: a range begins with its lower number"),
            (["--batch-size", "2000"], r"--batch-size 2000 is larger than the 1,397"),
            (["--lr", "-1"], r"--lr must be a number of 0 or more, not -1"),
            (["--lr", "nan"], r"--lr must be a number of 0 or more, not nan"),
            (["--lr-min", "1"], r"--lr-min 1.0 is above the --lr 0.012 .*: use a lower --lr-min"),
            (["--lr-steps", "0.5"], r"--lr-steps 0.5 is for --lr-schedule step"),
            (["--lr-schedule", "step", "--lr-steps", "3,5"], r"--lr-steps 3.0,5.0: give shares"),
            (["--warmup-epochs", "7"], r"--warmup-epochs 7 is longer than the run of 6 epochs"),
            (["--clip-norm", "0"], r"--clip-norm must be a number above 0, not 0"),
            (["--lr-scale", "-1"], r"--lr-scale must be a number above 0, not -1"),
            (["--method", "bp", "--lr-scale", "2"], r"--lr-scale 2.0 is for Forward-Forward"),
            (["--dropout", "1"], r"--dropout must be from 0 to 255"),
            (["--epochs", "0"], r"--epochs must be a number of 1 or more, not 0"),
            (["--resume"], r"--resume needs --run-dir"),
            (["--run-dir", "nowhere", "--resume"], r"no run directory nowhere"),
            (["--config", "nowhere.json"], r"nowhere.json cannot be read"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_one_sentence(
        self,
        args: list[str],
        sentence: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=sentence):
            main(args)
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_with_something_in_it_is_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match=r"is not empty: add --resume"):
            main(["--run-dir", str(tmp_path)])
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_resumed_run_stays_what_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"width": 10, "lr": 0.01}))
        with pytest.raises(UserError, match=r"--width 20: the run was made with 10"):
            main(["--run-dir", str(tmp_path), "--resume", "--width", "20"])
        (tmp_path / "config.json").write_text(json.dumps({"stream": True}))
        with pytest.raises(UserError, match=r"--no-stream: the run streams its images"):
            main(["--run-dir", str(tmp_path), "--resume", "--no-stream"])

    def test_options_in_a_file_are_checked_too(self, tmp_path: Path) -> None:
        file = tmp_path / "options.json"
        for text, sentence in (
            ('{"batchsize": 3}', r"unknown option 'batchsize' \(did you mean 'batch_size'\?\)"),
            ('{"epochs": "many"}', r"epochs must be of type int"),
            ("[1]", r"must be a JSON object"),
            ("{", r"is not JSON"),
        ):
            file.write_text(text)
            with pytest.raises(UserError, match=sentence):
                main(["--config", str(file)])

    def test_ends_the_program_with_code_2_and_no_traceback(self, tmp_path: Path) -> None:
        process = start("--arch", "resnt", cwd=tmp_path)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2
        assert all(line.startswith("loading torch") for line in out.splitlines())
        assert re.fullmatch(r"error: --arch: unknown architecture 'resnt' [^\n]*\n", err)

    @pytest.mark.ray
    def test_a_cluster_that_does_not_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        with pytest.raises(UserError, match=r"cluster at 127.0.0.1:1 \(RAY_ADDRESS\) did not"):
            main(["--width", "10", "--run-dir", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()


class TestACompleteRunThatIsResumed:
    """No Ray is started: there is nothing left to do."""

    OPTIONS: ClassVar[dict[str, Any]] = {
        "arch": "tinycnn",
        "width": 4,
        "batch_size": 16,
        "lr": 0.01,
        "epochs": 2,
    }

    @pytest.fixture
    def run_dir(self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def begin() -> None:
            raise RuntimeError("Ray is started")

        monkeypatch.setattr("rayff.distributed.controller.ray_session", begin)
        train_locally(TrainConfig(**self.OPTIONS, task=task, run_dir=str(tmp_path / "run")))
        return tmp_path / "run"

    def test_says_its_accuracy(self, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        assert main(["--run-dir", str(run_dir), "--resume"]) == 0
        out = capsys.readouterr().out
        last = read_metrics(run_dir / "metrics.parquet")[-1]
        assert out == f"the run is complete: {last.reached}; to train longer, raise --epochs\n"
        assert f"test {last.test_accuracy:.2f}%" in out
        assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}

    def test_gives_its_records(self, run_dir: Path, task: str) -> None:
        config = TrainConfig(**self.OPTIONS, task=task, run_dir=str(run_dir))
        result = Trainer(config, quiet=True).fit(resume=True)
        assert [record.epoch for record in result.metrics] == [1, 2]
        assert (result.run_dir, result.stopped_by, result.complete) == (run_dir, None, True)

    def test_gets_its_model_anew(self, run_dir: Path) -> None:
        """It is missing, damaged or old where the process ended behind the checkpoint."""
        model = run_dir / "model.safetensors"
        whole = model.read_bytes()
        model.write_bytes(bytes(len(whole)))
        assert main(["--run-dir", str(run_dir), "--resume"]) == 0
        assert model.read_bytes() == whole

    def test_goes_on_where_an_epoch_has_no_row(self, run_dir: Path) -> None:
        (run_dir / "metrics.parquet").unlink()
        with pytest.raises(RuntimeError, match="Ray is started"):
            main(["--run-dir", str(run_dir), "--resume"])
