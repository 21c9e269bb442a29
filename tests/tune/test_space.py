"""Search spaces: what a file may contain, its mistakes, and the checks of its trials."""

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from rayff.config.errors import UserError
from rayff.distributed.placement import Node
from rayff.tune.schedulers import check_strategy, explored
from rayff.tune.search import check_resources, longest_trial
from rayff.tune.space import SearchSpace, find_space, load_space

SHIPPED = ("augment", "learning_rate", "paper_table1", "quick", "stages", "width_depth")


def space(**param_space: object) -> SearchSpace:
    return SearchSpace(name="mine", param_space=param_space)


def write(folder: Path, text: str) -> str:
    path = folder / "space.py"
    path.write_text(text)
    return str(path)


class TestASpaceFile:
    def test_defines_a_search(self, tmp_path: Path) -> None:
        text = 'param_space = {"lr": 0.1}\nmetric = "test_accuracy"\nnum_samples = 3\nhelper = 1\n'
        assert load_space(write(tmp_path, text)) == SearchSpace(
            name="space", param_space={"lr": 0.1}, metric="test_accuracy", num_samples=3
        )

    @pytest.mark.parametrize("name", SHIPPED)
    def test_is_found_by_name_from_any_folder(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_space(name).num_trials >= 3

    def test_in_the_working_directory_comes_first(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tune_spaces").mkdir()
        (tmp_path / "tune_spaces" / "quick.py").write_text("param_space = {'lr': 1}")
        assert find_space("quick") == Path("tune_spaces/quick.py")

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("param_space = {", r"space\.py does not parse: .*line 1"),
            ("a = 1\n1 / 0\n", r"space\.py fails in line 2: ZeroDivisionError: division by zero"),
            ("raise SystemExit(3)", r"fails in line 1: SystemExit: 3"),
            ("parm_space = {}", r"has no param_space \(did you mean 'parm_space'\?\)"),
            ("param_space = {}", r"param_space must be a dict of options"),
            (
                "param_space = {'lrr': 1}",
                r"'lrr' in param_space is not .* \(did you mean 'lr'\?\)",
            ),
            ("param_space = {'run_dir': 'x'}", r"each trial has a run directory of its own"),
            ("param_space = {'lr': {'grid_search': []}}", r"the grid of lr is empty"),
            (
                "param_space = {'logger': {'grid_search': ['mlflow', 'none']}}",
                r"logger holds for the whole search",
            ),
            (
                "param_space = {'lr': 1}\nmetric = 'valid_acuracy'",
                r"unknown metric 'valid_acuracy' \(did you mean 'valid_accuracy'\?\)",
            ),
            ("param_space = {'lr': 1}\nscheduler = 'ashe'", r"did you mean 'asha'"),
            ("param_space = {'lr': 1}\nnum_samples = 0", r"num_samples must be .*not 0"),
            ("param_space = {'lr': 1}\nmax_concurrent = 'x'", r"max_concurrent must be .*not 'x'"),
            ("param_space = {'lr': 1}\npublished = {'vgg': 9}", r"published must be a dict"),
        ],
    )
    def test_with_a_mistake_is_refused_in_a_sentence(
        self, text: str, sentence: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=sentence) as error:
            load_space(write(tmp_path, text))
        assert "\n" not in str(error.value)

    def test_that_is_missing_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no search space 'quik' \(did you mean 'quick'\?\)"):
            load_space("quik")
        write(tmp_path, "")
        with pytest.raises(UserError, match=r"did you mean '.*/space\.py'"):
            load_space(str(tmp_path / "spaces.py"))
        (tmp_path / "README.md").touch()
        with pytest.raises(UserError, match=r"README\.md is not a search space: name a \.py file"):
            load_space(str(tmp_path / "README.md"))


