import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig

EVERYTHING = TrainConfig(
    limit=500,
    arch="resnet",
    method="bp",
    workers=2,
    width=50,
    task="cifar10",
    data_dir="data",
    download=True,
    epochs=5,
    batch_size=64,
    lr=0.1,
    lr_min=0.01,
    weight_decay=0.02,
    dropout=0.5,
    optimizer="sgd",
    seed=7,
    precision="bf16",
    kernels="unfold,conv/winograd",
    stages=4,
    cuts=(5, 9, 13),
    replicas="1,2,2,1",
    chunk=3,
    window=6,
    transport="gloo",
    placement="strict_spread",
    device="cpu",
    cpus_per_stage=1.5,
    gpus_per_stage=0.5,
    run_dir="runs/one",
    checkpoint_every=2,
    keep_checkpoints=3,
    rebalance=True,
    storage_path="s3://bucket/runs",
    max_failures=5,
    logger="mlflow,wandb",
)


class TestValidation:
    @pytest.mark.parametrize(
        ("field", "flag"),
        [
            ("width", "--width"),
            ("epochs", "--epochs"),
            ("batch_size", "--batch-size"),
            ("stages", "--stages"),
            ("chunk", "--chunk"),
            ("window", "--window"),
            ("checkpoint_every", "--checkpoint-every"),
            ("keep_checkpoints", "--keep-checkpoints"),
        ],
    )
    @pytest.mark.parametrize("value", [0, -1])
    def test_a_count_is_one_or_more(self, field: str, flag: str, value: int):
        with pytest.raises(UserError, match=f"^{flag} must be a number of 1 or more, not {value}"):
            TrainConfig(**{field: value})
        assert getattr(TrainConfig(**{field: 1}), field) == 1

    def test_a_seed_is_not_negative(self):
        with pytest.raises(UserError, match="^--seed must be a number of 0 or more, not -1"):
            TrainConfig(seed=-1)
        assert TrainConfig(seed=0).seed == 0

    @pytest.mark.parametrize(
        ("field", "flag"),
        [
            ("lr", "--lr"),
            ("lr_min", "--lr-min"),
            ("weight_decay", "--weight-decay"),
        ],
    )
    @pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
    def test_an_amount_is_finite_and_not_negative(self, field: str, flag: str, value: float):
        with pytest.raises(UserError, match=f"^{flag} must be a number of 0 or more"):
            TrainConfig(**{field: value})
        assert getattr(TrainConfig(**{field: 0.0}), field) == 0

    @pytest.mark.parametrize(
        "cpus", [0, 0.0, -1, -0.5, 1e-5, 0.00015, 1 / 3, math.nan, math.inf, 2**200]
    )
    def test_cpus_that_ray_does_not_give_are_refused(self, cpus: float):
        with pytest.raises(UserError, match="^--cpus-per-stage must be [^\n]*$"):
            TrainConfig(cpus_per_stage=cpus)

    def test_cpus_are_said_to_come_in_steps(self):
        sentence = "^--cpus-per-stage must be more than 0, in steps of 1/10,000, not 0$"
        with pytest.raises(UserError, match=sentence):
            TrainConfig(cpus_per_stage=0)

    @pytest.mark.parametrize("gpus", [-1, -0.5, 1e-5, 1 / 3, 1.5, math.nan, math.inf, 2**200])
    def test_gpus_that_ray_does_not_give_are_refused(self, gpus: float):
        with pytest.raises(UserError, match="^--gpus-per-stage must be [^\n]*$"):
            TrainConfig(gpus_per_stage=gpus)

    def test_gpus_are_said_to_be_whole_or_a_fraction_of_one(self):
        sentence = (
            "^--gpus-per-stage must be a whole number, or a fraction below 1 in steps of "
            "1/10,000, not 1.5$"
        )
        with pytest.raises(UserError, match=sentence):
            TrainConfig(gpus_per_stage=1.5)

    @given(steps=st.integers(1, 10_000))
    def test_every_step_of_ray_is_taken(self, steps: int):
        TrainConfig(cpus_per_stage=steps / 10_000, gpus_per_stage=steps / 10_000)
        TrainConfig(cpus_per_stage=7 + steps / 10_000, gpus_per_stage=steps)
        TrainConfig(gpus_per_stage=0)

    @pytest.mark.parametrize(
        ("field", "flag"), [("run_dir", "--run-dir"), ("storage_path", "--storage-path")]
    )
    def test_a_folder_has_a_name(self, field: str, flag: str):
        with pytest.raises(UserError, match=f"^{flag} '' names no folder: name one, or leave"):
            TrainConfig(**{field: ""})

    @pytest.mark.parametrize("kernels", ["amx", "conv,amx/unfold", "conv/amx,conv"])
    def test_kernels_for_bfloat16_are_refused_with_float32(self, kernels: str):
        with pytest.raises(UserError, match="amx multiplies bfloat16 only: use --precision bf16"):
            TrainConfig(kernels=kernels, precision="fp32")
        assert TrainConfig(kernels=kernels, precision="bf16").kernels == kernels
        assert TrainConfig(kernels=kernels).kernels == kernels, "the processor may have bfloat16"

    @pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, math.nan])
    def test_dropout_is_a_share_below_one(self, dropout: float):
        with pytest.raises(UserError, match=r"^--dropout must be .*not"):
            TrainConfig(dropout=dropout)

    @pytest.mark.parametrize("dropout", [0.9965, 0.999, 511.5 / 512])
    def test_dropout_that_its_256_steps_would_round_to_everything_is_refused(self, dropout: float):
        with pytest.raises(UserError, match=r"^--dropout must be .*not"):
            TrainConfig(dropout=dropout)

    @pytest.mark.parametrize("dropout", [0.0, 0.2, 0.99, 255 / 256])
    def test_dropout_that_leaves_something_is_taken(self, dropout: float):
        assert TrainConfig(dropout=dropout).dropout == dropout

    @pytest.mark.parametrize(
        ("field", "written", "meant"),
        [
            ("optimizer", "adamx", "adam"),
            ("optimizer", "SGD", None),
            ("precision", "fp16", "bf16"),
            ("device", "cudaa", "cuda"),
            ("device", "cuda:0", "cuda"),
            ("transport", "object_store", "object-store"),
            ("transport", "ncll", "nccl"),
            ("placement", "strict-spread", "strict_spread"),
            ("placement", "STRICT_PACK", None),
        ],
    )
    def test_an_unknown_choice_is_answered_with_the_known_ones(
        self, field: str, written: str, meant: str | None
    ):
        with pytest.raises(UserError, match=f"^--{field}: unknown {written!r}") as caught:
            TrainConfig(**{field: written})
        known = {
            "optimizer": "adamw, adam, sgd",
            "precision": "fp32, bf16",
            "device": "auto, cpu, cuda",
            "transport": "object-store, nccl, gloo, nixl",
            "placement": "pack, spread, strict_spread",
        }[field]
        assert str(caught.value).endswith(f"known are {known}")
        if meant:
            assert f"did you mean {meant!r}" in str(caught.value)

    def test_every_known_choice_is_taken(self):
        for field, values in {
            "optimizer": ("adamw", "adam", "sgd", None),
            "precision": ("fp32", "bf16"),
            "device": ("auto", "cpu", "cuda"),
            "transport": ("object-store", "nccl", "gloo", "nixl"),
            "placement": ("pack", "spread", "strict_spread"),
        }.items():
            assert [getattr(TrainConfig(**{field: value}), field) for value in values] == list(
                values
            )

    def test_loggers_are_known_names_with_commas_or_none(self):
        assert TrainConfig().loggers == ("tensorboard",)
        assert TrainConfig(logger="mlflow, wandb,mlflow").loggers == ("mlflow", "wandb")
        assert TrainConfig(logger="none").loggers == ()
        known = "known are tensorboard, mlflow, wandb, with commas between them, or none"
        for written, wrong in (("mlflw", "'mlflw'"), ("", "''"), ("none,wandb", "'none'")):
            with pytest.raises(UserError, match=f"^--logger {written}: unknown {wrong}") as caught:
                TrainConfig(logger=written)
            assert str(caught.value).endswith(known)

    def test_a_choice_that_is_not_optional_cannot_be_left_empty(self):
        with pytest.raises(UserError, match="rule"):
            TrainConfig.from_dict({"rule": None})


