"""Options against each other, the network and the batch."""

from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.config.validation import check_cuts, check_method, check_replicas


class TestReplicas:
    @pytest.mark.parametrize(
        "options",
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
    def test_that_fit_are_accepted(self, options: dict[str, Any]):
        check_replicas(TrainConfig(**options), num_layers=17, batch_size=8)

    @pytest.mark.parametrize(
        ("options", "sentence"),
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
    def test_that_do_not_are_refused_with_the_remedy(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError, match=f"^--replicas {sentence}") as caught:
            check_replicas(TrainConfig(**options), num_layers=17, batch_size=8)
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
    def test_that_make_stages_are_accepted(self, cuts: tuple[int, ...], stages: int | None):
        check_cuts(cuts, stages, num_layers=17)

    @pytest.mark.parametrize(
        ("cuts", "stages", "sentence"),
        [
            *(
                (cuts, None, f"^--cuts {','.join(map(str, cuts))}: .*ascending and from 1 on")
                for cuts in [(0,), (-1,), (0, 5), (9, 5), (5, 5), (5, 9, 8)]
            ),
            *(
                (cuts, None, r"has 17 layers, so a cut is at most 16$")
                for cuts in [(17,), (5, 17), (5, 100)]
            ),
            ((5,), 3, "makes 2 stages, but --stages says 3"),
            ((5, 9), 2, "makes 3 stages, but --stages says 2"),
            ((), 2, "makes 1 stage, but --stages says 2"),
        ],
    )
    def test_that_do_not_are_refused(
        self, cuts: tuple[int, ...], stages: int | None, sentence: str
    ):
        with pytest.raises(UserError, match=sentence):
            check_cuts(cuts, stages, num_layers=17)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "ff", "workers": 2}, "--workers 2 is for --method bp"),
        ({"stages": 2}, "--stages 2 is for Forward-Forward: --method bp has the whole"),
        ({"cuts": (1, 3)}, "--cuts 1,3 is for Forward-Forward"),
        ({"kernels": "conv"}, "--kernels conv is for Forward-Forward"),
        ({"autotune": True}, "--autotune is for Forward-Forward"),
        ({"loss": "my_package:Loss"}, "--loss my_package:Loss is for Forward-Forward"),
        ({"rule": "plain"}, "--rule plain is for Forward-Forward"),
        ({"transport": "gloo"}, "--transport gloo is for Forward-Forward"),
        ({"rebalance": True}, "--rebalance is for Forward-Forward"),
        ({"lr_scale": 0.5}, "--lr-scale 0.5 is for Forward-Forward: with --method bp one loss"),
        ({"workers": 41}, "--workers 41 cannot share a batch of 40"),
    ],
    ids=str,
)
def test_an_option_of_the_other_method_is_refused(options: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match=f"^{sentence}"):
        check_method(TrainConfig(**{"method": "bp", **options}), batch_size=40)


def test_the_same_learning_rate_in_all_layers_is_for_both_methods():
    check_method(TrainConfig(method="bp", lr_scale=1.0), batch_size=40)
    check_method(TrainConfig(lr_scale=0.5), batch_size=40)
