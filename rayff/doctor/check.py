"""The result of a check, and how a check is run."""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from rayff.config.errors import UserError


@dataclass(frozen=True)
class CheckResult:
    """What a check found out; a note says that something optional is missing."""

    state: Literal["ok", "note", "slow", "fail"]
    text: str
    remedy: str | None = None


ok = partial(CheckResult, "ok")
note = partial(CheckResult, "note")
slow = partial(CheckResult, "slow")
fail = partial(CheckResult, "fail")

Check: TypeAlias = Callable[[], CheckResult | None]
"""None: the check does not apply here."""


def run_check(check: Check) -> CheckResult | None:
    """Run a check; an error in it is a result too, so that the other checks go on."""
    try:
        return check()
    except UserError as error:
        text, _, remedy = str(error).rpartition("; ")
        return fail(text, remedy) if text else fail(remedy)
    except Exception as error:  # a broken installation raises anything
        text = f"could not be checked ({type(error).__name__}: {one_line(error)})"
        return note(text, "please report it unless another check explains it")


def one_line(error: object) -> str:
    """Return an error's message as one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300, placeholder="...")