class TestFromDict:
    def test_an_empty_object_is_the_default_run(self):
        assert TrainConfig.from_dict({}) == TrainConfig()
        assert (TrainConfig().arch, TrainConfig().task, TrainConfig().seed) == (
            "tinycnn",
            "digits",
            0,
        )

    def test_every_option_survives_json(self):
        assert all(
            getattr(EVERYTHING, field.name) != field.default
            for field in dataclasses.fields(TrainConfig)
            if field.name not in ("rule", "elastic")
        ), "EVERYTHING sets every option, so that each is tried"
        plain = dataclasses.replace(EVERYTHING, rule="plain", kernels=None)  # they exclude others
        elastic = dataclasses.replace(
            EVERYTHING, stages=None, cuts=None, replicas=None, elastic="2:4"
        )
        for run in (EVERYTHING, plain, elastic):
            assert TrainConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run

    @given(
        run=st.builds(
            TrainConfig,
            epochs=st.none() | st.integers(1, 10**6),
            lr=st.none() | st.floats(0, 1e6),
            dropout=st.none() | st.floats(0, 0.99),
            seed=st.integers(0, 2**64),
            replicas=st.sampled_from([None, "auto", "1", "2,1", "1,12,3"]),
            cuts=st.none() | st.lists(st.integers(1, 99), max_size=5).map(tuple),
            gpus_per_stage=st.none() | st.integers(0, 8) | st.sampled_from([0.25, 0.3333]),
            data_dir=st.none() | st.text().filter(lambda text: "\0" not in text),
            download=st.booleans(),
        )
    )
    def test_a_run_comes_back_from_json_as_it_was(self, run: TrainConfig):
        assert TrainConfig.from_dict(json.loads(json.dumps(run.to_dict()))) == run

    def test_a_list_of_cuts_becomes_a_tuple(self):
        assert TrainConfig.from_dict({"cuts": [5, 9]}).cuts == (5, 9)
        assert TrainConfig.from_dict({"cuts": (5, 9)}).cuts == (5, 9)
        assert TrainConfig.from_dict({"cuts": []}).cuts == ()
        assert TrainConfig.from_dict({"cuts": None}).cuts is None

    def test_names_may_be_written_as_on_the_command_line(self):
        assert TrainConfig.from_dict({"batch-size": 4, "keep-checkpoints": 5}) == TrainConfig(
            batch_size=4, keep_checkpoints=5
        )

    def test_an_unknown_option_is_answered_with_the_nearest_and_the_place(self):
        with pytest.raises(
            UserError, match=r"^my.json: unknown option 'batchsize' \(did you mean 'batch_size'"
        ):
            TrainConfig.from_dict({"batchsize": 4}, "my.json")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("epochs", "5"),
            ("epochs", 2.5),
            ("epochs", 5.0),
            ("epochs", True),
            ("epochs", [5]),
            ("lr", "0.1"),
            ("lr", True),
            ("lr", [0.1]),
            ("download", 1),
            ("download", "yes"),
            ("download", None),
            ("arch", 5),
            ("arch", None),
            ("arch", ["resnet"]),
            ("optimizer", 3),
            ("task", {"name": "digits"}),
            ("seed", None),
            ("seed", 1.0),
            ("checkpoint_every", None),
            ("cuts", "5,9"),
            ("cuts", 5),
            ("cuts", [5, 9.0]),
            ("cuts", [5, "9"]),
            ("cuts", [True]),
            ("cuts", [[5]]),
        ],
    )
    def test_a_wrong_type_is_named_with_the_place_the_option_and_the_value(
        self, field: str, value: object
    ):
        with pytest.raises(UserError, match=f"^my.json: {field} must be of type ") as caught:
            TrainConfig.from_dict({field: value}, "my.json")
        assert repr(value) in str(caught.value)

    def test_a_whole_number_is_a_learning_rate_too(self):
        assert TrainConfig.from_dict({"lr": 1}).lr == 1

    @pytest.mark.parametrize("data", [[1], "resnet", 5, None])
    def test_what_is_no_object_is_refused(self, data: object):
        with pytest.raises(UserError, match=r"^my.json must be a JSON object"):
            TrainConfig.from_dict(data, "my.json")  # type: ignore[arg-type]

    def test_values_are_validated_as_well(self):
        with pytest.raises(UserError, match="^--epochs must be"):
            TrainConfig.from_dict({"epochs": 0})


