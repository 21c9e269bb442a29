"""The run directory: what is in it, and what is said where it is not as it should be."""

import errno
import json
import pickle  # noqa: TID251 - strangers' files are made with it
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save, save_file

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.models.zoo import architecture
from rayff.runs import files
from rayff.runs.run_directory import RunDirectory, read_config
from tests.runs.checkpoints import names
from tests.runs.damage import MarkerOnLoad, mutate
from tests.runs.failing_disk import INTERRUPTIONS, interrupted, small_disk

CLASSES = ("cat", "dog", "owl", "fox")
NETWORK = architecture("tinycnn", num_classes=4, image_channels=3, width=4)
SHAPES = [(4, 3, 5, 5), (8, 4, 5, 5), (16, 8, 3, 3), (16, 16, 3, 3)]
RUN = TrainConfig(arch="tinycnn", width=4, task="some/task", cuts=(1, 3), lr=0.25, seed=9)


def weights(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def snapshot(layers: list[torch.Tensor]) -> dict[int, NDArray[np.uint8]]:
    """Return what a stage would: the weight among the optimizer's state."""
    return {
        index: np.frombuffer(
            save({"weight": weight, "optimizer.step": torch.tensor(3.0)}), dtype=np.uint8
        )
        for index, weight in enumerate(layers)
    }


def export(
    directory: RunDirectory,
    *,
    layers: list[torch.Tensor] | None = None,
    window: tuple[int, int] = (1, 2),
    precision: str = "fp32",
) -> None:
    directory.export_model(
        NETWORK,
        snapshot(layers or weights()),
        window=window,
        class_names=CLASSES,
        precision=precision,
    )


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(RUN)
    return directory


class TestTheName:
    def test_is_that_of_the_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert RunDirectory(Path("runs/first")).name == "first"
        monkeypatch.chdir(tmp_path)
        assert RunDirectory(Path(".")).name == tmp_path.name

    def test_of_a_trial_says_the_search_too(self) -> None:
        assert RunDirectory(Path("runs/quick/trials/trial-00003")).name == "quick/trial-00003"


class TestTheConfiguration:
    def test_is_read_back(self, directory: RunDirectory) -> None:
        assert directory.read_config() == RUN
        assert names(directory.path) == ["config.json"]

    def test_does_not_name_the_folder(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path / "run")
        directory.create(TrainConfig(run_dir=str(directory.path)))
        config = json.loads((directory.path / "config.json").read_text())
        assert "run_dir" not in config
        assert str(tmp_path) not in (directory.path / "config.json").read_text()
        assert directory.read_config() == TrainConfig()

    def test_names_every_other_option(self, directory: RunDirectory) -> None:
        config = json.loads((directory.path / "config.json").read_text())
        assert set(config) == set(RUN.to_dict()) - {"run_dir"}
        assert (config["lr"], config["cuts"], config["seed"]) == (0.25, [1, 3], 9)

    def test_the_folder_may_be_moved(self, directory: RunDirectory, tmp_path: Path) -> None:
        export(directory)
        moved = directory.path.rename(tmp_path / "elsewhere")
        assert RunDirectory(moved).read_config() == RUN
        assert RunDirectory(moved).load_model().class_names == CLASSES

    def test_is_written_anew_over_the_old(self, directory: RunDirectory) -> None:
        directory.create(TrainConfig(seed=1))
        assert directory.read_config().seed == 1

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"", "is not JSON"),
            (b"\xff\xfe", "is not JSON"),
            (b"[" * 100_000, "is not JSON"),
            (b"[]", "must be a JSON object"),
            (b'{"sed": 1}', "unknown option 'sed'.*did you mean 'seed'"),
            (b'{"seed": "1"}', "seed must be of type int, not '1'"),
            (b'{"seed": -1}', "--seed must be"),
            (b'{"lr": Infinity}', "--lr must be"),
            (b'{"lr": NaN}', "--lr must be"),
            (b'{"optimizer": "adamx"}', "unknown 'adamx' .did you mean 'adam'"),
        ],
    )
    def test_that_is_damaged(self, directory: RunDirectory, content: bytes, match: str) -> None:
        (directory.path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=match):
            directory.read_config()

    def test_that_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"{tmp_path}/none.json cannot be read: No such file"):
            read_config(tmp_path / "none.json")
        with pytest.raises(UserError, match="cannot be read: Is a directory"):
            read_config(tmp_path)

    @pytest.mark.parametrize("number", [0])
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_that_is_cut_short_leaves_the_old(
        self,
        directory: RunDirectory,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        error: BaseException,
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_durably", interrupted(number, error))
            with pytest.raises((UserError, KeyboardInterrupt)):
                directory.create(TrainConfig(seed=1))
        assert directory.read_config() == RUN
        assert names(directory.path) == ["config.json"]


class TestAFolder:
    def test_that_is_new_or_empty_is_taken(self, tmp_path: Path) -> None:
        RunDirectory(tmp_path / "a" / "b").check_new()
        assert not (tmp_path / "a").exists()
        RunDirectory(tmp_path).check_new()
        RunDirectory(tmp_path / "a" / "b").create(RUN)
        assert (tmp_path / "a" / "b" / "config.json").exists()

    @pytest.mark.parametrize("name", ["notes.txt", ".hidden"])
    def test_that_holds_something_is_not(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="is not empty: add --resume .* another folder"):
            RunDirectory(tmp_path).check_new()
        assert names(tmp_path) == [name]

    def test_that_is_a_file_is_not(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("mine")
        with pytest.raises(UserError, match=f"--run-dir {path} is a file; name a folder"):
            RunDirectory(path).check_new()
        with pytest.raises(UserError, match=f"--run-dir {path} cannot be written.*another"):
            RunDirectory(path).create(RUN)
        assert path.read_text() == "mine"

    def test_below_a_file_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written: Not a directory; name another"):
            RunDirectory(tmp_path / "file" / "run").create(RUN)

    def test_whose_name_no_disk_takes(self, tmp_path: Path) -> None:
        directory = RunDirectory(tmp_path / ("x" * 300))
        with pytest.raises(UserError, match="--run-dir .* name another folder"):
            directory.check_new()
        with pytest.raises(UserError, match="--run-dir .* name another folder"):
            directory.create(RUN)

    def test_on_a_disk_that_may_not_be_written(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "64k") as disk:
            remount = ["mount", "-o", "remount,ro", str(disk)]
            subprocess.run(remount, check=True)
            with pytest.raises(UserError, match="cannot be written: Read-only.*name another"):
                RunDirectory(disk / "run").create(RUN)

    def test_that_is_not_there_holds_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=f"there is no run directory {tmp_path}/none"):
            RunDirectory(tmp_path / "none").read_config()
        with pytest.raises(UserError, match=f"there is no run directory {tmp_path}/none"):
            RunDirectory(tmp_path / "none").load_model()

    def test_that_is_foreign_holds_no_run(self, tmp_path: Path) -> None:
        (tmp_path / "photo.png").touch()
        with pytest.raises(UserError, match=f"{tmp_path} is no run directory.*no config.json"):
            RunDirectory(tmp_path).load_model()


class TestTheModel:
    def test_has_the_weights_of_the_snapshot(self, directory: RunDirectory) -> None:
        export(directory)
        model = directory.load_model()
        state = model.state_dict()
        assert list(state) == [f"chain.layers.{index}.weight" for index in range(4)]
        for own, weight in zip(state.values(), weights(), strict=True):
            assert torch.equal(own, weight)
        assert model.window == (1, 2)
        assert model.class_names == CLASSES
        assert model.chain.architecture == NETWORK
        assert not model.training
        assert next(model.parameters()).device.type == "cpu"

    def test_files_hold_weights_alone_and_plain_names(self, directory: RunDirectory) -> None:
        export(directory)
        saved = load_file(directory.path / "model.safetensors")
        assert sorted(saved) == [f"layers.{index}.weight" for index in range(4)]
        for index, weight in enumerate(weights()):
            assert torch.equal(saved[f"layers.{index}.weight"], weight)
        description = json.loads((directory.path / "architecture.json").read_text())
        assert description == {
            "architecture": json.loads(json.dumps(NETWORK.to_dict())),
            "sip_window": [1, 2],
            "class_names": list(CLASSES),
            "precision": "fp32",
            "method": "ff",
        }
        assert names(directory.path) == ["architecture.json", "config.json", "model.safetensors"]

    @pytest.mark.parametrize(
        ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    )
    def test_computes_in_the_precision_of_the_run(
        self, directory: RunDirectory, precision: str, dtype: torch.dtype
    ) -> None:
        export(directory, precision=precision)
        model = directory.load_model()
        assert model.chain.dtype == dtype
        assert next(model.parameters()).dtype == torch.float32

    def test_a_later_one_takes_its_place(self, directory: RunDirectory) -> None:
        export(directory, layers=weights(1), window=(0, 0))
        export(directory, layers=weights(2), window=(0, 3))
        model = directory.load_model()
        assert model.window == (0, 3)
        assert torch.equal(model.chain.cwconvs()[3].weight, weights(2)[3])

    def test_before_the_first_checkpoint_there_is_none(self, directory: RunDirectory) -> None:
        with pytest.raises(UserError, match="no trained model yet.*--resume"):
            directory.load_model()
        export(directory)
        (directory.path / "architecture.json").unlink()
        with pytest.raises(UserError, match="no trained model yet"):
            directory.load_model()

    @pytest.mark.parametrize("number", [0, 1])
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_an_export_that_is_cut_short_leaves_whole_files(
        self,
        directory: RunDirectory,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        error: BaseException,
    ) -> None:
        export(directory, layers=weights(1), window=(0, 0))
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_durably", interrupted(number, error))
            with pytest.raises(type(error)):
                export(directory, layers=weights(2), window=(3, 3))
        assert names(directory.path) == ["architecture.json", "config.json", "model.safetensors"]
        model = directory.load_model()
        assert model.window == (0, 0)
        assert torch.equal(model.chain.cwconvs()[0].weight, weights(1 + number)[0])

    def test_a_full_disk_leaves_the_one_before(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "48k") as disk:  # a model of 18 kB has room
            directory = RunDirectory(disk / "run")
            directory.create(RUN)
            export(directory, layers=weights(1))
            (disk / "ballast").write_bytes(bytes(12_000))
            with pytest.raises(OSError, match="No space left") as caught:
                export(directory, layers=weights(2))
            assert caught.value.errno == errno.ENOSPC
            assert torch.equal(directory.load_model().chain.cwconvs()[0].weight, weights(1)[0])
            assert not [name for name in names(directory.path) if "partial" in name]


class TestADamagedModel:
    @pytest.fixture
    def model(self, directory: RunDirectory) -> RunDirectory:
        export(directory)
        return directory

    def refused(self, directory: RunDirectory) -> None:
        with pytest.raises(UserError, match="is damaged|not JSON|cannot be read") as caught:
            directory.load_model()
        assert str(directory.path) in str(caught.value)
        if "is damaged" in str(caught.value):
            assert str(caught.value).endswith("write it anew with --resume")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("length", [0, 1, 8, 50, 200, 1000, -1])
    def test_truncated_weights(self, model: RunDirectory, length: int) -> None:
        path = model.path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        self.refused(model)

    @pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
    def test_a_folder_in_place_of_a_file(self, model: RunDirectory, name: str) -> None:
        (model.path / name).unlink()
        (model.path / name).mkdir()
        self.refused(model)

    def test_a_description_that_lacks_something(self, model: RunDirectory) -> None:
        (model.path / "architecture.json").write_text("{}")
        with pytest.raises(UserError, match="damaged: architecture.json lacks 'architecture'; wr"):
            model.load_model()

    def test_a_pickle_is_not_loaded(self, model: RunDirectory, tmp_path: Path) -> None:
        for name in ("model.safetensors", "architecture.json", "config.json"):
            export(model)
            path = model.path / name
            path.write_bytes(pickle.dumps(MarkerOnLoad(tmp_path / "executed")))
            self.refused(model)
            model.create(RUN)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize(
        "change",
        [
            lambda tensors: tensors.update({"layers.1.weight": torch.zeros(8, 4, 3, 3)}),
            lambda tensors: tensors.update({"layers.1.weight": torch.zeros(())}),
            lambda tensors: tensors.pop("layers.3.weight"),
            lambda tensors: tensors.update({"layers.4.weight": torch.zeros(1)}),
            lambda tensors: tensors.clear(),
            lambda tensors: tensors.update({k: v.double() for k, v in tensors.items()}),
            lambda tensors: tensors["layers.2.weight"].fill_(float("nan")),
        ],
        ids=["shape", "scalar", "missing", "more", "none", "type", "nan"],
    )
    def test_weights_of_another_network(
        self, model: RunDirectory, change: Callable[[dict[str, torch.Tensor]], object]
    ) -> None:
        path = model.path / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        self.refused(model)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("sip_window", [2, 1]),
            ("sip_window", [0, 4]),
            ("sip_window", [-1, 1]),
            ("sip_window", [1]),
            ("sip_window", [0, 1, 2]),
            ("sip_window", None),
            ("sip_window", [0, float("inf")]),
            ("sip_window", [0, float("nan")]),
            ("sip_window", [0.5, 1.5]),
            ("sip_window", "12"),
            ("class_names", ["cat", "dog", "owl"]),
            ("class_names", [1, 2, 3, 4]),
            ("class_names", "abcd"),
            ("class_names", None),
            ("class_names", ["cat", "dog", "owl", "\x1b[2Jfox"]),
            ("class_names", ["cat", "dog", "owl", "\ud800"]),
            ("precision", "fp64"),
            ("precision", None),
            ("precision", ["fp32"]),
            ("architecture", {}),
            ("architecture", None),
            ("architecture", []),
        ],
    )
    def test_a_wrong_value(self, model: RunDirectory, key: str, value: object) -> None:
        self.change(model, lambda description: description.update({key: value}))
        self.refused(model)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("stride", 0),
            ("stride", -1),
            ("in_channels", float("inf")),
            ("out_channels", 10**30),
            ("kernel_size", 7),
            ("kernel_size", "5"),
            ("in_size", None),
            ("in_size", 64),
            ("index", 1),
            ("opens_block", True),
            ("join", "add"),
        ],
    )
    def test_a_wrong_value_of_a_layer(self, model: RunDirectory, key: str, value: object) -> None:
        for index in (0, 2):
            export(model)
            self.change(
                model, lambda d, i=index: d["architecture"]["layers"][i].update({key: value})
            )
            self.refused(model)

    @pytest.mark.parametrize("key", ["architecture", "sip_window", "class_names", "precision"])
    def test_a_missing_key(self, model: RunDirectory, key: str) -> None:
        self.change(model, lambda description: description.pop(key))
        self.refused(model)

    @staticmethod
    def change(directory: RunDirectory, how: Callable[[dict[str, Any]], object]) -> None:
        path = directory.path / "architecture.json"
        description = json.loads(path.read_text())
        how(description)
        path.write_text(json.dumps(description))


class TestMutatedDescriptions:
    """Any mutation of the JSON gives a model or a UserError, and nothing else."""

    @pytest.fixture(scope="class")
    @classmethod
    def directory(cls, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
        directory = RunDirectory(tmp_path_factory.mktemp("mutated") / "run")
        directory.create(RUN)
        export(directory)
        return directory

    @pytest.fixture(scope="class")
    @classmethod
    def description(cls, directory: RunDirectory) -> Any:
        return json.loads((directory.path / "architecture.json").read_text())

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def test_a_value_of_another_kind_or_none_at_all(
        self, directory: RunDirectory, description: Any, data: st.DataObject
    ) -> None:
        mutated = mutate(description, data)
        (directory.path / "architecture.json").write_text(json.dumps(mutated))
        try:
            model = directory.load_model()
        except UserError:
            return
        # whatever was left out or is equal has its default: the network is the same
        assert len(model.class_names) == 4
        for own, weight in zip(model.chain.cwconvs(), weights(), strict=True):
            assert torch.equal(own.weight, weight)
