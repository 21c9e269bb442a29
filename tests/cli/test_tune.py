"""python -m rayff.tune as a user has it: its flags and what is refused."""

import sys
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.tune.__main__ import main, read_options


class TestAMistake:
    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            ([], "name a search space, such as quick"),
            (["no/such.py"], r"no file no/such\.py"),
            (["quick", "--set", "lrr=1"], r"--set lrr=1: .*\(did you mean 'lr'\?\)"),
            (["quick", "--set", "learning_rate=1"], r".*\(did you mean 'lr'\?\)"),
            (["quick", "--set", "lr"], r"--set lr: give OPTION=VALUE"),
            (["quick", "--set", "epochs=two"], "--epochs must be a whole number, not 'two'"),
            (["quick", "--set", "lr=--help"], "--lr must be a number, not '--help'"),
            (["quick", "--set", "download=ja"], "download must be true or false, not 'ja'"),
            (["quick", "--set", "cuts=a"], "cuts must be whole numbers with commas between them"),
            (["quick", "--set", "optimizer=x"], "unknown optimizer 'x'; known are adamw"),
            (["quick", "--logger", "mlflw"], r"--logger mlflw: .*\(did you mean 'mlflow'\?\)"),
            (["quick", "--seeds", "0"], "--seeds must be 1 or more, not 0"),
            (["quick", "--scheduler", "pbt"], "but lr varies"),
            (["quick", "--search", "optuna"], r"lr is a grid: use tune\.choice"),
            (["--resume"], "--resume needs --run-dir"),
            (["--resume", "--run-dir", "."], r"holds no search \(it has no search\.json\)"),
            (
                ["quick", "--resume", "--run-dir", "x", "--epochs", "3"],
                "leave out SPACE, --epochs",
            ),
        ],
    )
    def test_is_one_sentence(
        self,
        args: list[str],
        sentence: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UserError, match=sentence) as error:
            main(args)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("args", "file", "sentence"),
        [
            (["quick"], "thesis.txt", "is not empty: add --resume"),
            (["quick"], "search.json", "holds a search: continue it with rayff tune --run-dir "),
            (["--resume"], "search.json", "is not the file of a search"),
        ],
    )
    def test_is_a_folder_with_something_else_in_it(
        self, args: list[str], file: str, sentence: str, tmp_path: Path
    ) -> None:
        (tmp_path / file).write_text("{}")
        with pytest.raises(UserError, match=sentence):
            main([*args, "--run-dir", str(tmp_path)])

    def test_is_optuna_that_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        args = ["learning_rate", "--search", "optuna", "--run-dir", str(tmp_path / "search")]
        with pytest.raises(UserError, match="pip install optuna$"):
            main(args)
        assert not (tmp_path / "search").exists()


def test_options_for_all_trials_have_the_types_of_a_training() -> None:
    texts = ["lr=1e-2", "stages=2", "cuts=1,3", "arch=vgg", "download=true", "lr-min=0"]
    expected = {"lr": 0.01, "stages": 2, "cuts": (1, 3)}
    expected |= {"arch": "vgg", "download": True, "lr_min": 0.0}
    assert read_options(texts) == expected
