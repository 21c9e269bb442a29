"""Several who watch one run."""

from pathlib import Path

from rayff.engine.callbacks import CallbackList
from rayff.engine.commands import Evaluate
from rayff.runs.checkpoint import Progress
from tests.engine.local_run import Diary
from tests.runs.test_metrics import record


def test_each_is_told_everything_in_order() -> None:
    one, other = Diary(), Diary()
    callbacks = CallbackList([one, other])
    callbacks.on_result(Evaluate(epoch=0, split="valid", batches=()), [])
    callbacks.on_epoch(record(1))
    callbacks.on_checkpoint(Path("runs/step-00000007"))
    callbacks.on_restart(["layers 0-2"], Progress(epoch=1))
    callbacks.on_warning("the store is nearly full")
    assert one.lines == other.lines
    assert one.lines == [
        "valid",
        "epoch 1",
        "step-00000007",
        "restart 1",
        "warning: the store is nearly full",
    ]
