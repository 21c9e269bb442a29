"""python -m rayff.evaluate, on a run made by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.evaluate import main
from tests.helpers.colour_run import write_run, write_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    return write_run(folder / "run", write_task(folder / "colours"))


def test_prints_accuracies_and_confusion(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == ("accuracy 85.71% on 7 test images, with the goodness of layer 0 summed")
    assert ["0", "85.71%", "*"] in [line.split() for line in lines]
    assert ["1", "14.29%"] in [line.split() for line in lines]
    assert ["1", "green", "1", "2", "."] in [line.split() for line in lines]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("flag", ["--no-prune", "--no_prune"])
def test_no_prune_sums_all_layers(
    run: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(run), flag, "--split", "valid", "--batch_size", "2"])
    text = capsys.readouterr().out
    assert text.startswith(
        "accuracy 0.00% on 3 valid images, with the goodness of layers 0-3 summed"
    )


def test_a_limit_bounds_the_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--limit", "2"])
    assert " on 2 test images" in capsys.readouterr().out
    with pytest.raises(UserError, match="--limit must be a number of 1 or more, not 0"):
        main([str(run), "--limit", "0"])


def test_saves_three_tables(run: Path, tmp_path: Path) -> None:
    main([str(run), "--save", str(tmp_path / "new" / "tables")])
    saved = {path.name: path.read_text() for path in (tmp_path / "new" / "tables").iterdir()}
    assert saved == {
        "accuracy.csv": (
            f"split,images,window_first,window_last,accuracy\ntest,7,0,0,{100 * (6 / 7)}\n"
        ),
        "layer_accuracy.csv": (
            f"layer,accuracy\n0,{100 * (6 / 7)}\n1,{100 * (1 / 7)}\n2,{100 * (6 / 7)}\n"
            f"3,{100 * (3 / 7)}\n"
        ),
        "confusion.csv": "true_class,red,green,blue\nred,3,0,0\ngreen,1,2,0\nblue,0,0,1\n",
    }


def test_a_folder_that_cannot_be_written_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--save .* cannot be written"):
        main([str(run), "--save", str(tmp_path / "file")])


def test_mistakes_are_sentences(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run directory"):
        main([str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="is no run directory: it has no config.json"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match="--batch-size must be 1 or more, not 0"):
        main([str(run), "--batch-size", "0"])


def test_a_run_without_a_model_is_said(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="holds no trained model yet"):
        main([str(tmp_path)])


def test_a_damaged_model_is_said(run: Path, tmp_path: Path) -> None:
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(UserError, match="the model in .* is damaged"):
        main([str(tmp_path)])
    (tmp_path / "model.safetensors").write_bytes(weights)
    description = json.loads((tmp_path / "architecture.json").read_text())
    description["architecture"]["layers"].pop()
    (tmp_path / "architecture.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"^the model in .* is damaged: [^\n]*$"):
        main([str(tmp_path)])


def test_a_mistake_ends_the_program_with_code_2_and_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayff.evaluate", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"error: there is no run directory .*nowhere\n", done.stderr)