class TestOverridden:
    def test_a_new_number_of_stages_takes_the_place_of_the_cuts(self):
        was = TrainConfig(stages=3, cuts=(5, 9))
        assert was.overridden(TrainConfig(stages=2, cuts=(5, 9))) == TrainConfig(stages=2)

    def test_new_cuts_take_the_place_of_the_number_of_stages(self):
        was = TrainConfig(stages=3, cuts=(5, 9))
        assert was.overridden(TrainConfig(stages=3, cuts=(4,))) == TrainConfig(cuts=(4,))

    @pytest.mark.parametrize(
        "asked",
        [
            TrainConfig(stages=3, cuts=(5, 9)),
            TrainConfig(stages=3, cuts=(5, 9), window=9),
            TrainConfig(stages=2, cuts=(4,)),
            TrainConfig(stages=4, cuts=(4,)),  # a contradiction of the user's own, which stays one
        ],
    )
    def test_what_was_asked_for_stays_otherwise(self, asked: TrainConfig):
        assert TrainConfig(stages=3, cuts=(5, 9)).overridden(asked) == asked

    @pytest.mark.parametrize(
        ("was", "asked", "then"),
        [
            ({"stages": 3, "cuts": (5, 9)}, {"replicas": "2,1"}, {"replicas": "2,1"}),
            ({"replicas": "2,1"}, {"stages": 4}, {"stages": 4}),
            ({"replicas": "2,1"}, {"cuts": (5,)}, {"cuts": (5,)}),
            ({"replicas": "2,1"}, {"replicas": "3,1"}, {"replicas": "3,1"}),
            ({"replicas": "2,1", "cuts": (5,)}, {"replicas": "1,3"}, {"replicas": "1,3"}),
            ({"replicas": "2,1"}, {"window": 5}, {"replicas": "2,1", "window": 5}),
            (
                {"replicas": "auto", "stages": 4},
                {"stages": 8},
                {"replicas": "auto", "stages": 8},
            ),
            (
                {"stages": 4, "cuts": (1, 2, 3)},
                {"replicas": "auto"},
                {"replicas": "auto", "stages": 4},
            ),
            ({"replicas": "auto", "stages": 4}, {"cuts": (5,)}, {"cuts": (5,)}),
            (
                {"stages": 2},
                {"replicas": "2,1", "cuts": (5,)},
                {"replicas": "2,1", "cuts": (5,)},
            ),
        ],
        ids=str,
    )
    def test_replicas_stages_and_cuts_make_room_for_one_another(
        self, was: dict[str, Any], asked: dict[str, Any], then: dict[str, Any]
    ):
        before = TrainConfig(**was)
        assert before.overridden(dataclasses.replace(before, **asked)) == TrainConfig(**then)


