"""Whether a run fits its network and its batches."""

from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.config.validation import check_cuts, check_replicas


class TestReplicas:
    @pytest.mark.parametrize(
        "run",
        [
            {},
            {"replicas": "1,2,1"},
            {"replicas": "1,2,1", "stages": 3},
            {"replicas": "1,2,1", "cuts": (5, 9)},
            {"replicas": "8"},
            {"replicas": "1,1", "transport": "gloo"},
            {"replicas": "auto"},
            {"replicas": "auto", "stages": 64},
            {"stages": 4, "transport": "gloo"},
        ],
        ids=str,
    )
    def test_that_fit_are_taken(self, run: dict[str, Any]):
        check_replicas(TrainConfig(**run), num_layers=17, batch_size=8)

    @pytest.mark.parametrize(
        ("run", "sentence"),
        [
            ({"replicas": "1,2", "stages": 3}, "1,2 makes 2 stages, but --stages makes 3; leave"),
            ({"replicas": "1,2", "cuts": (5, 9)}, "1,2 makes 2 stages, but --cuts makes 3; leave"),
            ({"replicas": "1,9"}, "1,9: 9 actors cannot share a batch of 8; .*--batch-size"),
            (
                {"replicas": "auto", "cuts": (5,)},
                "auto finds the cuts by itself; leave --cuts out",
            ),
            ({"replicas": ",".join("1" * 18)}, "[1,]* makes 18 stages, but .* 17 layers.*give 17"),
            ({"replicas": "2", "transport": "gloo"}, "2: --transport gloo .* object-store"),
            ({"replicas": "auto", "transport": "nccl"}, "auto: --transport nccl .* object-store"),
        ],
        ids=str,
    )
    def test_that_do_not_are_refused_with_the_remedy(self, run: dict[str, Any], sentence: str):
        with pytest.raises(UserError, match=f"^--replicas {sentence}") as caught:
            check_replicas(TrainConfig(**run), num_layers=17, batch_size=8)
        assert "\n" not in str(caught.value)


class TestCuts:
    @pytest.mark.parametrize(
        ("cuts", "stages"),
        [
            ((), None),
            ((), 1),
            ((1,), 2),
            ((16,), None),
            ((5, 9, 13), 4),
            (tuple(range(1, 17)), 17),
        ],
    )
    def test_cuts_that_make_stages_are_taken(self, cuts: tuple[int, ...], stages: int | None):
        check_cuts(cuts, stages, num_layers=17)

    @pytest.mark.parametrize("cuts", [(0,), (-1,), (0, 5), (9, 5), (5, 5), (5, 9, 8)])
    def test_cuts_out_of_order_or_below_one_are_refused(self, cuts: tuple[int, ...]):
        shown = ",".join(str(cut) for cut in cuts)
        with pytest.raises(UserError, match=f"^--cuts {shown}: .*ascending and from 1 on"):
            check_cuts(cuts, None, num_layers=17)

    @pytest.mark.parametrize("cuts", [(17,), (5, 17), (5, 100)])
    def test_a_cut_behind_the_last_layer_is_refused(self, cuts: tuple[int, ...]):
        with pytest.raises(UserError, match=r"has 17 layers, so a cut is at most 16$"):
            check_cuts(cuts, None, num_layers=17)

    @pytest.mark.parametrize(("cuts", "stages"), [((5,), 3), ((5, 9), 2), ((), 2)])
    def test_cuts_and_stages_that_disagree_are_refused(self, cuts: tuple[int, ...], stages: int):
        with pytest.raises(
            UserError, match=f"makes {len(cuts) + 1} stages, but --stages says {stages}"
        ):
            check_cuts(cuts, stages, num_layers=17)
