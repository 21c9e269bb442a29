"""python -m rayff.evaluate, on a run made by hand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.evaluate import main
from rayff.learning.readout import READOUTS, Temperatures
from tests.helpers.colour_run import fusion_of_layer, write_run, write_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    return write_run(folder / "run", write_task(folder / "colours"))


def test_prints_accuracies_and_confusion(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy 85.71% on 7 test images with the readout window"
    # 85.71% of exp(sqrt(5)/2) / (exp(sqrt(5)/2) + 2), and 42.86% of exp(0.2) / (exp(0.2) + 2)
    table = [line.split() for line in lines]
    assert ["readout", "of", "accuracy", "probability", "error", "temperature"] in table
    assert ["window", "layer", "0", "85.71", "60.46", "25.25", "1"] in table
    assert ["last", "layer", "3", "42.86", "37.91", "4.94", "1"] in table
    assert (
        "the model has no temperatures: its probabilities are those of the plain logits" in lines
    )
    assert ["0", "85.71%", "*"] in [line.split() for line in lines]
    assert ["1", "14.29%"] in [line.split() for line in lines]
    assert ["1", "green", "1", "2", "."] in [line.split() for line in lines]
    assert "\x1b" not in "".join(lines)


@pytest.mark.parametrize("name", ["last", "fusion"])
def test_a_readout_is_chosen_by_its_name(
    run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task = run.parent / "colours"
    temperatures = Temperatures(window=(2.0,), last=0.5)
    fused = write_run(tmp_path / "run", task, temperatures=temperatures, fusion=fusion_of_layer(1))
    main([str(fused), "--readout", name, "--split", "valid", "--batch_size", "2"])
    lines = capsys.readouterr().out.splitlines()
    accuracy = {"last": "33.33", "fusion": "0.00"}
    assert lines[0] == f"accuracy {accuracy[name]}% on 3 valid images with the readout {name}"
    table = [line.split() for line in lines]
    shown = {row[0]: (row[2], row[3], row[-1]) for row in table if row and row[0] in READOUTS}
    assert shown == {
        "window": ("0", "100.00", "2"),
        "last": ("3", "33.33", "0.5"),
        "fusion": ("0-3", "0.00", "1"),
    }
    assert "no temperatures" not in "".join(lines)


def test_a_fusion_that_was_not_fitted_is_said(run: Path) -> None:
    with pytest.raises(UserError, match="this model has no readout fusion"):
        main([str(run), "--readout", "fusion"])


def test_a_limit_bounds_the_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--limit", "2"])
    assert " on 2 test images" in capsys.readouterr().out
    with pytest.raises(UserError, match="--limit must be a number of 1 or more, not 0"):
        main([str(run), "--limit", "0"])


def test_saves_three_tables(run: Path, tmp_path: Path) -> None:
    main([str(run), "--save", str(tmp_path / "new" / "tables")])
    saved = {path.name: path.read_text() for path in (tmp_path / "new" / "tables").iterdir()}
    head, *rows = saved.pop("accuracy.csv").splitlines()
    assert head == (
        "split,images,readout,first_layer,last_layer,accuracy,mean_probability,"
        "calibration_error,temperature"
    )
    cells = [row.split(",") for row in rows]
    assert [row[:5] for row in cells] == [
        ["test", "7", "window", "0", "0"],
        ["test", "7", "last", "3", "3"],
    ]
    assert [float(cell) for cell in cells[0][5:]] == pytest.approx(
        [600 / 7, 60.465, 25.249, 1.0], abs=0.01
    )
    assert saved == {
        "layer_accuracy.csv": (
            f"layer,accuracy\n0,{100 * (6 / 7)}\n1,{100 * (1 / 7)}\n2,{100 * (6 / 7)}\n"
            f"3,{100 * (3 / 7)}\n"
        ),
        "confusion.csv": "true_class,red,green,blue\nred,3,0,0\ngreen,1,2,0\nblue,0,0,1\n",
    }


def test_prints_json_for_programs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--json", "--save", str(tmp_path / "tables")]) == 0
    found = json.loads(capsys.readouterr().out)
    readouts = found.pop("readouts")
    assert readouts["window"] == {
        "first_layer": 0,
        "last_layer": 0,
        "accuracy": pytest.approx(600 / 7),
        "mean_probability": pytest.approx(60.465, abs=0.01),
        "calibration_error": pytest.approx(25.249, abs=0.01),
        "temperature": 1.0,
    }
    assert readouts["last"]["last_layer"] == 3
    counts = {"red": (3, 4, 3), "green": (3, 2, 2), "blue": (1, 1, 1)}
    assert found == {
        **{"run": str(run), "split": "test", "images": 7, "readout": "window"},
        **{"accuracy": pytest.approx(600 / 7), "calibrated": False},
        "layer_accuracy": pytest.approx([600 / 7, 100 / 7, 600 / 7, 300 / 7]),
        "classes": [
            {
                **{"class": name, "images": images, "predicted": predicted, "correct": correct},
                "accuracy": pytest.approx(100 * correct / images),
            }
            for name, (images, predicted, correct) in counts.items()
        ],
    }
    assert (tmp_path / "tables" / "confusion.csv").exists()


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
