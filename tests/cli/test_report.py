"""python -m rayff.report, on runs that were trained in this process."""

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.report.__main__ import main
from rayff.runs.timeline import FILE
from tests.report.runs import page_text, write_run, write_search

PREDICTIONS = {"confusion", "mistakes", "reliability"}
TIMELINE = {"timeline-fill", "timeline-turn", "timeline-drain"}
COMPARISON = {"valid", "test", "valid-by-time", "loss", "valid-layers", "test-layers"}
RUN = {
    *("accuracy", "loss-by-layer", "valid-by-layer", "test-by-layer", "windows", "depth"),
    *("layer-gain", "filters", "busy", "throughput", *PREDICTIONS, *TIMELINE),
}


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "report").glob("*.png")}


def text(folder: Path) -> str:
    return page_text((folder / "report.html").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `first` and `second`, and their task."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "first", tags="a,b", notes="first try")
    write_run(folder / "second", epochs=1, lr=0.01)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the first run."""
    return Path(shutil.copytree(folder / "first", tmp_path / "run"))


def test_a_run_is_a_page_with_pictures_embedded_and_as_files(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert pictures(run) == RUN
    html = (run / "report.html").read_text()
    urls = re.findall('(?:src|href)="([^"]*)"', html)
    embedded = {base64.b64decode(url.partition("base64,")[2]) for url in urls} - {b""}
    assert embedded == {path.read_bytes() for path in (run / "report").glob("*.png")}
    assert all(url.startswith("data:") for url in urls)
    assert not re.search(r"https?:|@import|url\(", html)
    assert not list(run.rglob("*.partial"))
    for line in (
        f"python -m rayff.train --config {run}/config.json",
        "python -m rayff.train --arch tinycnn --width 8 --task",
        "\nbatch_size | 32\n",
        "\nstages of the newest epoch | layers 0-1, layers 2-3",
        "\ntags | a, b\nnotes | first try\nstart | 20",
        ", complete\n",
        f"\nTyped in {Path.cwd()}.\n",
        "\nversions | python 3.",
    ):
        assert line in text(run)


@pytest.mark.parametrize(
    ("file", "content", "args", "reason", "missing"),
    [
        ("config.json", None, ["--limit", "0"], "--limit 0 classifies no", PREDICTIONS),
        ("config.json", "gone", [], "there is no folder", PREDICTIONS),
        ("architecture.json", "{", [], "architecture.json", {*PREDICTIONS, "filters"}),
        (FILE, "?", ["--limit", "0"], "is no timeline of a run", PREDICTIONS | TIMELINE),
    ],
)
def test_a_page_says_why_a_picture_is_missing(
    run: Path, file: str, content: str | None, args: list[str], reason: str, missing: set[str]
) -> None:
    if content == "gone":
        content = (run / file).read_text().replace("/task", "/gone")
    if content is not None:
        (run / file).write_text(content)
    main([str(run), *args])
    assert re.search(f"Not drawn: .*{reason}", text(run))
    assert pictures(run) == RUN - missing


def test_runs_and_searches_are_written_where_expected(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = str(folder / "first"), str(folder / "second")
    main([first, "--limit", "7", "--out", "new/folder"])
    assert pictures(Path("new/folder")) == RUN
    assert "of 7 test images" in text(Path("new/folder"))
    nested = shutil.copytree(second, tmp_path / "runs" / "deep" / "second")
    shutil.copytree(first, tmp_path / "runs" / "first")
    main(["runs/first", str(nested)])
    assert not Path("report.html").exists()
    assert pictures(Path("runs")) == COMPARISON
    assert re.search("\nepochs \\| (1 \\| 2|2 \\| 1)\n", text(Path("runs")))
    assert capsys.readouterr().out.splitlines()[-1] == "runs/report.html"
    search = write_search(Path("search"), [{"config": {"lr": 0.1}}, {"config": {"lr": 0.2}}])
    shutil.copytree(second, search / "trials" / "trial-1")
    main(["search"])
    assert pictures(search) == {"by-lr", *COMPARISON}
    assert not (folder / "first" / "report.html").exists()


@pytest.mark.parametrize(
    ("damage", "args", "message"),
    [
        (shutil.rmtree, [], "there is no run directory"),
        (lambda run: (run / "config.json").unlink(), [], "is no run directory: it has no"),
        (lambda run: (run / "config.json").write_text("{"), [], "is not JSON"),
        (lambda run: (run / "metrics.parquet").unlink(), [], "its first epoch was not finished"),
        (lambda run: os.truncate(run / "metrics.parquet", 999), [], "is no metrics file"),
        (lambda run: None, ["--limit=-1"], "--limit must be a number of 0 or more, not -1"),
        (lambda run: None, ["--out", "file"], "--out file is a file; name a folder"),
        (lambda run: None, ["--out", "file/deeper"], "written to .* name another folder"),
        (lambda run: None, ["gone", "--out", "new"], "there is no run directory gone"),
        (lambda run: write_search(Path("search"), [{}]), ["search"], "is a search, which has"),
    ],
)
def test_mistakes_are_refused_in_a_sentence_and_leave_nothing(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(run.parent)
    Path("file").write_text("mine")
    damage(run)
    with pytest.raises(UserError, match=message):
        main([str(run), *args])
    assert Path("file").read_text() == "mine"
    assert not list(Path().rglob("report*"))


def test_a_mistake_ends_the_program_with_code_2() -> None:
    command = [sys.executable, "-m", "rayff.report"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no run is given")
    assert done.stderr.count("\n") == 1