class TestTheTrialsOfASpace:
    def test_are_covered_by_the_combinations_of_what_decides_resources(self) -> None:
        found = space(
            stages=tune.grid_search([1, 2]),
            width=tune.randint(3, 6),
            lr=tune.uniform(0.1, 0.5),
            seed=tune.sample_from(lambda _: 3),
            epochs=2,
        )
        first = {"lr": 0.1, "epochs": 2}
        assert list(found.points()) == [
            {**first, "stages": 1, "width": 3},
            {**first, "stages": 1, "width": 5},
            {**first, "stages": 2, "width": 3},
            {**first, "stages": 2, "width": 5},
            {"stages": 1, "width": 3, "lr": 0.5, "epochs": 2},
        ]

    def test_have_one_stage_by_default(self) -> None:
        assert space(lr=1).fixed({}, ()).param_space == {"lr": 1, "stages": 1}
        assert "stages" not in space(cuts=(1, 2)).fixed({}, ()).param_space

    def test_take_the_options_of_the_command_and_each_seed(self) -> None:
        grids = {"lr": tune.grid_search([1, 2]), "width": tune.grid_search([4, 8]), "epochs": 3}
        found = SearchSpace(name="mine", param_space=grids, num_samples=5)
        found = found.fixed({"lr": 5, "logger": "tensorboard,wandb"}, range(4, 7))
        assert found.param_space == {
            "lr": 5,
            "width": {"grid_search": [4, 8]},
            "epochs": 3,
            "logger": "tensorboard,wandb",
            "seed": {"grid_search": [4, 5, 6]},
            "stages": 1,
        }
        assert found.num_trials == 5 * 2 * 3
        assert found.varied == ["width", "seed"]
        assert found.loggers == ["wandb"]


class TestATrialThatCannotRunIsRefusedAtOnce:
    @pytest.mark.parametrize(
        ("option", "values", "sentence"),
        [
            ("stages", [2, 5], r"\(stages=5\) .* the network has 4 layers"),
            ("width", [10, 7], r"\(width=7\)"),
            ("task", ["digits", "mnist"], r"\(task=mnist\) .* --data-dir"),
            ("arch", ["tinycnn", "resnt"], r"\(arch=resnt\) .*\(did you mean 'resnet'\?\)"),
            ("arch", ["tinycnn", "no.such:net"], r"\(arch=no\.such:net\) .* cannot be imported"),
            ("loss", ["goodness", "torch:Los"], r"\(loss=torch:Los\) .*torch has no 'Los'"),
            ("augment", ["none", "flp"], r"\(augment=flp\) .*\(did you mean 'flip'\?\)"),
            ("augment", ["crop:4", "crop:32"], r"\(augment=crop:32\) .* images of 32x32 .* 31 at"),
            ("optimizer", ["adamw", "adm"], r"\(optimizer=adm\) .*\(did you mean 'adam'\?\)"),
            ("lr", [0.1, -1], r"\(lr=-1\) .* --lr must be"),
            ("lr", [0.1, "x"], r"\(lr=x\) .* lr must be of type float"),
            ("batch_size", [16, 5000], r"\(batch_size=5000\) .* training images"),
        ],
    )
    def test_in_a_sentence_with_its_options(
        self, option: str, values: list[object], sentence: str
    ) -> None:
        for choices in (tune.grid_search(values), tune.choice(values)):
            with pytest.raises(UserError, match=sentence):
                longest_trial(space(**{"width": 10, option: choices}).fixed({}, ()))

    def test_if_the_cluster_can_never_hold_it(self) -> None:
        found = space(cpus_per_stage=tune.choice([1, 4])).fixed({}, ())
        with pytest.raises(UserError, match=r"\(cpus_per_stage=4\) cannot run: .*cannot hold"):
            check_resources(found, [Node(cpus=2, gpus=0)])

    def test_else_the_epochs_of_the_longest_are_known(self) -> None:
        found = space(
            width=10,
            epochs=tune.grid_search([2, 9, 3]),
            optimizer=tune.choice(["sgd", "torch.optim:RMSprop"]),
        )
        assert longest_trial(found.fixed({}, ())) == 9
        assert longest_trial(space(width=10).fixed({}, ())) == 6, "the task's own"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lr": tune.grid_search([1, 2])}, "but lr varies"),
        ({"lr": tune.uniform(1, 2), "seed": tune.grid_search([0, 1])}, "but seed varies"),
        ({"epochs": 3}, "but none varies"),
    ],
)
def test_pbt_changes_only_what_a_resumed_training_can(options: dict[str, Any], named: str) -> None:
    drawn = {"lr": tune.uniform(0.1, 1), "epochs": 3}
    check_strategy(SearchSpace(name="mine", param_space=drawn, scheduler="pbt"), "random")
    with pytest.raises(UserError, match=named):
        check_strategy(SearchSpace(name="mine", param_space=options, scheduler="pbt"), "random")


def test_pbt_mutates_no_cosine_into_a_rising_one() -> None:
    """It multiplies values by 0.8 and 1.2, also beyond the ranges of the space."""
    assert explored({"lr": 0.008, "lr_min": 0.01}) == {"lr": 0.008, "lr_min": 0.008}
    for fits in ({"lr": 0.1, "lr_min": 0.01}, {"lr": 0.001}, {"lr_min": 0.5, "dropout": 0.1}):
        assert explored(fits) == fits
