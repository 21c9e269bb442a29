"""Several who watch one run."""

from pathlib import Path

from rayff.training.checkpoint import Progress
from rayff.training.messages import Evaluate
from rayff.training.observers import Observers
from tests.training.local_run import Diary
from tests.training.test_records import record


def test_each_is_told_everything_in_order() -> None:
    one, other = Diary(), Diary()
    observers = Observers([one, other])
    observers.on_result(Evaluate(epoch=0, split="valid", batches=()), [])
    observers.on_epoch(record(1))
    observers.on_checkpoint(Path("runs/step-00000007"))
    observers.on_restart(["layers 0-2"], Progress(epoch=1))
    observers.on_warning("the store is nearly full")
    assert one.lines == other.lines
    assert one.lines == [
        "valid",
        "epoch 1",
        "step-00000007",
        "restart 1",
        "warning: the store is nearly full",
    ]
