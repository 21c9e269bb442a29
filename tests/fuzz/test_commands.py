"""The commands, given files that are broken: one line, exit code 2, and no traceback."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.cli import run_command
from rayff.learning.readout import Temperatures
from rayff.partition.device_profile import profile_json
from tests.fuzz.checks import cases
from tests.fuzz.mutations import broken_bytes, broken_json
from tests.helpers.colour_run import write_image, write_run, write_task
from tests.helpers.mistakes import tree
from tests.helpers.profiles import device_profile
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.tiny_task import tiny_config, write_tiny_task

Main = Callable[[Sequence[str]], int]


class RayWouldStart(Exception):
    """The files are whole; what follows needs a cluster."""


def command(name: str) -> Main:
    __import__(f"rayff.{name}")
    main: Main = sys.modules[f"rayff.{name}"].main
    return main


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise RayWouldStart

    monkeypatch.setattr("rayff.distributed.controller.train_on_cluster", refuse)


def run(
    name: str, *args: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> tuple[int | None, str]:
    """Return the exit code, or None where Ray would start, and what stands on the error stream."""
    before = tree(folder)
    code: Any = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *args])
        try:
            run_command(command(name))
        except SystemExit as exit_:
            code = exit_.code
        except RayWouldStart:
            pass
    captured = capsys.readouterr()
    assert tree(folder) == before
    assert "Traceback" not in captured.out + captured.err
    assert code in (None, 0, 2) or (name, code) == ("predict", 1), "an image that is none"
    if code == 2:
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert captured.err.rstrip("\n").isprintable()
    return code, captured.err


class TestTrain:
    @pytest.fixture(scope="class")
    @classmethod
    def stopped(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run directory with a checkpoint and the metrics of an epoch."""
        folder = tmp_path_factory.mktemp("train")
        task = write_tiny_task(folder / "task", num_train=8)
        config = tiny_config(task, folder / "run", batch_size=8, rule="plain")
        train_locally(config, StopAfter(4))
        return folder / "run"

    @cases(60)
    @given(data=st.data())
    def test_on_a_broken_run_directory(
        self,
        stopped: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        data: st.DataObject,
    ) -> None:
        path = tmp_path / "run"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(stopped, path)
        files = [
            *path.glob("*.json"),
            *path.glob("metrics.parquet"),
            *path.rglob("manifest.json"),
            *path.rglob("layer-*"),
        ]
        broken = data.draw(st.sampled_from(sorted(files)))
        broken.write_bytes(data.draw(broken_bytes(broken.read_bytes())))
        run("train", "--resume", "--run-dir", str(path), capsys=capsys, folder=tmp_path)

    def test_on_whole_files_goes_on_to_ray(
        self, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = stopped / "config.json"
        for args in (["--config", str(path)], ["--resume", "--run-dir", str(stopped)]):
            assert run("train", *args, capsys=capsys, folder=tmp_path) == (None, "")


class TestPlan:
    @cases(60)
    @given(data=st.data(), network=st.sampled_from(["tinycnn", "resnet"]))
    def test_on_a_broken_profile(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        data: st.DataObject,
        network: str,
    ) -> None:
        path = tmp_path / "profile.json"
        steps = ({"network": "resnet", "batch_size": 8, "step_s": 0.1, "source": "measured"},)
        rates = {"operations_per_s": 1e12, "bytes_per_s": 1e9}
        whole = json.loads(profile_json(device_profile())) | {
            "roofline": {**rates, "steps": steps}
        }
        path.write_text(json.dumps(data.draw(broken_json(whole))))
        options = ["--arch", network, "--batch-size", "8", "--devices", "1,12", "--mtbf", "9"]
        run("plan", *options, "--simulate", str(path), capsys=capsys, folder=tmp_path)


class TestATrainedNetwork:
    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run directory, the data beside it, and an image."""
        folder = tmp_path_factory.mktemp("trained")
        temperatures = Temperatures(window=(1.0,), last=1.0)
        write_run(folder / "run", write_task(folder / "colours"), temperatures=temperatures)
        write_image(folder / "red.png", 0)
        return folder

    @cases(80)
    @given(data=st.data(), name=st.sampled_from(["evaluate", "predict"]))
    def test_on_broken_files(
        self,
        trained: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        data: st.DataObject,
        name: str,
    ) -> None:
        folder = tmp_path / "all"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trained, folder)
        config = folder / "run" / "config.json"
        config.write_text(config.read_text().replace(str(trained), str(folder)))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = data.draw(st.sampled_from(files))
        if path.suffix == ".json" and data.draw(st.booleans()):
            path.write_text(json.dumps(data.draw(broken_json(json.loads(path.read_text())))))
        else:
            path.write_bytes(data.draw(broken_bytes(path.read_bytes())))
        more = [str(folder / "red.png")] if name == "predict" else []
        run(name, str(folder / "run"), *more, capsys=capsys, folder=tmp_path)

    def test_on_whole_files(self, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path, image = str(trained / "run"), str(trained / "red.png")
        assert run("evaluate", path, capsys=capsys, folder=trained) == (0, "")
        assert run("predict", path, image, capsys=capsys, folder=trained) == (0, "")
