"""The layout of a page: which blocks fill a row."""

import pytest

from rayff.report.page import Code, Note, Table, arrange

NOTE = Note(title="note", text="")
NARROW = Table(title="narrow", columns=(), rows=(), wide=False)
WIDE = Table(title="wide", columns=(), rows=())
CODE = Code(title="code", text="")


@pytest.mark.parametrize(
    ("blocks", "wide"),
    [
        ([], []),
        ([NOTE], [True]),
        ([NOTE, NARROW], [False, False]),
        ([NOTE, NARROW, NOTE], [False, False, True]),
        ([NOTE, WIDE, NOTE, NOTE], [True, True, False, False]),
        ([CODE, NOTE, NARROW, WIDE], [True, False, False, True]),
    ],
)
def test_no_row_is_half_empty(blocks: list[Note | Table | Code], wide: list[bool]) -> None:
    assert arrange(blocks) == list(zip(blocks, wide, strict=True))
