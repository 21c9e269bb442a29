"""The errors that reach a user as a sentence."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can correct: one sentence with the value, the place and the remedy.

    The commands print it without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A run ended through no mistake of the user's: a sentence with the cause and how to go on.

    The commands print it without a traceback and exit with code 1.
    """


class TrainingDiverged(UserError):
    """A layer's loss is no longer a finite number.

    Attributes:
        layer_index: global number of the first such layer.
        step: number of the batch, counted from 0 over the whole run.
    """

    def __init__(self, layer_index: int, step: int, loss: float) -> None:
        self.layer_index = layer_index
        self.step = step
        self.loss = loss
        super().__init__(
            f"the loss of layer {layer_index} became {loss} at step {step}: training stopped and "
            "the last good checkpoint is kept; try a lower --lr"
        )

    def __reduce__(self) -> tuple[type, tuple[int, int, float]]:
        return type(self), (self.layer_index, self.step, self.loss)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the known word nearest to `word`, or nothing."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