class TestReplicas:
    @pytest.mark.parametrize(
        ("written", "counts"),
        [("1", (1,)), ("1,2,1", (1, 2, 1)), ("16,1", (16, 1)), ("auto", None), (None, None)],
    )
    def test_are_numbers_with_commas_or_auto(self, written: str, counts: tuple[int, ...] | None):
        assert TrainConfig(replicas=written).replica_counts == counts

    @pytest.mark.parametrize(
        "written", ["", "0", "1,0", "1,,2", "1, 2", "-1", "2x", "Auto", "1.0"]
    )
    def test_anything_else_is_refused(self, written: str):
        with pytest.raises(UserError, match=f"^--replicas {written}: give .* such as 1,2,1"):
            TrainConfig(replicas=written)


class TestResuming:
    @pytest.mark.parametrize(
        ("field", "flag", "value"),
        [
            ("arch", "--arch", "vgg"),
            ("width", "--width", 20),
            ("task", "--task", "mnist"),
            ("seed", "--seed", 8),
            ("precision", "--precision", "fp32"),
            ("epochs", "--epochs", 6),
            ("batch_size", "--batch-size", 65),
            ("optimizer", "--optimizer", "adam"),
            ("lr", "--lr", 0.2),
            ("lr_min", "--lr-min", 0.02),
            ("weight_decay", "--weight-decay", 0.03),
            ("dropout", "--dropout", 0.4),
        ],
    )
    def test_what_decides_the_bits_cannot_change(self, field: str, flag: str, value: object):
        asked = dataclasses.replace(EVERYTHING, **{field: value})
        with pytest.raises(UserError, match=f"^{flag} {value}: ") as caught:
            EVERYTHING.check_resumes(asked)
        assert f"made with {getattr(EVERYTHING, field)}" in str(caught.value)

    def test_where_and_how_it_is_computed_may_change(self):
        EVERYTHING.check_resumes(
            dataclasses.replace(
                EVERYTHING,
                data_dir="elsewhere",
                download=False,
                stages=17,
                cuts=None,
                replicas=None,
                chunk=1,
                window=2,
                transport="object-store",
                placement="pack",
                device="auto",
                cpus_per_stage=None,
                gpus_per_stage=None,
                run_dir="elsewhere",
                checkpoint_every=1,
                keep_checkpoints=1,
            )
        )


class TestValuesThatNothingCanHold:
    @pytest.mark.parametrize("name", ["epochs", "seed", "limit", "lr", "cpus_per_stage"])
    @pytest.mark.parametrize("value", [2**128, 10**400, 10**5000], ids=["2**128", "400", "5000"])
    def test_a_number_that_is_far_too_large_is_refused(self, name: str, value: int):
        flag = name.replace("_", "-")
        with pytest.raises(UserError, match=rf"^--{flag} must be a number below 2\*\*128: choose"):
            TrainConfig(**{name: value})

    @pytest.mark.parametrize("name", ["task", "data_dir", "run_dir"])
    @pytest.mark.parametrize("value", ["a\0b", "\ud800/x"])
    def test_a_path_that_no_disk_takes_is_refused(self, name: str, value: str):
        with pytest.raises(UserError, match="no file or folder can be called '[ -~]*'; mend it"):
            TrainConfig(**{name: value})

    def test_a_key_that_is_no_text_is_an_unknown_option(self):
        with pytest.raises(UserError, match="unknown option 1"):
            TrainConfig.from_dict({1: 2})  # type: ignore[dict-item]
