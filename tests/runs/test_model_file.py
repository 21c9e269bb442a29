"""The model of a run: what its files hold, and that they are whole or not there.

Damage of every kind is tested by tests/fuzz/test_models.py; here are the sentences that matter.
"""

import dataclasses
import errno
import hashlib
import json
import pickle  # noqa: TID251 - an attacker's files are made with it
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rayff import load_model
from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.runs import files
from rayff.runs.model_file import read_model
from rayff.runs.run_lock import locked
from tests.helpers.losses import LINEAR
from tests.helpers.mistakes import refused
from tests.helpers.pickles import MarkerOnLoad
from tests.runs.checkpoints import NETWORK, names
from tests.runs.failing_disk import INTERRUPTIONS, interrupted, small_disk
from tests.runs.models import CLASSES, weights, write_run, write_weights
from tests.runs.readouts import FUSION, READOUTS

WEIGHTS = "model.safetensors"
DESCRIPTION = "architecture.json"
FILES = [DESCRIPTION, "config.json", WEIGHTS]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def first_weight(run_dir: Path) -> torch.Tensor:
    return read_model(run_dir).first_weight


class TestTheFiles:
    def test_give_back_the_network_of_the_snapshot(self, run_dir: Path) -> None:
        model = load_model(str(run_dir))
        state = model.state_dict()
        assert list(state) == [f"chain.layers.{index}.weight" for index in range(4)]
        for own, weight in zip(state.values(), weights(), strict=True):
            assert torch.equal(own, weight)
        assert model.window == (1, 2)
        assert model.class_names == CLASSES
        assert model.architecture == NETWORK
        assert not model.training
        assert next(model.parameters()).device.type == "cpu"

    def test_hold_parameters_alone_under_plain_names(self, run_dir: Path) -> None:
        saved = load_file(run_dir / WEIGHTS)
        assert sorted(saved) == [f"layers.{index}.weight" for index in range(4)]
        for index, weight in enumerate(weights()):
            assert torch.equal(saved[f"layers.{index}.weight"], weight)
        content = (run_dir / WEIGHTS).read_bytes()
        assert json.loads((run_dir / DESCRIPTION).read_text()) == {
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "architecture": json.loads(json.dumps(NETWORK.to_dict())),
            "sip_window": [1, 2],
            "resize": "crop",
            "class_names": list(CLASSES),
            "precision": "fp32",
            "method": "ff",
            "loss": dataclasses.asdict(LossConfig()),
            "temperatures": None,
        }
        assert names(run_dir) == FILES

    def test_hold_temperatures_and_fusion(self, run_dir: Path) -> None:
        write_weights(run_dir, fusion=FUSION, temperatures=READOUTS.temperatures)
        saved = load_file(run_dir / WEIGHTS)
        layers = [f"layers.{index}.weight" for index in range(4)]
        assert sorted(saved) == [*layers, "readout.fusion.bias", "readout.fusion.weight"]
        assert saved["readout.fusion.weight"].numpy().tobytes() == FUSION.weight.tobytes()
        description = json.loads((run_dir / DESCRIPTION).read_text())
        assert description["temperatures"] == {"window": [0.5, 1 / 3], "last": 1e-3}
        model = read_model(run_dir)
        assert model.calibrated
        assert (model.temperatures, model.last_temperature) == ((0.5, 1 / 3), 1e-3)
        assert model.fusion is not None
        assert torch.equal(model.fusion.weight, torch.tensor(FUSION.weight))
        assert torch.equal(model.fusion.bias, torch.tensor(FUSION.bias))
        assert model.readouts == ("window", "last", "fusion")

    def test_of_an_older_version_have_temperatures_of_one_and_no_fusion(
        self, run_dir: Path
    ) -> None:
        description = json.loads((run_dir / DESCRIPTION).read_text())
        del description["temperatures"]
        (run_dir / DESCRIPTION).write_text(json.dumps(description))
        model = read_model(run_dir)
        assert not model.calibrated
        assert model.temperatures == (1.0, 1.0)
        assert model.readouts == ("window", "last")

    @pytest.mark.parametrize(
        ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    )
    def test_say_the_precision_of_the_run(
        self, run_dir: Path, precision: str, dtype: torch.dtype
    ) -> None:
        write_weights(run_dir, precision=precision)
        model = read_model(run_dir)
        assert model.chain.dtype == dtype  # type: ignore[union-attr]
        assert next(model.parameters()).dtype == torch.float32

    def test_hold_the_heads_of_a_local_loss(self, run_dir: Path) -> None:
        layers = [torch.zeros(layer.weight_shape) for layer in NETWORK.layers]
        heads = [
            {
                "loss.head.weight": torch.full((4, layer.out_channels), 1.0 + layer.index),
                "loss.head.bias": torch.arange(4.0),
            }
            for layer in NETWORK.layers
        ]
        write_weights(run_dir, layers, heads, loss=LossConfig(name=LINEAR))
        state = read_model(run_dir).state_dict()
        for index, head in enumerate(heads):
            for name, value in head.items():
                assert torch.equal(state[f"chain.layers.{index}.{name}"], value)
        images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        twice = 2 * torch.arange(4.0).log_softmax(dim=0)  # of two layers, which their biases give
        torch.testing.assert_close(read_model(run_dir)(images), twice.expand(2, 4))

    def test_without_the_module_of_its_loss_it_is_not_called_damaged(self, run_dir: Path) -> None:
        write_weights(run_dir)
        description = run_dir / "architecture.json"
        description.write_text(description.read_text().replace('"goodness"', '"nowhere:Loss"'))
        sentence = "needs your code: --loss nowhere:Loss: the module nowhere cannot be imported"
        with pytest.raises(UserError, match=sentence):
            read_model(run_dir)

    def test_are_replaced_by_later_ones(self, run_dir: Path) -> None:
        write_weights(run_dir, weights(2), sip_window=(0, 3))
        assert read_model(run_dir).window == (0, 3)
        assert torch.equal(first_weight(run_dir), weights(2)[0])

    def test_may_be_moved(self, run_dir: Path, tmp_path: Path) -> None:
        moved = run_dir.rename(tmp_path / "elsewhere")
        assert read_model(moved).class_names == CLASSES


