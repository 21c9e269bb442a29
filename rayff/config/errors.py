"""Errors that the commands print as one sentence, without a traceback."""

import difflib
from collections.abc import Iterable

MIN_ABBREVIATION = 3
"""Shortest beginning of a word that counts as its abbreviation."""


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
        if step:
            what = "training stopped and the last good checkpoint is kept; try a lower --lr"
        else:
            what = "no weight has changed yet, so look at the loss, the layer and the images"
        super().__init__(f"the loss of layer {layer_index} became {loss} at step {step}: {what}")

    def __reduce__(self) -> tuple[type, tuple[int, int, float]]:
        return type(self), (self.layer_index, self.step, self.loss)


def near(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` is another spelling or an abbreviation of, if any.

    Case, dashes against underscores and the order of the parts do not matter: `Min_LR` is near
    `lr-min`, `batchsize` near `batch_size`, `check` near `checkpoint-every`.
    """
    spelled = {name.lower().replace("_", "-"): name for name in known}
    word = word.lower().replace("_", "-")
    for plain, name in spelled.items():
        if sorted(plain.split("-")) == sorted(word.split("-")):
            return name
    matches = difflib.get_close_matches(word, spelled, n=1, cutoff=0.75)
    if not matches and len(word) >= MIN_ABBREVIATION:
        matches = sorted((plain for plain in spelled if plain.startswith(word)), key=len)
    return spelled[matches[0]] if matches else None


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'X'?)" for the known word that is near, or nothing."""
    found = near(word, known)
    return "" if found is None else f" (did you mean {found!r}?)"
