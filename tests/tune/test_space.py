"""Search spaces: what a file says, what is wrong with it, and what its trials can be."""

from pathlib import Path

import numpy as np
import pytest
from ray import tune

import rayff.tune.trial
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.placement import Node
from rayff.partition.plan import StageResources
from rayff.tune.schedulers import check_strategy
from rayff.tune.search import check_points
from rayff.tune.space import SearchSpace, find_space, load_space
from rayff.tune.trial import trial_bundles, trial_resources, trial_run

TWO_CPUS = [Node(cpus=2, gpus=0)]
SHIPPED = ("learning_rate", "paper_table1", "quick", "stages", "width_depth")


def space(**param_space: object) -> SearchSpace:
    return SearchSpace(name="mine", param_space=param_space)


def write(folder: Path, text: str) -> str:
    path = folder / "space.py"
    path.write_text(text)
    return str(path)


class TestASpaceFile:
    def test_says_what_is_searched(self, tmp_path: Path) -> None:
        text = 'param_space = {"lr": 0.1}\nmetric = "test_accuracy"\nnum_samples = 3\nhelper = 1\n'
        found = load_space(write(tmp_path, text))
        assert found == SearchSpace(
            name="space", param_space={"lr": 0.1}, metric="test_accuracy", num_samples=3
        )

    @pytest.mark.parametrize("name", SHIPPED)
    def test_is_found_by_name_from_any_folder(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert load_space(name).num_trials >= 3

    def test_of_the_own_folder_comes_first(
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
            ("param_space = {}", r"needs a param_space: a dict"),
            ("param_space = 3", r"needs a param_space: a dict"),
            ("param_space = {'lrr': 1}", r"'lrr', which is no option .* \(did you mean 'lr'\?\)"),
            ("param_space = {'run_dir': 'x'}", r"a folder for each trial"),
            ("param_space = {'lr': {'grid_search': []}}", r"the grid of lr is empty"),
            (
                "param_space = {'lr': 1}\nmetric = 'valid_acuracy'",
                r"unknown metric 'valid_acuracy' \(did you mean 'valid_accuracy'\?\)",
            ),
            ("param_space = {'lr': 1}\nscheduler = 'ashe'", r"did you mean 'asha'"),
            ("param_space = {'lr': 1}\nnum_samples = 0", r"num_samples must be .*not 0"),
            ("param_space = {'lr': 1}\nmax_concurrent = 'x'", r"max_concurrent must be .*not 'x'"),
        ],
    )
    def test_with_a_mistake_is_one_sentence(
        self, text: str, sentence: str, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match=sentence) as error:
            load_space(write(tmp_path, text))
        assert "\n" not in str(error.value)

    def test_that_is_not_there_names_the_nearest(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no search space 'quik' \(did you mean 'quick'\?\)"):
            load_space("quik")
        write(tmp_path, "")
        with pytest.raises(UserError, match=r"did you mean '.*/space\.py'"):
            load_space(str(tmp_path / "spaces.py"))

    def test_that_is_another_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("README.md").touch()
        for name in ("README.md", str(tmp_path / "README.md")):
            with pytest.raises(
                UserError, match=rf"^{name} is no search space: that is a \.py file"
            ):
                load_space(name)


class TestTheTrialsOfASpace:
    def test_are_grids_times_samples(self) -> None:
        grids = {"lr": tune.grid_search([1, 2, 3]), "arch": tune.grid_search(["vgg", "resnet"])}
        found = SearchSpace(name="mine", param_space=grids, num_samples=2)
        assert found.num_trials == 12
        assert found.varied == ["lr", "arch"]

    def test_can_be_every_combination_that_decides_resources(self) -> None:
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

    def test_have_one_stage_where_nothing_is_said(self) -> None:
        assert space(lr=1).fixed({}, ()).param_space == {"lr": 1, "stages": 1}
        assert "stages" not in space(cuts=(1, 2)).fixed({}, ()).param_space

    def test_take_what_is_fixed_for_all(self) -> None:
        found = space(lr=tune.grid_search([1, 2]), epochs=3).fixed({"lr": 5}, ()).param_space
        assert found == {"lr": 5, "epochs": 3, "stages": 1}

    def test_are_repeated_with_each_seed(self) -> None:
        found = space(lr=tune.grid_search([1, 2])).fixed({}, range(4, 7))
        assert found.param_space["seed"] == {"grid_search": [4, 5, 6]}
        assert found.num_trials == 6

    def test_find_their_data_from_their_own_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "images").mkdir()
        tasks = tune.grid_search(["images", "mnist"])
        found = space(task=tasks, data_dir="there").fixed({}, ()).param_space
        assert found["data_dir"] == str(tmp_path / "there")
        assert found["task"] == {"grid_search": [str(tmp_path / "images"), "mnist"]}


