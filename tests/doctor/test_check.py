"""What becomes of a check, also of one that breaks."""

from rayff.config.errors import UserError
from rayff.doctor.check import CheckResult, examine, fails, ok, size, slow


def test_a_finding_comes_through() -> None:
    assert examine(lambda: slow("little", "more")) == slow("little", "more")


def test_a_check_that_breaks_is_a_note_and_no_end() -> None:
    result = examine(lambda: ok(str(1 / 0)))
    assert result.state == "note"
    assert "ZeroDivisionError: division by zero" in result.found


def test_a_mistake_is_split_into_what_is_wrong_and_what_to_do() -> None:
    def check() -> CheckResult:
        raise UserError("x is 3: too many; take 2")

    assert examine(check) == fails("x is 3: too many", "take 2")


def test_a_mistake_without_a_semicolon_is_split_at_its_colon() -> None:
    def check() -> CheckResult:
        raise UserError("there is no x: give one")

    assert examine(check) == fails("there is no x", "give one")


def test_sizes_are_read_by_people() -> None:
    assert [size(n) for n in (0, 1023, 2048, 3 * 2**20, 2**31)] == [
        *("0 bytes", "1023 bytes", "2 KiB", "3 MiB", "2.0 GiB")
    ]
