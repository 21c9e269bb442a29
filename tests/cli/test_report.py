"""python -m rayff.report, on runs that were trained in this process."""

import base64
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.report.__main__ import main
from rayff.runs.timeline import FILE
from tests.report.runs import write_run, write_search

PICTURES = {
    *("accuracy", "loss-by-layer", "valid-by-layer", "test-by-layer", "windows", "depth"),
    *("confusion", "mistakes", "filters", "busy", "throughput"),
}
TIMELINE = {"timeline-fill", "timeline-turn", "timeline-drain"}


class Reader(HTMLParser):
    """Collects the words of a page and the sources of its pictures."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.parts: list[str] = []
        self.feed(page.read_text())
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "img":
            self.sources.append(values["src"] or "")
        self.links += [values[name] or "" for name in ("src", "href") if name in values]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)
        if self.cells:
            self.cells[-1] += data.rstrip("\n")


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "report").glob("*.png")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, `first` and `second`, and their task."""
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "first")
    write_run(folder / "second", epochs=1, lr=0.01)
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the first run."""
    return Path(shutil.copytree(folder / "first", tmp_path / "run"))


class TestOfOneRun:
    def test_writes_the_page_with_its_pictures_inside_and_beside_it(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([str(run)]) == 0
        assert capsys.readouterr().out.strip() == str(run / "report.html")
        assert pictures(run) == PICTURES | TIMELINE
        page = Reader(run / "report.html")
        inside = {base64.b64decode(source.partition("base64,")[2]) for source in page.sources}
        assert inside == {path.read_bytes() for path in (run / "report").glob("*.png")}
        assert all(link.startswith("data:") for link in page.links)
        assert not re.search(r"https?:|@import|url\(", (run / "report.html").read_text())
        assert not list(run.rglob("*.partial"))

    def test_says_how_to_train_it_again(self, run: Path) -> None:
        main([str(run)])
        page = Reader(run / "report.html")
        assert f"python -m rayff.train --config {run}/config.json" in page.text
        assert "--arch tinycnn --width 8 --task" in page.text
        assert page.cells[page.cells.index("batch_size") + 1] == "32"
        assert page.cells[page.cells.index("layers of the stages") + 1] == "0-1, 2-3"

    def test_goes_to_another_folder_where_asked(self, run: Path, tmp_path: Path) -> None:
        out = tmp_path / "new" / "folder"
        main([str(run), "--out", str(out)])
        assert pictures(out) == PICTURES | TIMELINE
        assert (out / "report.html").exists()
        assert not (run / "report.html").exists()

    def test_says_so_where_the_data_is_gone(self, run: Path, tmp_path: Path) -> None:
        config = run / "config.json"
        config.write_text(config.read_text().replace("/task", "/gone"))
        main([str(run)])
        assert "Not drawn: there is no folder" in Reader(run / "report.html").text
        assert pictures(run) == (PICTURES | TIMELINE) - {"confusion", "mistakes"}

    def test_says_so_where_there_is_no_timeline(self, run: Path) -> None:
        (run / FILE).unlink()
        main([str(run)])
        assert f"Not drawn: the run has no {FILE}" in Reader(run / "report.html").text
        assert pictures(run) == PICTURES

    def test_says_so_where_the_timeline_is_damaged(self, run: Path) -> None:
        (run / FILE).write_bytes(b"?")
        main([str(run)])
        assert "is no timeline of a run" in Reader(run / "report.html").text

    def test_says_so_where_there_is_no_model_yet(self, run: Path) -> None:
        (run / "model.safetensors").unlink()
        main([str(run)])
        assert "holds no trained model yet" in Reader(run / "report.html").text
        assert pictures(run) == (PICTURES | TIMELINE) - {"confusion", "mistakes", "filters"}

    def test_classifies_no_more_images_than_asked(self, run: Path) -> None:
        main([str(run), "--limit", "7"])
        assert "of 7 test images" in Reader(run / "report.html").text
        main([str(run), "--limit", "0"])
        assert "no test images were classified" in Reader(run / "report.html").text


class TestOfSeveralRuns:
    def test_shows_them_side_by_side_in_the_working_directory(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        main([str(folder / "first"), str(folder / "second")])
        page = Reader(tmp_path / "report.html")
        assert pictures(tmp_path) == {"valid", "test", "valid-by-time", "loss"}
        differing = page.cells[page.cells.index("epochs") :]
        assert sorted(differing[1:3]) == ["1", "2"]
        assert "lr" in differing
        assert "batch_size" not in page.cells

    def test_tells_runs_of_the_same_name_apart(self, folder: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(folder / "second", tmp_path / "other" / "first")
        out = tmp_path / "out"
        main([str(folder / "first"), str(copy), "--out", str(out)])
        page = Reader(out / "report.html")
        assert "other/first" in page.cells
        assert f"{folder.name}/first" in page.cells

    def test_says_so_where_the_settings_are_the_same(self, run: Path, folder: Path) -> None:
        main([str(run), str(folder / "first"), "--out", str(run)])
        assert "all runs have the same settings" in Reader(run / "report.html").text


class TestOfASearch:
    def test_shows_each_varied_setting_and_the_curves(self, folder: Path, tmp_path: Path) -> None:
        search = write_search(
            tmp_path / "search",
            [
                {"config": {"lr": 0.1, "optimizer": "adam", "arch": "vgg"}},
                {"config": {"lr": 0.001, "optimizer": "adamw", "arch": "vgg"}},
                {"config": {"lr": 0.01, "arch": "vgg"}, "valid_accuracy": None},
            ],
        )
        shutil.copytree(folder / "first", search / "trial-1")
        main([str(search)])
        page = Reader(search / "report.html")
        curves = {"valid", "test", "valid-by-time", "loss"}
        assert pictures(search) == {"by-lr", "by-optimizer"} | curves
        assert "2 of 3" in page.text
        assert page.cells.count("TERMINATED") == 3

    def test_says_so_where_nothing_is_to_be_drawn(self, tmp_path: Path) -> None:
        search = write_search(tmp_path / "search", [{"valid_accuracy": None}])
        main([str(search)])
        page = Reader(search / "report.html")
        assert "no trial has a result yet" in page.text
        assert "no trial's run directory is there" in page.text
        assert pictures(search) == set()

    def test_is_reported_alone(self, folder: Path, tmp_path: Path) -> None:
        search = write_search(tmp_path / "search", [{}])
        with pytest.raises(UserError, match="is a search, which has a report of its own"):
            main([str(folder / "first"), str(search)])


class TestMistakes:
    def refused(self, path: Path, message: str, *args: str) -> None:
        with pytest.raises(UserError, match=message):
            main([str(path), *args])
        assert not (path / "report.html").exists()
        assert not (path / "report").exists()

    def test_no_run(self) -> None:
        with pytest.raises(UserError, match="no run is given"):
            main([])

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "nowhere", "there is no run directory")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path, "is empty")

    def test_a_foreign_folder(self, tmp_path: Path) -> None:
        (tmp_path / "letter.txt").write_text("dear")
        self.refused(tmp_path, "is no run directory: it has no config.json")

    def test_a_run_in_its_first_epoch(self, run: Path) -> None:
        (run / "metrics.parquet").unlink()
        self.refused(run, "has no metrics yet: its first epoch was not finished")

    def test_damaged_metrics(self, run: Path) -> None:
        whole = (run / "metrics.parquet").read_bytes()
        (run / "metrics.parquet").write_bytes(whole[: len(whole) // 2])
        self.refused(run, "is no metrics file of a run")

    def test_a_damaged_config(self, run: Path) -> None:
        (run / "config.json").write_text("{")
        self.refused(run, "is not JSON")

    def test_a_negative_limit(self, run: Path) -> None:
        self.refused(run, "--limit must be a number of 0 or more, not -1", "--limit=-1")

    def test_an_out_that_is_a_file(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        self.refused(run, "--out .* is a file; name a folder", "--out", str(tmp_path / "file"))
        assert (tmp_path / "file").read_text() == "mine"

    def test_an_out_below_a_file(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        out = str(tmp_path / "file" / "deeper")
        self.refused(run, "the report cannot be written to .* name another folder", "--out", out)

    def test_one_bad_run_of_several(self, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        with pytest.raises(UserError, match="there is no run directory"):
            main([str(folder / "first"), str(tmp_path / "gone"), "--out", str(out)])
        assert not out.exists()

    def test_ends_the_program_with_code_2_and_one_sentence(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "rayff.report", str(tmp_path)],
            capture_output=True,
            text=True,
            env=dict(os.environ),
            timeout=120,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"error: {tmp_path} is empty")
        assert done.stderr.count("\n") == 1
