"""From the user's config to the resolved one; resumed and changed configs."""

import dataclasses
import re
from dataclasses import asdict
from typing import Any

import pytest

from rayff.config.errors import UserError
from rayff.config.kernels import parse_kernels
from rayff.config.recipe import Recipe
from rayff.config.resolved import (
    resolve,
    resolve_recipe,
    resolve_rule,
    resume_config,
    with_recipe,
    without_excluded,
    written_out,
)
from rayff.config.train_config import TrainConfig
from rayff.models.zoo import ARCHITECTURES
from tests.helpers.losses import LINEAR, SPREAD

SHARED = {
    **{"epochs": 150, "batch_size": 128, "lr": 0.08, "lr_min": 0.008, "dropout": 0.2},
    **{"lr_schedule": "cosine", "lr_steps": None, "lr_decay": None, "warmup_epochs": 0},
    **{"lr_scale": 1.0, "clip_norm": None},
}


def merged(saved: TrainConfig, given: dict[str, Any]) -> TrainConfig:
    """Return a saved config with options given on the command line."""
    kept = without_excluded(saved, TrainConfig(**given), set(given))
    return dataclasses.replace(kept, **given)


class TestRecipe:
    @pytest.mark.parametrize(
        ("arch", "own"),
        [
            ("resnet", {"optimizer": "adamw", "weight_decay": 5e-4}),
            ("tinycnn", {"optimizer": "adamw", "weight_decay": 0.01}),
            ("vgg", {"optimizer": "adam", "weight_decay": 0.0}),
        ],
    )
    def test_the_default_is_the_papers(self, arch: str, own: dict[str, object]):
        assert asdict(resolve_recipe(TrainConfig(arch=arch), {})) == {**SHARED, **own}

    def test_all_other_architectures_have_that_of_the_resnet(self):
        resnet = resolve_recipe(TrainConfig(arch="resnet"), {})
        for arch in {*ARCHITECTURES.names, "my_package:net"} - {"vgg", "tinycnn"}:
            assert resolve_recipe(TrainConfig(arch=arch), {}) == resnet

    def test_the_tasks_values_come_before_the_papers(self):
        recipe = resolve_recipe(TrainConfig(arch="vgg"), {"epochs": 7, "optimizer": "sgd"})
        assert (recipe.epochs, recipe.optimizer) == (7, "sgd")
        assert (recipe.batch_size, recipe.weight_decay) == (128, 0.0)

    def test_the_users_values_come_before_both(self):
        config = TrainConfig(arch="tinycnn", epochs=3, dropout=0, weight_decay=0)
        assert resolve_recipe(config, {"epochs": 7, "lr": 0.5, "dropout": 0.1}) == Recipe(
            epochs=3, lr=0.5, weight_decay=0, dropout=0
        )

    @pytest.mark.parametrize("method", ["bp", "bp-deepsup"])
    def test_backpropagation_has_its_own_learning_rates(self, method: Any):
        recipe = resolve_recipe(TrainConfig(method=method), {"lr": 0.5, "epochs": 7})
        assert (recipe.lr, recipe.lr_min, recipe.epochs) == (1e-3, 1e-4, 7)
        assert resolve_recipe(TrainConfig(method=method, lr=0.5), {}).lr == 0.5

    def test_a_config_with_its_recipe_resolves_to_itself(self):
        config = TrainConfig(arch="vgg", seed=4, stages=2, lr=0.3)
        resolved = with_recipe(config, resolve_recipe(config, {"epochs": 7}))
        assert (resolved.epochs, resolved.lr, resolved.optimizer) == (7, 0.3, "adam")
        assert (resolved.arch, resolved.seed, resolved.stages) == ("vgg", 4, 2)
        again = resolve_recipe(resolved, {"epochs": 9, "lr": 1.0, "batch_size": 5})
        assert with_recipe(resolved, again) == resolved


