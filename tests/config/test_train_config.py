"""A TrainConfig alone: values, choices, JSON."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig, loss_config
from rayff.config.train_config import TrainConfig

TRANSPORTS = "object-store, auto, cuda-ipc, nccl, nixl, gloo"

EVERY_OPTION = TrainConfig(
    limit=500,
    image_size=64,
    image_channels=1,
    resize="pad",
    image_column="jpg",
    label_column="cls",
    stream=True,
    arch="resnet",
    method="bp",
    workers=2,
    init_from="runs/before",
    freeze="0-4",
    keep_best=True,
    eval_every=3,
    patience=3,
    tags="a,b",
    notes="first try",
    width=50,
    task="cifar10",
    data_dir="data",
    download=True,
    augment="flip",
    loss="my_package:Loss",
    head_dim=64,
    similarity_weight=0.5,
    temperature=2.0,
    label_smoothing=0.1,
    class_weights="balanced",
    epochs=5,
    batch_size=64,
    lr=0.1,
    lr_schedule="constant",
    lr_min=0.01,
    lr_steps=(0.5, 0.75),
    lr_decay=0.1,
    warmup_epochs=2,
    lr_scale=0.5,
    clip_norm=1.5,
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
    log_every=50,
)
EXCLUDED_BY_IT: list[dict[str, Any]] = [
    {"rule": "plain", "kernels": None},
    {"autotune": True, "kernels": None},
    {"elastic": "2:4", "stages": None, "cuts": None, "replicas": None},
]


class TestNumbers:
    @pytest.mark.parametrize(
        ("field", "flag", "least"),
        [
            ("width", "--width", 1),
            ("limit", "--limit", 1),
            ("epochs", "--epochs", 1),
            ("batch_size", "--batch-size", 1),
            ("stages", "--stages", 1),
            ("workers", "--workers", 1),
            ("chunk", "--chunk", 1),
            ("window", "--window", 1),
            ("checkpoint_every", "--checkpoint-every", 1),
            ("eval_every", "--eval-every", 1),
            ("keep_checkpoints", "--keep-checkpoints", 1),
            ("log_every", "--log-every", 1),
            ("seed", "--seed", 0),
            ("warmup_epochs", "--warmup-epochs", 0),
            ("max_failures", "--max-failures", -1),
        ],
    )
    def test_a_count_has_a_least_value(self, field: str, flag: str, least: int):
        for value in (least - 1, least - 2):
            sentence = f"^{flag} must be a number of {least} or more, not {value}$"
            with pytest.raises(UserError, match=sentence):
                TrainConfig(**{field: value})
        assert getattr(TrainConfig(**{field: least}), field) == least

    @pytest.mark.parametrize(
        ("field", "flag"),
        [("lr", "--lr"), ("lr_min", "--lr-min"), ("weight_decay", "--weight-decay")],
    )
    def test_an_amount_is_finite_and_not_negative(self, field: str, flag: str):
        for value in (-1e-9, math.nan, math.inf):
            with pytest.raises(UserError, match=f"^{flag} must be a number of 0 or more"):
                TrainConfig(**{field: value})
        assert getattr(TrainConfig(**{field: 0.0}), field) == 0

    @pytest.mark.parametrize("name", ["epochs", "seed", "limit", "lr", "cpus_per_stage"])
    @pytest.mark.parametrize("value", [2**128, 10**400, 10**5000], ids=["2**128", "400", "5000"])
    def test_a_number_that_is_far_too_large_is_refused(self, name: str, value: int):
        flag = name.replace("_", "-")
        with pytest.raises(UserError, match=rf"^--{flag} must be a number below 2\*\*128: choose"):
            TrainConfig(**{name: value})

    @pytest.mark.parametrize(
        ("field", "flag"), [("lr_scale", "--lr-scale"), ("clip_norm", "--clip-norm")]
    )
    def test_a_factor_is_above_0(self, field: str, flag: str):
        for value in (-1.0, 0, 0.0, math.nan):
            with pytest.raises(UserError, match=f"^{flag} must be a number above 0, not {value}$"):
                TrainConfig(**{field: value})
        for value in (math.inf, 10**5000):
            with pytest.raises(UserError, match=f"^{flag} must be a number "):
                TrainConfig(**{field: value})
        assert getattr(TrainConfig(**{field: 1e-9}), field) == 1e-9

    @pytest.mark.parametrize("value", [-0.1, 0, 1, 1.5, math.nan, 10**400])
    def test_a_decay_is_between_0_and_1(self, value: float):
        with pytest.raises(UserError, match="^--lr-decay must be "):
            TrainConfig(lr_decay=value)

    @pytest.mark.parametrize("steps", [(), (0.0,), (1.0,), (0.5, 0.5), (0.75, 0.5), (50, 75)])
    def test_steps_are_ascending_shares_of_the_run(self, steps: tuple[float, ...]):
        shown = ",".join(map(str, steps))
        with pytest.raises(UserError, match=f"^--lr-steps {shown}: give shares of the run's"):
            TrainConfig(lr_steps=steps)
        for value in (-0.5, math.nan, 10**5000):
            with pytest.raises(UserError, match="^--lr-steps must be a number "):
                TrainConfig(lr_steps=(value,))
        assert TrainConfig(lr_steps=(0.5, 0.75)).lr_steps == (0.5, 0.75)

    @pytest.mark.parametrize("dropout", [-0.1, 0.9965, 0.999, 511.5 / 512, 1.0, 1.5, math.nan])
    def test_dropout_that_its_steps_of_1_256_round_to_everything_is_refused(self, dropout: float):
        with pytest.raises(UserError, match=rf"^--dropout must be .*, not {dropout}$"):
            TrainConfig(dropout=dropout)

    @pytest.mark.parametrize("dropout", [0.0, 0.2, 0.99, 255 / 256])
    def test_dropout_below_one_is_accepted(self, dropout: float):
        assert TrainConfig(dropout=dropout).dropout == dropout


class TestResources:
    """Ray counts CPUs and GPUs in steps of 1/10,000."""

    @pytest.mark.parametrize(
        "cpus", [0, 0.0, -1, -0.5, 1e-5, 0.00015, 1 / 3, math.nan, math.inf, 2**200]
    )
    def test_cpus_between_the_steps_are_refused(self, cpus: float):
        with pytest.raises(UserError, match="^--cpus-per-stage must be [^\n]*$"):
            TrainConfig(cpus_per_stage=cpus)

    @pytest.mark.parametrize("gpus", [-1, -0.5, 1e-5, 1 / 3, 1.5, math.nan, math.inf, 2**200])
    def test_gpus_between_the_steps_are_refused(self, gpus: float):
        with pytest.raises(UserError, match="^--gpus-per-stage must be [^\n]*$"):
            TrainConfig(gpus_per_stage=gpus)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                {"cpus_per_stage": 0},
                "--cpus-per-stage must be more than 0, in steps of 1/10,000, not 0",
            ),
            (
                {"gpus_per_stage": 1.5},
                "--gpus-per-stage must be a whole number, or a fraction below 1 in steps of "
                "1/10,000, not 1.5",
            ),
        ],
    )
    def test_the_message_names_the_steps(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError) as caught:
            TrainConfig(**options)
        assert str(caught.value) == sentence

    @given(steps=st.integers(1, 10_000))
    def test_every_step_is_accepted(self, steps: int):
        TrainConfig(cpus_per_stage=steps / 10_000, gpus_per_stage=steps / 10_000)
        TrainConfig(cpus_per_stage=7 + steps / 10_000, gpus_per_stage=steps)
        TrainConfig(gpus_per_stage=0)


class TestChoices:
    @pytest.mark.parametrize(
        ("field", "written", "suggestion", "known"),
        [
            ("method", "bpp", "bp", "ff, bp, bp-deepsup"),
            ("lr_schedule", "cosin", "cosine", "cosine, constant, step"),
            ("precision", "fp16", "bf16", "fp32, bf16"),
            ("rule", "quick", None, "fast, plain"),
            ("device", "cudaa", "cuda", "auto, cpu, cuda"),
            ("device", "cuda:0", "cuda", "auto, cpu, cuda"),
            ("transport", "object_store", "object-store", TRANSPORTS),
            ("transport", "ncll", "nccl", TRANSPORTS),
            ("placement", "strict-spread", "strict_spread", "pack, spread, strict_spread"),
            ("placement", "STRICT_PACK", "strict_spread", "pack, spread, strict_spread"),
        ],
    )
    def test_an_unknown_one_is_answered_with_the_known_ones(
        self, field: str, written: str, suggestion: str | None, known: str
    ):
        hint = rf" \(did you mean '{suggestion}'\?\)" if suggestion else ""
        sentence = f"^--{field.replace('_', '-')}: unknown {written!r}{hint}; known are {known}$"
        with pytest.raises(UserError, match=sentence):
            TrainConfig(**{field: written})
        for value in known.split(", "):
            assert getattr(TrainConfig(**{field: value}), field) == value

    def test_loggers_are_known_names_with_commas_between_them_or_none(self):
        assert TrainConfig().loggers == ("tensorboard",)
        assert TrainConfig(logger="mlflow, wandb,mlflow").loggers == ("mlflow", "wandb")
        assert TrainConfig(logger="none").loggers == ()
        known = "known are tensorboard, mlflow, wandb, with commas between them, or none"
        for written, wrong in (("mlflw", "'mlflw'"), ("", "''"), ("none,wandb", "'none'")):
            with pytest.raises(UserError, match=f"^--logger {written}: unknown {wrong}") as caught:
                TrainConfig(logger=written)
            assert str(caught.value).endswith(known)

    @pytest.mark.parametrize(
        ("written", "counts"),
        [("1", (1,)), ("1,2,1", (1, 2, 1)), ("16,1", (16, 1)), ("auto", None), (None, None)],
    )
    def test_replicas_are_numbers_with_commas_between_them_or_auto(
        self, written: str, counts: tuple[int, ...] | None
    ):
        assert TrainConfig(replicas=written).replica_counts == counts

    @pytest.mark.parametrize(
        "written", ["", "0", "1,0", "1,,2", "1, 2", "-1", "2x", "Auto", "1.0"]
    )
    def test_other_replicas_are_refused(self, written: str):
        with pytest.raises(UserError, match=f"^--replicas {written}: give .* such as 1,2,1"):
            TrainConfig(replicas=written)

    def test_elastic_is_a_range_that_excludes_a_fixed_plan(self):
        assert TrainConfig(elastic="2:4").elastic_range == (2, 4)
        for written in ("", "2", "0:4", "4:2", "2-4", "a:b"):
            sentence = f"^--elastic {written}: give the fewest and the most stages, such as 2:4$"
            with pytest.raises(UserError, match=sentence):
                TrainConfig(elastic=written)
        for name, value in (("stages", 3), ("cuts", (2,)), ("replicas", "1,2")):
            with pytest.raises(UserError, match=f"^--elastic 2:4 .*; leave --{name} out$"):
                TrainConfig(elastic="2:4", **{name: value})


class TestLossOptions:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"head_dim": 0, "loss": "linear"}, "--head-dim must be a whole number of 1 or more"),
            ({"similarity_weight": 1.5}, "--similarity-weight must be a number from 0 to 1, not"),
            ({"label_smoothing": 1.0}, "--label-smoothing must be a number from 0 to 0.999, not"),
            ({"temperature": 0.0}, "--temperature must be a number of 0.001 or more, not 0.0"),
            ({"class_weights": "balance"}, "--class-weights: unknown 'balance'.*'balanced'"),
            (
                {"head_dim": 64},
                "--head-dim is not read by --loss goodness: .* --loss linear, linear_similarity",
            ),
            (
                {"similarity_weight": 0.5, "loss": "linear"},
                "--similarity-weight is not read by --loss linear",
            ),
            ({"temperature": 2.0, "loss": "linear"}, "--temperature .* --loss channel_matrix$"),
        ],
        ids=str,
    )
    def test_a_wrong_or_unread_one_is_refused(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            TrainConfig(**options)

    def test_losses_of_a_users_own_get_all_of_them(self):
        config = TrainConfig(loss="a:B", head_dim=3, temperature=2.0, label_smoothing=0.1)
        found = loss_config(config, (1.0, 2.0))
        expected = LossConfig(
            name="a:B",
            head_dim=3,
            temperature=2.0,
            label_smoothing=0.1,
            class_weights=(1.0, 2.0),
        )
        assert found == expected


class TestKernelsAndRules:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"kernels": "fast"}, "--kernels: unknown 'fast'"),
            (
                {"kernels": "conv", "rule": "plain"},
                "--kernels conv is for the fast rule: .* --rule",
            ),
            ({"autotune": True, "rule": "plain"}, "--autotune is for the fast rule"),
            ({"autotune": True, "kernels": "conv"}, "--autotune chooses .*--kernels conv names"),
        ],
        ids=str,
    )
    def test_contradictions_are_refused(self, options: dict[str, Any], sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            TrainConfig(**options)

    @pytest.mark.parametrize("kernels", ["amx", "conv,amx/unfold", "conv/amx,conv"])
    def test_kernels_for_bfloat16_are_refused_with_float32(self, kernels: str):
        with pytest.raises(UserError, match="amx multiplies bfloat16 only: use --precision bf16"):
            TrainConfig(kernels=kernels, precision="fp32")
        assert TrainConfig(kernels=kernels, precision="bf16").kernels == kernels
        assert TrainConfig(kernels=kernels).kernels == kernels, "the processor may have bfloat16"


class TestPaths:
    @pytest.mark.parametrize("name", ["task", "data_dir", "run_dir", "storage_path"])
    @pytest.mark.parametrize("value", ["a\0b", "\ud800/x"])
    def test_one_that_no_disk_accepts_is_refused(self, name: str, value: str):
        flag = name.replace("_", "-")
        sentence = f"^--{flag}: '[ -~]*' is not a valid path: remove NUL or undecodable characters"
        with pytest.raises(UserError, match=sentence):
            TrainConfig(**{name: value})

    @pytest.mark.parametrize(
        ("field", "flag"), [("run_dir", "--run-dir"), ("storage_path", "--storage-path")]
    )
    def test_an_empty_one_is_refused(self, field: str, flag: str):
        with pytest.raises(UserError, match=f"^{flag} '' names no folder: name one, or leave"):
            TrainConfig(**{field: ""})


class TestFromDict:
    def test_an_empty_object_is_the_default_config(self):
        assert TrainConfig.from_dict({}) == TrainConfig()
        assert (TrainConfig().arch, TrainConfig().task, TrainConfig().seed) == (
            *("tinycnn", "digits", 0),
        )

    def test_every_option_survives_json(self):
        excluded = {name for changes in EXCLUDED_BY_IT for name, value in changes.items() if value}
        unset = {
            field.name
            for field in dataclasses.fields(TrainConfig)
            if getattr(EVERY_OPTION, field.name) == field.default
        }
        assert unset == excluded
        for changes in ({}, *EXCLUDED_BY_IT):
            config = dataclasses.replace(EVERY_OPTION, **changes)
            assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_names_may_have_hyphens_as_on_the_command_line(self):
        assert TrainConfig.from_dict({"batch-size": 4, "keep-checkpoints": 5}) == TrainConfig(
            batch_size=4, keep_checkpoints=5
        )

    def test_an_unknown_option_is_answered_with_the_nearest_and_the_source(self):
        with pytest.raises(
            UserError, match=r"^my.json: unknown option 'batchsize' \(did you mean 'batch_size'"
        ):
            TrainConfig.from_dict({"batchsize": 4}, "my.json")
        with pytest.raises(UserError, match="unknown option 1"):
            TrainConfig.from_dict({1: 2})  # type: ignore[dict-item]

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(("epochs", value) for value in ("5", 2.5, 5.0, True, [5])),
            *(("lr", value) for value in ("0.1", True, [0.1])),
            *(("download", value) for value in (1, "yes", None)),
            *(("arch", value) for value in (5, None, ["resnet"])),
            *(("cuts", value) for value in ("5,9", 5, [5, 9.0], [5, "9"], [True], [[5]])),
            *(("optimizer", 3), ("task", {"name": "digits"}), ("checkpoint_every", None)),
            *(("lr_steps", value) for value in ("0.5", 0.5, [0.5, "0.75"], [True], [[0.5]])),
            *(("seed", None), ("seed", 1.0), ("transport", None)),
        ],
    )
    def test_a_wrong_type_is_named_with_source_option_and_value(self, field: str, value: object):
        with pytest.raises(UserError, match=f"^my.json: {field} must be of type ") as caught:
            TrainConfig.from_dict({field: value}, "my.json")
        assert repr(value) in str(caught.value)

    def test_integers_are_floats_and_lists_are_tuples(self):
        config = TrainConfig.from_dict({"lr": 1, "cuts": [5, 9], "lr_steps": [0.5, 0.75]})
        assert (config.lr, config.cuts, config.lr_steps) == (1, (5, 9), (0.5, 0.75))

    @pytest.mark.parametrize("data", [[1], "resnet", 5, None])
    def test_other_json_than_an_object_is_refused(self, data: object):
        with pytest.raises(UserError, match=r"^my.json must be a JSON object"):
            TrainConfig.from_dict(data, "my.json")  # type: ignore[arg-type]

    def test_values_are_validated_as_well(self):
        with pytest.raises(UserError, match="^--epochs must be"):
            TrainConfig.from_dict({"epochs": 0})
