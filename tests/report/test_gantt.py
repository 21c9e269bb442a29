"""Which excerpts of a timeline are shown, on one written by hand.

Two stages; a chunk takes each of them a second. Stage 1 begins a second after stage 0:

    stage 0   t0 t1 ... t19 v0 e0
    stage 1      t0 t1  ... t19 v0 e0
"""

from rayff.report.gantt import drain, draw_timeline, fill, turn
from rayff.report.style import render
from rayff.runs.timeline import Span


def epoch(number: int, began_s: float, num_train: int = 20) -> list[Span]:
    kinds = ["train"] * num_train + ["valid", "test"]
    return [
        Span(
            epoch=number,
            kind=kind,
            step=place if kind == "train" else 0,
            stage=stage,
            started_s=began_s + place + stage,
            busy_s=1.0,
        )
        for place, kind in enumerate(kinds)
        for stage in range(2)
    ]


RUN = epoch(1, 100.0) + epoch(3, 200.0)


def test_the_pipeline_fills_where_the_first_epoch_begins() -> None:
    assert fill(RUN) == (100.0, 111.0)


def test_it_is_shown_until_the_last_stage_has_done_something() -> None:
    late = [
        Span(epoch=1, kind="train", step=0, stage=1, started_s=130.0, busy_s=1.0),
        *(span for span in epoch(1, 100.0) if span.stage == 0),
    ]
    assert fill(late) == (100.0, 131.0)


def test_training_turns_to_evaluation_at_the_end_of_the_first_epoch() -> None:
    assert turn(RUN) == (115.0, 122.0)  # from stage 0's fifth last chunk to its test images


def test_the_pipeline_drains_at_the_end_of_the_newest_epoch() -> None:
    assert drain(RUN) == (212.0, 223.0)


def test_an_epoch_of_one_chunk_has_all_excerpts() -> None:
    short = epoch(1, 0.0, num_train=1)
    assert (fill(short), turn(short), drain(short)) == ((0.0, 3.0), (0.0, 3.0), (0.0, 4.0))


def test_each_excerpt_is_another_picture() -> None:
    def picture(excerpt: tuple[float, float]) -> bytes:
        return render(lambda figure: draw_timeline(figure, RUN, excerpt), 2.0)

    assert len({picture(find(RUN)) for find in (fill, turn, drain)}) == 3
