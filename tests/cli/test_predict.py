"""python -m rayff.predict, on a run made by hand."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.learning.readout import Temperatures
from rayff.predict import main
from tests.helpers.colour_run import fusion_of_layer, write_image, write_run, write_task

ROOT = math.sqrt(5) / 2
"""Goodness that layer 0 gives the right class; all its others are 0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    task = write_task(folder / "colours")
    write_run(folder / "shallow", task, window=(0, 0))
    write_run(folder / "deep", task, window=(0, 2))
    for colour, name in enumerate(("r", "g", "b")):
        write_image(folder / f"{name}.png", colour)
    (folder / "text.png").write_text("no image")
    return folder


def answers(capsys: pytest.CaptureFixture[str], *args: object) -> list[tuple[str, float, int]]:
    """Run with --json and return (class, probability, layers used) of each image."""
    assert main([*map(str, args), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(answer["layers"] == 4 for answer in found)
    return [(a["class_name"], a["probability"], a["layers_used"]) for a in found]


def softmax(*logits: float) -> list[float]:
    total = sum(map(math.exp, logits))
    return [math.exp(logit) / total for logit in logits]


def test_names_the_class_with_its_probability(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [folder / name for name in ("g.png", "r.png", "b.png")]
    found = answers(capsys, folder / "shallow", *files)
    probability = pytest.approx(softmax(ROOT, 0, 0)[0], abs=1e-4)
    assert found == [(name, probability, 1) for name in ("green", "red", "blue")]


def test_without_early_exit_the_whole_window_is_summed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = answers(capsys, folder / "deep", folder / "r.png")
    assert found == [("green", pytest.approx(softmax(2, ROOT + 0.25, 0)[0], abs=1e-4), 3)]


@pytest.mark.parametrize(
    ("threshold", "name", "logits", "layers"),
    [
        (0.60, "red", (ROOT, 0, 0), 1),  # 0.605 after layer 0
        (0.62, "green", (2, ROOT, 0), 2),  # 0.645 after layer 1
        (1.00, "green", (2, ROOT + 0.25, 0), 3),  # never: the window ends
    ],
)
def test_early_exit_stops_at_the_first_layer_that_is_sure(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    threshold: float,
    name: str,
    logits: tuple[float, float, float],
    layers: int,
) -> None:
    found = answers(capsys, folder / "deep", folder / "r.png", "--early-exit", threshold)
    assert found == [(name, pytest.approx(softmax(*logits)[0], abs=1e-4), layers)]


def test_probabilities_are_calibrated(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    temperatures = Temperatures(window=(0.5, 4.0), last=0.1)
    fusion = fusion_of_layer(2, factor=8.0)
    run = write_run(
        tmp_path / "run", folder / "colours", (0, 1), temperatures=temperatures, fusion=fusion
    )
    red = folder / "r.png"
    for flags, name, logits, layers in (
        ((), "green", (2 / 4, ROOT / 4, 0), 2),
        (("--early-exit", 0.8), "red", (2 * ROOT, 0, 0), 1),  # 0.824 after layer 0
        (("--early-exit", 0.83), "green", (2 / 4, ROOT / 4, 0), 2),
        (("--readout", "last"), "red", (0.2 / 0.1, 0, 0), 4),
        (("--readout", "fusion"), "red", (8 * 0.25, 0, 0), 4),
    ):
        found = answers(capsys, run, red, *flags)
        assert found == [(name, pytest.approx(softmax(*logits)[0], abs=1e-4), layers)]


def test_a_model_without_temperatures_is_said_aside(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(folder / "shallow"), str(folder / "r.png")])
    note = "note: the model has no temperatures, so its probabilities are uncalibrated\n"
    assert capsys.readouterr().err == note


def test_plain_lines_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder / "shallow"), str(folder / "b.png"), str(folder / "g.png")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    probability = pytest.approx(softmax(ROOT, 0, 0)[0], abs=1e-4)
    assert [(line[0], line[1], float(line[2]), *line[3:]) for line in lines] == [
        (str(folder / f"{name[0]}.png"), name, probability, "1", "of", "4", "layers")
        for name in ("blue", "green")
    ]


def test_folders_and_patterns_are_classified_in_order_each_file_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b.png", "a.PNG", "deep/red.png", ".hidden.png", ".cache/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / "r.png").read_bytes())
    write_image(tmp_path / "[1].png", 1)

    def files(*names: str) -> list[str]:
        assert main([str(folder / "shallow"), *names, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        return [str(Path(answer["file"]).relative_to(tmp_path)) for answer in found]

    inside = ["[1].png", "a.PNG", "b.png", "deep/red.png"]
    assert files(str(tmp_path)) == inside
    assert files(f"{tmp_path}/b.png", str(tmp_path), f"{tmp_path}/./b.png") == [
        *("b.png", "[1].png", "a.PNG", "deep/red.png")
    ]
    assert files(f"{tmp_path}/*.png") == ["[1].png", "b.png"]
    assert files(f"{tmp_path}/**/*.png") == ["[1].png", "b.png", "deep/red.png"]
    assert files(f"{tmp_path}/d*") == ["deep/red.png"]
    assert files(f"{tmp_path}/[1].png") == ["[1].png"], "a file of that name comes first"


class TestMistakes:
    @pytest.mark.parametrize("threshold", ["0", "-0.5", "1.01", "nan"])
    def test_a_threshold_that_is_no_probability(self, folder: Path, threshold: str) -> None:
        args = [str(folder / "shallow"), str(folder / "r.png"), f"--early_exit={threshold}"]
        with pytest.raises(UserError, match="--early-exit .* is no probability"):
            main(args)

    @pytest.mark.parametrize("name", ["last", "fusion"])
    def test_early_exit_with_another_readout(self, folder: Path, name: str) -> None:
        args = [str(folder / "shallow"), str(folder / "r.png"), "--early-exit=0.9"]
        with pytest.raises(UserError, match=f"--early-exit goes with --readout window.* {name}"):
            main([*args, f"--readout={name}"])

    def test_a_fusion_that_was_not_fitted(self, folder: Path) -> None:
        with pytest.raises(UserError, match="this model has no readout fusion"):
            main([str(folder / "shallow"), str(folder / "r.png"), "--readout=fusion"])

    def test_no_images(self, folder: Path) -> None:
        with pytest.raises(UserError, match="no images are given"):
            main([str(folder / "shallow")])

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("text.png", "text.png is not an image that can be decoded"),
            ("missing.png", "cannot read the image"),
            ("nothing-*.png", "no file matches"),
            ("shallow", "shallow holds no image files: their names end in .avif, "),
        ],
    )
    def test_a_file_that_is_no_image_is_named_behind_the_others(
        self, folder: Path, name: str, problem: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [str(folder / each) for each in ("r.png", name, "b.png")]
        assert main([str(folder / "shallow"), *files, "--json"]) == 1
        said = capsys.readouterr()
        assert [answer["class_name"] for answer in json.loads(said.out)] == ["red", "blue"]
        assert problem in said.err.splitlines()[-1]
        assert main([str(folder / "shallow"), files[1]]) == 1
        assert capsys.readouterr().out == ""

    def test_no_run(self, folder: Path) -> None:
        with pytest.raises(UserError, match="there is no run directory"):
            main([str(folder / "nowhere"), str(folder / "r.png")])


def test_a_file_whose_name_is_not_utf_8_is_shown_with_an_escape(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = write_image(tmp_path / "red\udcff.png", 0)
    assert main([str(folder / "shallow"), str(image)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/red\\udcff.png  red")


def test_a_mistake_cannot_steer_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayff.predict", str(tmp_path / "a\x1b[2Jb"), "x.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("a\\x1b[2Jb\n")