class TestWhatATrialTakes:
    def test_is_one_cpu_a_stage_so_that_others_run_beside_it(self) -> None:
        there = [Node(cpus=8, gpus=0)]
        assert trial_resources(TrainConfig(stages=2), there) == (2, StageResources(cpus=1, gpus=0))
        assert trial_resources(TrainConfig(cuts=(1, 2)), there)[0] == 3

    def test_is_a_share_where_there_are_fewer(self) -> None:
        found = trial_resources(TrainConfig(stages=4), TWO_CPUS)
        assert found == (4, StageResources(cpus=0.5, gpus=0))

    def test_is_what_it_says(self) -> None:
        there = [Node(cpus=8, gpus=2)]
        run = TrainConfig(stages=2, cpus_per_stage=3, gpus_per_stage=0.5)
        assert trial_resources(run, there) == (2, StageResources(cpus=3, gpus=0.5))

    def test_is_read_from_numbers_of_numpy(self) -> None:
        assert trial_run({"stages": np.int64(2), "lr": np.float64(0.5)}).stages == 2

    def test_is_next_to_nothing_where_it_cannot_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rayff.tune.trial, "nodes", lambda: TWO_CPUS)
        assert trial_bundles({"stages": 2}).bundles == [{"CPU": 1.0}, {"CPU": 1.0}]
        assert trial_bundles({"lr": -1}).bundles == [{"CPU": 0.01}], "a function may draw that"


class TestATrialThatCannotRunIsRefusedAtOnce:
    def test_where_the_cluster_can_never_hold_it(self) -> None:
        found = space(cpus_per_stage=tune.choice([1, 4]), width=10)
        sentence = r"a trial of the search \(cpus_per_stage=4\) cannot run: .*cannot hold"
        with pytest.raises(UserError, match=sentence):
            check_points(found.fixed({}, ()), TWO_CPUS)

    @pytest.mark.parametrize(
        ("option", "values", "sentence"),
        [
            ("stages", [2, 5], r"\(stages=5\) .* the network has 4 layers"),
            ("width", [10, 7], r"\(width=7\)"),
            ("task", ["digits", "mnist"], r"\(task=mnist\) .* --data-dir"),
            ("arch", ["tinycnn", "resnt"], r"\(arch=resnt\) .*\(did you mean 'resnet'\?\)"),
            ("lr", [0.1, -1], r"\(lr=-1\) .* --lr must be"),
            ("lr", [0.1, "x"], r"\(lr=x\) .* lr must be of type float"),
            ("batch_size", [16, 5000], r"\(batch_size=5000\) .* training images"),
        ],
    )
    def test_for_what_its_options_say(
        self, option: str, values: list[object], sentence: str
    ) -> None:
        with pytest.raises(UserError, match=sentence):
            check_points(space(**{option: tune.grid_search(values)}).fixed({}, ()), TWO_CPUS)

    def test_and_the_longest_one_is_known(self) -> None:
        found = space(width=10, epochs=tune.grid_search([2, 9, 3])).fixed({}, ())
        assert check_points(found, TWO_CPUS) == 9
        assert check_points(space(width=10).fixed({}, ()), TWO_CPUS) == 6, "the task's own"


class TestSchedulersAndSearchers:
    def test_pbt_changes_what_a_resumed_training_can(self) -> None:
        def pbt(**param_space: object) -> SearchSpace:
            return SearchSpace(name="mine", param_space=param_space, scheduler="pbt")

        check_strategy(pbt(lr=tune.uniform(0.1, 1), epochs=3), "random")
        for wrong, named in (
            (pbt(lr=tune.grid_search([1, 2])), "but lr varies"),
            (pbt(lr=tune.uniform(1, 2), seed=tune.grid_search([0, 1])), "but seed varies"),
            (pbt(epochs=3), "but none of them varies"),
        ):
            with pytest.raises(UserError, match=named):
                check_strategy(wrong, "random")

    def test_optuna_draws_and_has_no_grids(self) -> None:
        with pytest.raises(UserError, match=r"lr is a grid: use tune\.choice"):
            check_strategy(space(lr=tune.grid_search([1, 2])), "optuna")