class TestAWriteThatIsCutShort:
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_leaves_the_one_before(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_durably", interrupted(0, error))
            with pytest.raises(type(error)):
                write_weights(run_dir, weights(1), sip_window=(3, 3))
        assert names(run_dir) == FILES
        assert read_model(run_dir).window == (1, 2)
        assert torch.equal(first_weight(run_dir), weights(0)[0])

    def test_between_weights_and_description_leaves_no_model(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Window and temperatures would be those of other weights."""
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_durably", interrupted(1, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                write_weights(run_dir, weights(1), sip_window=(3, 3))
        with refused("model.safetensors holds other weights than those that architecture.json"):
            read_model(run_dir)
        write_weights(run_dir, weights(1), sip_window=(3, 3))
        assert read_model(run_dir).window == (3, 3)

    def test_is_waited_for_while_a_training_is_at_work(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (run_dir / DESCRIPTION).read_bytes()
        write_weights(run_dir, weights(1), sip_window=(3, 3))
        after = (run_dir / DESCRIPTION).read_bytes()
        (run_dir / DESCRIPTION).write_bytes(before)
        monkeypatch.setattr(
            time, "sleep", lambda seconds: (run_dir / DESCRIPTION).write_bytes(after)
        )
        with locked(run_dir):
            assert read_model(run_dir).window == (3, 3)

    def test_by_a_full_disk_leaves_the_one_before(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "48k") as disk:  # a model of 18 kB has room
            run_dir = write_run(disk / "run")
            (disk / "ballast").write_bytes(bytes(12_000))
            with pytest.raises(OSError, match="No space left") as caught:
                write_weights(run_dir, weights(2))
            assert caught.value.errno == errno.ENOSPC
            assert torch.equal(first_weight(run_dir), weights()[0])
            assert names(run_dir) == FILES


class TestMistakes:
    def test_no_run_directory(self, tmp_path: Path) -> None:
        with refused(f"there is no run directory {tmp_path}/none"):
            read_model(tmp_path / "none")
        with refused(f"{tmp_path} is no run directory.*no config.json"):
            read_model(tmp_path)

    @pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
    def test_no_model_yet(self, run_dir: Path, name: str) -> None:
        (run_dir / name).unlink()
        with refused(f"{run_dir} holds no trained model yet.*--resume"):
            read_model(run_dir)

    def test_truncated_weights(self, run_dir: Path) -> None:
        (run_dir / WEIGHTS).write_bytes((run_dir / WEIGHTS).read_bytes()[:-1])
        with refused(f"the model in {run_dir} is damaged: .*; write it again with --resume$"):
            read_model(run_dir)

    def test_a_description_that_lacks_something(self, run_dir: Path) -> None:
        (run_dir / DESCRIPTION).write_text("{}")
        with refused("is damaged: architecture.json lacks 'architecture'; write it again"):
            read_model(run_dir)

    def test_one_bit_of_a_weight(self, run_dir: Path) -> None:
        whole = (run_dir / WEIGHTS).read_bytes()
        (run_dir / WEIGHTS).write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        with refused("is damaged: model.safetensors holds other weights.*write it again"):
            read_model(run_dir)

    def test_weights_of_another_network(self, run_dir: Path) -> None:
        tensors = load_file(run_dir / WEIGHTS)
        tensors["layers.1.weight"] = torch.zeros(8, 4, 3, 3)
        save_file(tensors, run_dir / WEIGHTS)
        with refused(r"layers.1.weight is of shape \(8, 4, 3, 3\).*expected \(8, 4, 5, 5\)"):
            read_model(run_dir)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"bias": None}, "weights and description differ in 'readout.fusion.bias'"),
            ({"weight": torch.zeros(4, 12)}, r"fusion.weight is of shape \(4, 12\) and float32"),
            ({"weight": torch.zeros(4, 16).half()}, "and float16, expected"),
            ({"bias": torch.full((4,), torch.nan)}, "fusion.bias holds numbers that are not"),
            ({"other": torch.zeros(1)}, "'readout.fusion.other'"),
        ],
    )
    def test_a_fusion_of_another_network(
        self, run_dir: Path, changes: dict[str, torch.Tensor | None], match: str
    ) -> None:
        write_weights(run_dir, fusion=FUSION)
        tensors = load_file(run_dir / WEIGHTS)
        for name, tensor in changes.items():
            tensors.pop(f"readout.fusion.{name}", None)
            if tensor is not None:
                tensors[f"readout.fusion.{name}"] = tensor
        save_file(tensors, run_dir / WEIGHTS)
        with refused(f"the model in {run_dir} is damaged: .*{match}.*; write it again"):
            read_model(run_dir)

    def test_temperatures_of_another_window(self, run_dir: Path) -> None:
        write_weights(run_dir, temperatures=READOUTS.temperatures, sip_window=(0, 2))
        with refused("is damaged: its temperatures do not fit its window; write it again"):
            read_model(run_dir)

    def test_a_loss_that_cannot_be_imported(self, run_dir: Path) -> None:
        write_weights(run_dir, loss=LossConfig(name="nowhere:Loss"))
        with refused("--loss nowhere:Loss: the module nowhere cannot be imported"):
            read_model(run_dir)

    @pytest.mark.parametrize("name", FILES)
    def test_a_pickle_is_not_loaded(self, run_dir: Path, tmp_path: Path, name: str) -> None:
        (run_dir / name).write_bytes(pickle.dumps(MarkerOnLoad(tmp_path / "executed")))
        with refused("is damaged|not JSON"):
            read_model(run_dir)
        assert not (tmp_path / "executed").exists()
