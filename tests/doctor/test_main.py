"""python -m rayff.doctor, and what becomes of a check's result."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from rayff.config.errors import UserError
from rayff.doctor import __main__ as doctor
from rayff.doctor.check import Check, CheckResult, fail, note, ok, run_check, slow


class TestRunCheck:
    def refuse(self, message: str) -> CheckResult:
        raise UserError(message)

    def test_error_is_a_note(self) -> None:
        result = run_check(lambda: ok(str(1 / 0)))
        assert result is not None
        assert result.state == "note"
        assert "ZeroDivisionError: division by zero" in result.text

    def test_user_error_is_split_into_text_and_remedy(self) -> None:
        message = "there are 3; too many; take 2"
        assert run_check(lambda: self.refuse(message)) == fail("there are 3; too many", "take 2")
        assert run_check(lambda: self.refuse("take 2")) == fail("take 2")


class TestMain:
    def set_checks(self, monkeypatch: pytest.MonkeyPatch, **checks: Check) -> None:
        monkeypatch.setattr(doctor, "checks", lambda command, stack: checks)

    @pytest.mark.parametrize(
        ("result", "code", "summary"),
        [
            (ok("good"), 0, "2 checks: all well"),
            (note("less", "more"), 0, "2 checks: all well"),
            (slow("bad", "better"), 0, "2 checks: 1 slow"),
            (fail("broken", "repair"), 1, "2 checks: 1 fail"),
            (None, 0, "1 checks: all well"),
        ],
    )
    def test_exit_code(
        self,
        result: CheckResult | None,
        code: int,
        summary: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.set_checks(monkeypatch, first=lambda: result, second=lambda: ok("good"))
        assert doctor.main([]) == code
        assert capsys.readouterr().out.splitlines()[-1] == summary

    def test_control_characters_and_markup_are_shown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.set_checks(monkeypatch, thing=lambda: ok("\x1b[31m[red]"))
        doctor.main([])
        assert re.match(r"ok +thing +\\x1b\[31m\[red\]\n", capsys.readouterr().out)

    def test_signal_waits_for_the_check(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def interrupted() -> CheckResult:
            signal.raise_signal(signal.SIGINT)
            return ok("unseen")

        self.set_checks(monkeypatch, first=lambda: ok("good"), second=interrupted)
        assert doctor.main([]) == 130
        _, message = capsys.readouterr().out.splitlines()
        assert message == "SIGINT: stopping after this check"

    def test_json(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.set_checks(monkeypatch, a=lambda: ok("good"), b=lambda: fail("broken", "repair"))
        assert doctor.main(["--json"]) == 1
        assert json.loads(capsys.readouterr().out) == [
            {"check": "a", "state": "ok", "text": "good", "remedy": None},
            {"check": "b", "state": "fail", "text": "broken", "remedy": "repair"},
        ]

    def test_ray_that_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr("rayff.doctor.cluster", raising=False)
        monkeypatch.setitem(sys.modules, "rayff.doctor.cluster", None)
        with ExitStack() as stack:
            result = run_check(doctor.checks(doctor.DoctorCommand(), stack)["Ray"])
        assert result is not None
        assert result.state == "fail"


@pytest.mark.slow
def test_in_a_pipe_each_result_is_a_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rayff.doctor", "--no-ray", "--storage-path", "nowhere://x"],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    *lines, last = done.stdout.splitlines()
    assert all(re.match(r"(ok|note|slow|fail) +\w|  +-> \w", line) for line in lines)
    assert any(line.startswith("slow C++ kernels") for line in lines)
    assert any(line.startswith("fail storage") and "nowhere" in line for line in lines)
    assert re.match(r"\d+ checks: 1 fail, \d slow", last)
    assert (done.returncode, done.stderr) == (1, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
