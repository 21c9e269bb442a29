"""The run directory: its name and configuration, and the folders that it refuses."""

import json
import subprocess
from pathlib import Path

import pytest

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.runs import files
from rayff.runs.run_directory import RunDirectory, read_config
from tests.helpers.mistakes import refused
from tests.runs.checkpoints import names
from tests.runs.failing_disk import INTERRUPTIONS, interrupted, small_disk
from tests.runs.models import CONFIG


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(CONFIG)
    return directory


class TestTheName:
    def test_is_that_of_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert RunDirectory(Path("runs/first")).name == "first"
        monkeypatch.chdir(tmp_path)
        assert RunDirectory(Path(".")).name == tmp_path.name

    def test_of_a_trial_begins_with_its_search(self) -> None:
        assert RunDirectory(Path("runs/quick/trials/trial-00003")).name == "quick/trial-00003"


class TestTheConfiguration:
    def test_is_read_back(self, directory: RunDirectory) -> None:
        assert directory.read_config() == CONFIG
        assert names(directory.path) == ["config.json"]

    def test_names_every_option_but_the_folder(self, directory: RunDirectory) -> None:
        config = json.loads((directory.path / "config.json").read_text())
        assert set(config) == set(CONFIG.to_dict()) - {"run_dir"}
        assert (config["lr"], config["cuts"], config["seed"]) == (0.25, [1, 3], 9)
        directory.create(TrainConfig(run_dir=str(directory.path)))
        assert str(directory.path) not in (directory.path / "config.json").read_text()
        assert directory.read_config() == TrainConfig()

    def test_is_written_over_the_old(self, directory: RunDirectory) -> None:
        directory.create(TrainConfig(seed=1))
        assert directory.read_config().seed == 1

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            ("", "is not JSON"),
            ("[]", "must be a JSON object"),
            ('{"sed": 1}', "unknown option 'sed'.*did you mean 'seed'"),
            ('{"seed": "1"}', "seed must be of type int, not '1'"),
            ('{"lr": NaN}', "--lr must be"),
        ],
    )
    def test_that_is_damaged_is_refused(
        self, directory: RunDirectory, content: str, match: str
    ) -> None:
        (directory.path / "config.json").write_text(content)
        with refused(match):
            directory.read_config()

    def test_that_is_no_file_is_refused(self, tmp_path: Path) -> None:
        with refused(f"{tmp_path}/none.json cannot be read: No such file"):
            read_config(tmp_path / "none.json")
        with refused("cannot be read: Is a directory"):
            read_config(tmp_path)
        with refused(f"there is no run directory {tmp_path}/none"):
            RunDirectory(tmp_path / "none").read_config()

    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_whose_write_is_cut_short_leaves_the_old(
        self, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_durably", interrupted(0, error))
            with pytest.raises((UserError, KeyboardInterrupt)):
                directory.create(TrainConfig(seed=1))
        assert directory.read_config() == CONFIG
        assert names(directory.path) == ["config.json"]


class TestAFolder:
    def test_that_is_new_or_empty_is_accepted(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path / "a" / "b").check_new()
        assert not (tmp_path / "a").exists()
        (tmp_path / ".config.json.partial").touch()  # of a write that was interrupted
        RunDirectory(tmp_path).check_new()
        RunDirectory(tmp_path / "a" / "b").create(CONFIG)
        assert (tmp_path / "a" / "b" / "config.json").exists()

    @pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
    def test_that_holds_something_is_refused(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with refused("is not empty: add --resume .* another folder", tmp_path):
            RunDirectory(tmp_path).check_new()

    def test_that_holds_a_search_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "search.json").touch()
        with refused(f"holds a search: .* --run-dir {tmp_path} --resume, or name another"):
            RunDirectory(tmp_path).check_new()

    def test_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("mine")
        with refused(f"--run-dir {path} is a file; name a folder", tmp_path):
            RunDirectory(path).check_new()
        with refused(f"--run-dir {path} cannot be written.*another", tmp_path):
            RunDirectory(path).create(CONFIG)
        with refused("cannot be written: Not a directory; name another", tmp_path):
            RunDirectory(path / "run").create(CONFIG)

    def test_whose_name_no_disk_takes_is_refused(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path / ("x" * 300))
        with refused("--run-dir .* name another folder"):
            directory.check_new()
        with refused("--run-dir .* name another folder"):
            directory.create(CONFIG)

    def test_on_a_read_only_disk_is_refused(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "64k") as disk:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            with refused("cannot be written: Read-only.*name another"):
                RunDirectory(disk / "run").create(CONFIG)
