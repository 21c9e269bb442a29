"""What a check comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rayff.config.errors import UserError

State = Literal["ok", "note", "slow", "fails"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One thing that was looked at."""

    state: State
    """note: something optional is not there, or could not be looked at."""
    found: str
    """A clause, on one line."""
    remedy: str | None = None
    """What to do; None where all is well."""


Check = Callable[[], CheckResult]


def ok(found: str) -> CheckResult:
    """Return that all is well."""
    return CheckResult(state="ok", found=found)


def note(found: str, remedy: str) -> CheckResult:
    """Return that something optional is missing."""
    return CheckResult(state="note", found=found, remedy=remedy)


def slow(found: str, remedy: str) -> CheckResult:
    """Return that work would be slower than it could be."""
    return CheckResult(state="slow", found=found, remedy=remedy)


def fails(found: str, remedy: str) -> CheckResult:
    """Return that work would fail."""
    return CheckResult(state="fails", found=found, remedy=remedy)


def refused(error: UserError) -> CheckResult:
    """Return what a user's mistake is: its sentence ends with the remedy."""
    for separator in ("; ", ": "):
        found, _, remedy = str(error).rpartition(separator)
        if found:
            return fails(found, remedy)
    return fails(str(error), "mend it and try again")


def examine(check: Check) -> CheckResult:
    """Return what a check finds; where it breaks, that it could not be done."""
    try:
        return check()
    except UserError as error:
        return refused(error)
    except Exception as error:  # whatever it meets, the other checks go on
        return note(
            f"could not be looked at ({type(error).__name__}: {one_line(error)})",
            "the other checks tell more; please report it if they do not",
        )


def one_line(error: object) -> str:
    """Return an error's text on one line of bearable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def size(num_bytes: float) -> str:
    """Return a number of bytes as a person reads it."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