class TestRule:
    @pytest.mark.parametrize(
        "options", [{"rule": "fast"}, {"kernels": "conv"}, {"autotune": True}], ids=str
    )
    def test_the_fast_one_and_its_options_are_refused_for_a_loss_of_the_map(
        self, options: dict[str, Any]
    ):
        config = TrainConfig(loss=LINEAR, **options)
        with pytest.raises(UserError, match=f"^--{next(iter(options))}.*--loss {LINEAR} sees the"):
            resolve_rule(config)

    @pytest.mark.parametrize("loss", ["goodness", "linear", "predsim"])
    def test_modules_have_the_plain_one_whatever_the_loss(self, loss: str):
        assert resolve_rule(TrainConfig(loss=loss), of_modules=True) == "plain"
        assert resolve_rule(TrainConfig(loss=loss, rule="plain"), of_modules=True) == "plain"

    @pytest.mark.parametrize(
        "options", [{"rule": "fast"}, {"kernels": "conv"}, {"autotune": True}], ids=str
    )
    def test_the_fast_one_is_refused_for_modules(self, options: dict[str, Any]):
        config = TrainConfig(arch="vgg8b", **options)
        with pytest.raises(UserError, match="convolutions, and the layers of --arch vgg8b are"):
            resolve_rule(config, of_modules=True)


class TestResolve:
    KERNELS = parse_kernels("conv/unfold,conv,unfold,winograd")

    @pytest.mark.parametrize(
        ("options", "rule"),
        [
            ({}, "fast"),
            ({"rule": "plain"}, "plain"),
            ({"loss": LINEAR}, "plain"),
            ({"loss": SPREAD}, "fast"),
            ({"loss": "linear"}, "fast"),
        ],
        ids=str,
    )
    def test_nothing_is_left_open(self, options: dict[str, Any], rule: str):
        config = TrainConfig(seed=3, augment="flip", **options)
        recipe = resolve_recipe(config, {})
        resolved = resolve(config, recipe, "bf16", self.KERNELS)
        assert None not in asdict(resolved).values()
        assert (resolved.rule, resolved.recipe, resolved.seed) == (rule, recipe, 3)
        assert (resolved.precision, resolved.kernels) == ("bf16", self.KERNELS)
        assert (resolved.loss.name, resolved.augment) == (config.loss, "flip")

    @pytest.mark.parametrize(
        ("options", "written"),
        [
            ({"autotune": True}, {"rule": "fast", "kernels": "conv/unfold,conv,unfold,winograd"}),
            ({"rule": "plain"}, {"rule": "plain", "kernels": None}),
            ({"method": "bp"}, {"rule": None, "kernels": None}),
        ],
        ids=str,
    )
    def test_the_config_of_the_run_directory_has_the_resolved_values(
        self, options: dict[str, Any], written: dict[str, Any]
    ):
        config = TrainConfig(stages=2, **options)
        resolved = resolve(config, resolve_recipe(config, {"epochs": 7}), "bf16", self.KERNELS)
        found = written_out(config, resolved)
        assert {name: getattr(found, name) for name in written} == written
        assert (found.epochs, found.precision, found.stages) == (7, "bf16", 2)
        assert not found.autotune


SAVED = TrainConfig(
    **{**SHARED, "arch": "resnet", "width": 50, "task": "cifar10", "optimizer": "sgd"},
    **{"weight_decay": 0.02, "precision": "bf16", "rule": "fast", "kernels": "conv,conv"},
    **{"augment": "flip", "limit": 500, "stages": 4, "transport": "gloo"},
)


