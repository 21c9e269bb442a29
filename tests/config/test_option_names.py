"""What is near to what a user wrote: literal cases, and what has nothing near."""

import dataclasses

import pytest

from rayff.config.errors import near, nearest
from rayff.config.option_names import OTHER_NAMES, near_option, nearest_option
from rayff.config.train_config import TrainConfig

OPTIONS = [field.name.replace("_", "-") for field in dataclasses.fields(TrainConfig)] + ["resume"]


class TestASpelling:
    KNOWN = (
        "lr",
        "lr-min",
        "batch_size",
        "checkpoint-every",
        "resnet",
        "resnet34",
        "vgg",
        "quick",
    )

    @pytest.mark.parametrize(
        ("word", "meant"),
        [
            ("lrr", "lr"),
            ("LR", "lr"),
            ("min-lr", "lr-min"),
            ("lr_min", "lr-min"),
            ("batchsize", "batch_size"),
            ("batch-size", "batch_size"),
            ("check", "checkpoint-every"),
            ("resnt", "resnet"),
            ("resnet18", "resnet"),
            ("resnet-34", "resnet34"),
            ("vgg16", "vgg"),
            ("quik", "quick"),
        ],
    )
    def test_is_near_to(self, word: str, meant: str) -> None:
        assert near(word, self.KNOWN) == meant
        assert nearest(word, self.KNOWN) == f" (did you mean {meant!r}?)"

    @pytest.mark.parametrize(
        "word", ["", "l", "re", "max-lr", "size", "rate", "transformer", "densenet", "batch-norm"]
    )
    def test_is_near_to_nothing(self, word: str) -> None:
        assert near(word, self.KNOWN) is None
        assert nearest(word, self.KNOWN) == ""


class TestAnOption:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("--learning-rate", "lr"),
            ("--learning_rate", "lr"),
            ("--optimizer.lr", "lr"),
            ("--min-lr", "lr-min"),
            ("--lr-scheduler-type", "lr-schedule"),
            ("--lr-milestones", "lr-steps"),
            ("--gamma", "lr-decay"),
            ("--warmup-steps", "warmup-epochs"),
            ("--layer-decay", "lr-scale"),
            ("--max-grad-norm", "clip-norm"),
            ("--output-dir", "run-dir"),
            ("--num-train-epochs", "epochs"),
            ("--trainer.max_epochs", "epochs"),
            ("--per-device-train-batch-size", "batch-size"),
            ("--num-workers", "stages"),
            ("--gpus", "stages"),
            ("--devices", "stages"),
            ("--nproc_per_node", "stages"),
            ("--model", "arch"),
            ("--dataset", "task"),
            ("--wd", "weight-decay"),
            ("--resume-from-checkpoint", "resume"),
            ("--fp16", "precision bf16"),
            ("--bf16", "precision bf16"),
            ("--no-cuda", "device cpu"),
            ("--save-total-limit", "keep-checkpoints"),
            ("--report-to", "logger"),
            ("--epoch", "epochs"),
            ("--wieght-decay", "weight-decay"),
        ],
    )
    def test_of_another_trainer_is_near_to_ours(self, name: str, meant: str) -> None:
        assert near_option(name, OPTIONS) == meant

    @pytest.mark.parametrize(
        "name",
        "momentum gradient-accumulation-steps deepspeed local-rank "
        "betas num-classes max-steps pretrained fsdp verbose "
        "foo f".split(),
    )
    def test_without_a_counterpart_is_near_to_nothing(self, name: str) -> None:
        assert near_option(f"--{name}", OPTIONS) is None

    def test_is_not_near_to_its_opposite(self) -> None:
        assert near_option("--no-ry", ["ry", "no-ray"]) == "no-ray"
        assert near_option("--prune", ["no-prune"]) is None

    def test_is_near_to_what_the_command_has_only(self) -> None:
        assert near_option("--learning-rate", ["arch", "device"]) is None
        assert near_option("--num-threads", ["arch", "threads"]) == "threads"
        assert near_option("--num-threads", OPTIONS) == "cpus-per-stage"

    def test_of_a_file_is_called_as_its_field(self) -> None:
        fields = ["weight_decay", "precision", "lr"]
        assert nearest_option("wd", fields) == " (did you mean 'weight_decay'?)"
        assert nearest_option("fp16", fields) == " (did you mean 'precision'?)"
        assert nearest_option("momentum", fields) == ""


def test_no_name_of_another_trainer_is_ours() -> None:
    assert not {name for theirs in OTHER_NAMES.values() for name in theirs.split()} & {*OPTIONS}
