"""python -m rayff.doctor as a user has it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rayff
from rayff.config.errors import UserError
from rayff.doctor.check import Check, CheckResult, fails, note, ok, slow

doctor = __import__("rayff.doctor").doctor


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rayff.doctor", *args],
        env={**os.environ, "PYTHONPATH": str(Path(rayff.__file__).parent.parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    return run("--no-ray", "--task", "mnits", "--storage-path", "nowhere://x", PATH="")


class TestThroughAPipe:
    def test_there_is_a_line_a_check_and_one_for_each_remedy(
        self, done: subprocess.CompletedProcess[str]
    ) -> None:
        *lines, last = done.stdout.splitlines()
        pattern = r"(ok|note|slow|fails) +[a-zA-Z' ]+: \S.*|      -> \S.*"
        assert all(re.fullmatch(pattern, line) for line in lines)
        assert any(line.startswith("slow  compiled kernels: no C++ compiler") for line in lines)
        assert re.fullmatch(r"of \d+ checks, \d would fail, \d would be slow", last)

    def test_nothing_steers_a_terminal(self, done: subprocess.CompletedProcess[str]) -> None:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
        assert done.stderr == ""

    def test_the_exit_code_tells_of_failures(self, done: subprocess.CompletedProcess[str]) -> None:
        assert done.returncode == 1
        assert "fails data: there is no task 'mnits'" in done.stdout
        assert "fails storage: --storage-path nowhere://x" in done.stdout


class TestMadeUpChecks:
    def have(self, monkeypatch: pytest.MonkeyPatch, **checks: Check) -> None:
        def made_up(command: object) -> Iterator[tuple[str, Check]]:
            yield from checks.items()

        monkeypatch.setattr(doctor, "checks", made_up)

    @pytest.mark.parametrize(
        ("result", "code", "summary"),
        [
            (ok("good"), 0, "all 1 checks are well"),
            (note("less", "more"), 0, "all 1 checks are well"),
            (slow("bad", "better"), 0, "of 1 checks, 1 would be slow"),
            (fails("broken", "mend"), 1, "of 1 checks, 1 would fail"),
        ],
        ids=["ok", "note", "slow", "fails"],
    )
    def test_only_a_failure_makes_the_exit_code(
        self,
        result: CheckResult,
        code: int,
        summary: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.have(monkeypatch, thing=lambda: result)
        assert doctor.main([]) == code
        assert capsys.readouterr().out.splitlines()[-1] == summary

    def test_one_that_breaks_does_not_end_the_others(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken() -> CheckResult:
            raise OSError("no such thing")

        self.have(monkeypatch, first=broken, second=lambda: ok("good"))
        assert doctor.main([]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "note  first: could not be looked at (OSError: no such thing)"
        assert lines[2] == "ok    second: good"

    def test_a_strange_text_is_shown_with_escapes(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.have(monkeypatch, thing=lambda: ok("\x1b[31m[red]"))
        doctor.main([])
        assert capsys.readouterr().out.splitlines()[0] == r"ok    thing: \x1b[31m[red]"

    def test_a_signal_ends_it_behind_the_check_that_is_under_way(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted() -> CheckResult:
            signal.raise_signal(signal.SIGINT)
            return ok("went on")

        self.have(monkeypatch, first=lambda: ok("good"), second=interrupted, third=interrupted)
        assert doctor.main([]) == 130
        shown = capsys.readouterr()
        assert shown.out == "ok    first: good\n"
        assert shown.err == "SIGINT: stopping behind this check\n"

    def test_json_is_for_programs(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.have(monkeypatch, a=lambda: ok("good"), b=lambda: fails("broken", "mend"))
        assert doctor.main(["--json"]) == 1
        assert json.loads(capsys.readouterr().out) == [
            {"check": "a", "state": "ok", "found": "good", "remedy": None},
            {"check": "b", "state": "fails", "found": "broken", "remedy": "mend"},
        ]


def test_a_ray_that_cannot_be_imported_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rayff.doctor.cluster", None)
    *_, (name, check) = doctor.checks(doctor.DoctorCommand())
    assert name == "Ray"
    assert check().state == "fails"


def test_an_unknown_flag_ends_with_code_2() -> None:
    with pytest.raises((SystemExit, UserError)):
        doctor.main(["--no-such-flag"])