class TestResume:
    @pytest.mark.parametrize(
        ("field", "flag", "value"),
        [
            ("arch", "--arch", "vgg"),
            ("method", "--method", "bp"),
            ("width", "--width", 20),
            ("task", "--task", "mnist"),
            ("limit", "--limit", None),
            ("augment", "--augment", "none"),
            ("seed", "--seed", 8),
            ("precision", "--precision", "fp32"),
            ("kernels", "--kernels", "unfold"),
            ("batch_size", "--batch-size", 65),
            ("optimizer", "--optimizer", "adam"),
            ("init_from", "--init-from", "elsewhere"),
            ("clip_norm", "--clip-norm", 2.0),
            ("weight_decay", "--weight-decay", 0.03),
            ("dropout", "--dropout", 0.4),
        ],
    )
    def test_options_that_decide_the_bits_cannot_change(
        self, field: str, flag: str, value: object
    ):
        asked = dataclasses.replace(SAVED, **{field: value})
        sentence = f"^{flag} {re.escape(str(value))}: the run was made with"
        with pytest.raises(UserError, match=sentence) as caught:
            resume_config(SAVED, asked)
        saved = getattr(SAVED, field)
        made = "without it" if saved is None else f"with {saved}"
        assert f"made {made}, " in str(caught.value)

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"rule": "plain", "kernels": None}, "--rule plain: the run was made with fast"),
            ({"loss": "a:B", "kernels": None}, "--rule fast|--loss a:B: .* made with goodness"),
            ({"autotune": True, "kernels": None}, "--autotune: .* made with the kernels conv,co"),
        ],
        ids=str,
    )
    def test_the_rule_the_loss_and_the_choice_of_kernels_stay_too(
        self, options: dict[str, Any], sentence: str
    ):
        with pytest.raises(UserError, match=f"^{sentence}"):
            resume_config(SAVED, dataclasses.replace(SAVED, **options))

    def test_what_the_run_resolved_by_itself_is_kept(self):
        open_again = {"precision": None, "rule": None, "kernels": None}
        assert resume_config(SAVED, dataclasses.replace(SAVED, **open_again)) == SAVED

    def test_the_same_kernels_may_be_one_entry(self):
        asked = dataclasses.replace(SAVED, kernels="conv")
        assert resume_config(SAVED, asked).kernels == "conv,conv"

    def test_a_run_from_before_an_option_has_its_default(self):
        options = SAVED.to_dict()
        for name in ("lr_schedule", "lr_steps", "lr_decay", "warmup_epochs", "lr_scale"):
            del options[name]
        del options["clip_norm"]
        before = TrainConfig.from_dict(options)
        assert with_recipe(before, resolve_recipe(before, {})) == SAVED

    def test_what_is_not_asked_is_as_in_the_run(self):
        recipe = {field.name: None for field in dataclasses.fields(Recipe)}
        assert resume_config(SAVED, dataclasses.replace(SAVED, **recipe)) == SAVED

    @pytest.mark.parametrize(
        "changes",
        [
            {"epochs": 200},
            {"lr": 0.2, "lr_min": 0.1, "lr_scale": 0.5, "warmup_epochs": 3},
            {"freeze": "0-3"},
        ],
        ids=str,
    )
    def test_epochs_schedule_and_frozen_layers_may_change(self, changes: dict[str, Any]):
        asked = dataclasses.replace(SAVED, **changes)
        assert resume_config(SAVED, asked) == asked

    def test_another_schedule_leaves_the_values_of_the_one_before(self):
        asked = TrainConfig(**{**SAVED.to_dict(), "lr_schedule": "constant", "lr_min": None})
        assert resume_config(SAVED, asked) == asked

    def test_where_and_how_it_computes_may_change(self):
        asked = dataclasses.replace(
            *(SAVED,),
            **{"data_dir": "elsewhere", "stages": None, "cuts": (3,), "chunk": 1, "window": 2},
            **{"transport": "object-store", "device": "cpu", "run_dir": "b", "cpus_per_stage": 1},
            **{"checkpoint_every": 3, "keep_checkpoints": 1, "max_failures": 0, "logger": "none"},
            log_every=7,
            eval_every=2,
        )
        assert resume_config(SAVED, asked) == asked


