"""Output that nobody reads, that takes no more, or that has few characters: real processes."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import rayff
from rayff.console.outlet import Outlet, run_console
from rayff.runs.record import read_sessions
from tests.helpers.colour_run import write_image, write_run, write_task

ROOT = Path(rayff.__file__).parents[1]


def shell(
    command: str, cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which $RAYFF is the program; its exit code is that of $RAYFF."""
    return subprocess.run(
        ["bash", "-c", f"{command}\nexit ${{PIPESTATUS[0]}}"],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RAYFF": f"{sys.executable} -m rayff",
            **(environment or {}),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "lines", "reason"),
    [
        ("| head -3", 3, "Broken pipe"),
        ("> /dev/full", 0, "No space left on device"),
        (">&-", 0, "Bad file descriptor"),
        ("2>&1 | head -1", 1, ""),
    ],
)
def test_a_training_goes_on_without_its_output(
    output: str, lines: int, reason: str, tiny_task: str, tmp_path: Path
) -> None:
    options = f"--backend local --task {tiny_task} --width 4 --batch-size 16 --epochs 2"
    done = shell(f"$RAYFF train {options} --run-dir run {output}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == lines
    note = f"note: standard output takes no more ({reason}): the run goes on"
    assert done.stderr.startswith(note if reason else "")
    assert done.stderr.count("\n") == bool(reason)
    assert read_sessions(tmp_path / "run")[-1].reason == "complete"
    assert "all 2 epochs done" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("output", "code", "sentence"),
    [
        ("> /dev/full", 1, "error: standard output takes no more (No space left on device)\n"),
        (">&-", 1, "error: standard output takes no more (Bad file descriptor)\n"),
        ("| true", 141, ""),
    ],
)
def test_a_command_whose_results_nobody_takes_ends_with_a_sentence(
    output: str, code: int, sentence: str, tmp_path: Path
) -> None:
    write_task(tmp_path / "task")
    write_run(tmp_path / "runs" / "run", tmp_path / "task")
    for command in ("runs", "evaluate runs/run --json", "train --help"):
        done = shell(f"$RAYFF {command} {output}", tmp_path)
        assert done.returncode == code, command
        assert done.stderr.endswith(sentence), command
        assert "Traceback" not in done.stderr, command


@pytest.mark.slow
def test_class_names_are_printed_in_any_character_set(tmp_path: Path) -> None:
    names = ("röd", "зелёный", "青")
    write_task(tmp_path / "task", names)
    run_dir = write_run(tmp_path / "run", tmp_path / "task", class_names=names)
    image = write_image(tmp_path / "image.png", 0)
    ascii_alone = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = shell(f"$RAYFF predict {run_dir} {image}", tmp_path, ascii_alone)
    assert done.returncode == 0, done.stderr
    assert "r\\xf6d" in done.stdout
    done = shell(f"$RAYFF evaluate {run_dir}", tmp_path, {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "\\u9752" in done.stdout


class TestTheOutlet:
    def test_escapes_what_the_character_set_lacks(self) -> None:
        raw = io.BytesIO()
        target = io.TextIOWrapper(raw, encoding="ascii")
        outlet = Outlet(target)
        outlet.write("röd ± 青\n")
        outlet.flush()
        assert raw.getvalue() == b"r\\xf6d \\xb1 \\u9752\n"
        assert not outlet.isatty()
        target.close()
        outlet.write("dropped")

    def test_of_a_process_without_output_drops_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", None)
        run_console().print("dropped")
        assert Outlet(None).encoding == "utf-8"
