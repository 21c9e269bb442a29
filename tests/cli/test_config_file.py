"""--config and --print-config: options in YAML and JSON files."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.config_file import as_yaml, read_options
from rayff.train import main, read_flags


def read(text: str, folder: Path, name: str = "options.yaml") -> TrainConfig:
    path = folder / name
    path.write_text(text)
    return read_options(path)


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    text = """\
    # a run
    arch: resnet
    task: cifar10
    lr: 1e-3          # a number without a point
    lr-min: 5.0E-5
    weight_decay: 0
    elastic: 2:4      # no sexagesimal number
    replicas: null
    logger: none
    download: true
    run_dir: no       # no boolean
    data-dir: 2026-01-31
    """
    assert read(text, tmp_path) == TrainConfig(
        arch="resnet",
        task="cifar10",
        lr=1e-3,
        lr_min=5e-5,
        weight_decay=0,
        elastic="2:4",
        logger="none",
        download=True,
        run_dir="no",
        data_dir="2026-01-31",
    )


@pytest.mark.parametrize("cuts", ["[5, 9, 13]", "\n- 5\n- 9\n- 13"])
def test_lists_are_read_in_both_styles(cuts: str, tmp_path: Path) -> None:
    assert read(f"cuts: {cuts}", tmp_path).cuts == (5, 9, 13)


def test_json_is_read_as_json(tmp_path: Path) -> None:
    run = TrainConfig(arch="vgg", lr=1e-05, cuts=(2, 3), data_dir="\U0001f600 data")
    text = json.dumps(run.to_dict(), indent="\t")
    assert read(text, tmp_path, "config.json") == run


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("epochs: many", "epochs must be of type int"),
        ("epochs: '3'", "epochs must be of type int"),
        ("learning_rate: 0.1", r"unknown option 'learning_rate' \(did you mean 'lr'\?\)"),
        ("- epochs", "must be a .* object with the options of a run"),
        ("", "must be a .* object with the options of a run"),
        ("epochs: [", "options.yaml is not YAML: "),
        ("epochs: !!python/object:os.system x", "options.yaml is not YAML: "),
        ("epochs: !!timestamp x", "options.yaml is not YAML: "),
        ("epochs: " + 5000 * "1", "options.yaml is not YAML: "),
        ("a\x00b", "options.yaml is not YAML: "),
        ("[" * 2000, "options.yaml is not YAML: "),
        ("epochs: 0", "--epochs must be a number of 1 or more, not 0"),
    ],
)
def test_a_mistake_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)


@given(content=st.binary() | st.text(":-[]{}!&*#|>'\"%@\\n 1aeo").map(str.encode))
def test_any_bytes_are_read_or_refused_by_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:  # none of these letters make an option
        read_options(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_options(tmp_path)


texts = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(
    run_dir=texts
    | st.sampled_from(["no", "1e3", "1e-3", "2:4", "~", "null", "007", "1_0", "0x1"]),
    data_dir=texts,
    lr=st.none() | st.floats(0, 1e10),
    cuts=st.none() | st.lists(st.integers(1, 99), min_size=1).map(tuple),
    download=st.booleans(),
)
def test_what_is_printed_is_read_again(tmp_path_factory: pytest.TempPathFactory, **fields) -> None:
    run = TrainConfig(**fields)
    assert read(as_yaml(run), tmp_path_factory.getbasetemp()) == run


class TestPrintConfig:
    ARGS = ("--arch", "vgg", "--cuts", "5,9", "--lr=1e-5")

    def printed(self, capsys: pytest.CaptureFixture[str], *args: str) -> str:
        assert main(["--print-config", *args]) == 0
        return capsys.readouterr().out

    def test_fills_in_the_defaults_of_task_and_architecture(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = yaml.safe_load(self.printed(capsys, *self.ARGS))
        assert set(options) == {field.name for field in dataclasses.fields(TrainConfig)}
        expected = {"optimizer": "adam", "weight_decay": 0.0, "cuts": [5, 9], "lr": 1e-5}
        assert {name: options[name] for name in expected} == expected

    def test_is_read_by_config(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        path = tmp_path / "vgg.yaml"
        path.write_text(self.printed(capsys, *self.ARGS))
        assert self.printed(capsys, "--config", str(path)) == path.read_text()
        command = read_flags(["--config", str(path), "--stages", "2", "--seed", "7"])
        assert (command.stages, command.cuts, command.seed, command.lr) == (2, None, 7, 1e-5)

    def test_refuses_what_training_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="there is no task 'cifer10'"):
            main(["--print-config", "--task", "cifer10"])
