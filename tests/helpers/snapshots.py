"""Text compared with a file in a `snapshots` folder beside the test.

After an intended change, rewrite the files and read the diff before committing it:

    UPDATE_SNAPSHOTS=1 python -m pytest tests/console tests/report
"""

import os
from pathlib import Path


def check_snapshot(test_file: str, name: str, text: str) -> None:
    """Assert that the text is that of snapshots/NAME; trailing spaces do not count."""
    path = Path(test_file).parent / "snapshots" / name
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
