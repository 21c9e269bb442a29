"""Stages as Ray actors; the only package that imports ray."""

import os

# Ray reads these when it is imported. What it would print of a dead worker or node, over pages and
# in colour, the run says itself in a sentence.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died|has been marked dead")
os.environ.setdefault("RAY_COLOR_PREFIX", "0")