class TestOverride:
    @pytest.mark.parametrize(
        ("before", "asked", "after"),
        [
            ({"stages": 3, "cuts": (5, 9)}, {"stages": 2}, {"stages": 2}),
            ({"stages": 3, "cuts": (5, 9)}, {"cuts": (4,)}, {"cuts": (4,)}),
            ({"stages": 3, "cuts": (5, 9)}, {}, {"stages": 3, "cuts": (5, 9)}),
            (
                {"stages": 3, "cuts": (5, 9)},
                {"window": 9},
                {"stages": 3, "cuts": (5, 9), "window": 9},
            ),
            (
                {"stages": 3, "cuts": (5, 9)},
                {"stages": 4, "cuts": (4,)},  # a contradiction of the user's own stays one
                {"stages": 4, "cuts": (4,)},
            ),
            ({"stages": 3, "cuts": (5, 9)}, {"replicas": "2,1"}, {"replicas": "2,1"}),
            ({"replicas": "2,1"}, {"stages": 4}, {"stages": 4}),
            ({"replicas": "2,1"}, {"cuts": (5,)}, {"cuts": (5,)}),
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
    def test_new_options_replace_those_that_they_contradict(
        self, before: dict[str, Any], asked: dict[str, Any], after: dict[str, Any]
    ):
        assert merged(TrainConfig(**before), asked) == TrainConfig(**after)

    @pytest.mark.parametrize(
        ("before", "asked", "after"),
        [
            ({"elastic": "2:4"}, {"stages": 3}, {"stages": 3}),
            ({"stages": 3, "replicas": "auto"}, {"elastic": "2:4"}, {"elastic": "2:4"}),
            ({"rule": "fast", "kernels": "conv"}, {"rule": "plain"}, {"rule": "plain"}),
            (
                {"rule": "fast", "kernels": "conv"},
                {"autotune": True},
                {"rule": "fast", "autotune": True},
            ),
            (
                {"rule": "fast", "kernels": "conv"},
                {"loss": "my_package.losses:Mine"},
                {"loss": "my_package.losses:Mine"},
            ),
            ({"rule": "fast", "kernels": "conv"}, {"arch": "vgg8b"}, {"arch": "vgg8b"}),
            ({"rule": "plain"}, {"arch": "vgg8b"}, {"arch": "vgg8b", "rule": "plain"}),
            (
                {"rule": "fast", "kernels": "conv"},
                {"arch": "tinycnn"},
                {"rule": "fast", "kernels": "conv"},
            ),
        ],
        ids=str,
    )
    def test_a_file_gives_way_to_options_that_exclude_its_own(
        self, before: dict[str, Any], asked: dict[str, Any], after: dict[str, Any]
    ):
        assert merged(TrainConfig(**before), asked) == TrainConfig(**after)

    def test_another_method_begins_with_its_own_learning_rates(self):
        config = TrainConfig(stages=2, kernels="conv", epochs=7)
        saved = with_recipe(config, resolve_recipe(config, {}))
        asked = merged(saved, {"method": "bp"})
        assert (asked.lr, asked.lr_min, asked.stages, asked.kernels) == (None,) * 4
        assert (resolve_recipe(asked, {}).lr, asked.epochs) == (0.001, 7)
        asked = merged(saved, {"method": "bp", "lr": 0.5, "workers": 3})
        assert (asked.lr, asked.workers) == (0.5, 3)

    @pytest.mark.parametrize(
        ("before", "asked", "recipe"),
        [
            # the recipes differ in all but these values
            (
                {"epochs": 7, "batch_size": 9, "dropout": 0.1},
                {"loss": "linear"},
                {"epochs": 7, "batch_size": 9, "dropout": 0.1, "lr": 3e-3, "lr_min": 1e-5},
            ),
            ({}, {"loss": "predsim"}, {"lr": 5e-4, "lr_steps": (0.5, 0.75, 0.89, 0.94)}),
            ({"loss": "predsim"}, {"loss": "goodness"}, {"lr": 0.08, "lr_schedule": "cosine"}),
            # they are the same
            ({"loss": "linear", "lr": 0.5}, {"loss": "a:B"}, {"lr": 0.5, "lr_min": 1e-5}),
            # what is given comes first
            ({}, {"loss": "linear", "lr": 0.04}, {"lr": 0.04, "weight_decay": 0.0}),
            # a schedule leaves the options of another behind
            ({}, {"lr_schedule": "constant"}, {"lr": 0.08, "lr_min": None}),
            ({"lr_min": 0.001}, {"lr_schedule": "cosine"}, {"lr_min": 0.001}),
            (
                {"lr_schedule": "step", "lr_steps": (0.5,)},
                {"lr_schedule": "cosine"},
                {"lr_min": 0.008, "lr_steps": None},
            ),
            ({"lr_scale": 0.5, "clip_norm": 2.0}, {"method": "bp"}, {"lr_scale": 1.0, "lr": 1e-3}),
        ],
        ids=str,
    )
    def test_a_recipe_that_was_written_out_gives_way_to_another_one(
        self, before: dict[str, Any], asked: dict[str, Any], recipe: dict[str, Any]
    ):
        config = TrainConfig(**before)
        saved = with_recipe(config, resolve_recipe(config, {}))
        found = resolve_recipe(merged(saved, asked), {})
        assert {name: getattr(found, name) for name in recipe} == recipe
