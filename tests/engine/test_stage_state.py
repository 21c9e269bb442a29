"""Snapshots of a stage, inputs that it leaves alone, and losses that diverge."""

import hashlib
import pickle  # noqa: TID251 - Ray sends errors so
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from rayff.config.errors import TrainingDiverged, UserError
from rayff.config.local_loss import LossConfig
from rayff.data.images import ImageSet, Split
from rayff.engine.commands import Chunk, Evaluate, Snapshot, Train
from rayff.models.zoo import architecture
from tests.engine.stages import (
    CLASSES,
    DATA,
    RESNET,
    TINYCNN,
    as_arrays,
    evaluate,
    make_stage,
    states_of,
    train,
    weight_of,
)
from tests.helpers.losses import LINEAR

NAN, INF = float("nan"), float("inf")


def digest(*tensors: Tensor | NDArray[Any]) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        array = tensor.numpy() if isinstance(tensor, Tensor) else tensor
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def chunk_digest(chunk: Chunk) -> str:
    return digest(*(tensor for batch in chunk for tensor in batch.tensors))


def copy_of_data() -> dict[Split, ImageSet]:
    return {split: images.take(np.arange(len(images))) for split, images in DATA.items()}


class TestSnapshots:
    @pytest.mark.parametrize("how", [{"loss": LossConfig(name=LINEAR)}, {"rule": "fast"}], ids=str)
    @pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "torch.optim:RMSprop"])
    @pytest.mark.parametrize("steps", [0, 1, 3])
    def test_a_restored_stage_goes_on_with_the_same_bits(
        self, how: dict[str, Any], optimizer: str, steps: int
    ) -> None:
        how = {**how, "optimizer": optimizer}
        batches = [(0, 1, 2), (3, 4), (5, 6, 7), (8, 9), (10, 11)]
        stage = make_stage(TINYCNN, **how)
        for step in range(steps):
            stage.handle(train(batches[step], step=step), None)
        saved = states_of(stage)
        other = make_stage(TINYCNN, states=as_arrays(saved), **how)
        assert states_of(other) == saved
        for each in (stage, other):
            each.handle(train(batches[3], batches[4], step=steps), None)
        assert states_of(other) == states_of(stage)
        assert states_of(other) != saved

    def test_a_snapshot_does_not_move_with_later_training(self) -> None:
        stage = make_stage(TINYCNN)
        _, report = stage.handle(Snapshot(epoch=0, batch=0), None)
        before = digest(*report.states.values())
        stage.handle(train((0, 1)), None)
        assert digest(*report.states.values()) == before

    def test_a_slice_restores_its_own_layers_of_the_whole(self) -> None:
        whole = make_stage(RESNET)
        whole.handle(train((0, 1)), None)
        saved = states_of(whole)
        part = make_stage(RESNET[5:9], first=False, last=False, states=as_arrays(saved))
        assert states_of(part) == {index: saved[index] for index in range(5, 9)}

    def test_layers_of_another_width_are_refused(self) -> None:
        wider = architecture("tinycnn", num_classes=CLASSES, image_channels=3, width=8)
        states = as_arrays(states_of(make_stage(wider)))
        with pytest.raises(UserError, match=r"\(8, 3, 5, 5\) for layer 0.*\(4, 3, 5, 5\)"):
            make_stage(TINYCNN, states=states)


class TestInputsAreNotModified:
    def test_images_indices_and_states(self) -> None:
        saved, data = as_arrays(states_of(make_stage(TINYCNN))), copy_of_data()
        commands = [train((0, 1), (2, 3)), evaluate((0, 1, 2))]
        inputs = [
            *(array for part in data.values() for array in (part.images, part.labels)),
            *saved.values(),
            *(batch for command in commands for batch in command.batches),
        ]
        before = digest(*inputs)
        stage = make_stage(TINYCNN, data=data, states=saved)
        for command in commands:
            stage.handle(command, None)
        assert digest(*inputs) == before

    @pytest.mark.parametrize("cut", [1, 2, 4, 8, 13])
    @pytest.mark.parametrize("command", [train((0, 1), (2, 3)), evaluate((0, 1), (2, 3))])
    def test_the_chunk_of_the_stage_before(self, cut: int, command: Train | Evaluate) -> None:
        chunk, _ = make_stage(RESNET[:cut], last=False).handle(command, None)
        assert chunk is not None
        before = chunk_digest(chunk)
        stage = make_stage(RESNET[cut : cut + 3], first=False, last=False)
        onward, _ = stage.handle(command, list(chunk))
        assert chunk_digest(chunk) == before
        assert onward is not None
        assert [batch.labels.tolist() for batch in onward] == [b.labels.tolist() for b in chunk]

    def test_nor_what_was_sent_on_by_later_training(self) -> None:
        stage = make_stage(RESNET[:4], last=False)
        onward, _ = stage.handle(train((0, 1), (2, 3)), None)
        assert onward is not None
        before = chunk_digest(onward)
        stage.handle(train((4, 5), step=2), None)
        assert chunk_digest(onward) == before

    def test_read_only_data_is_accepted(self) -> None:
        data = copy_of_data()
        for part in data.values():
            part.images.setflags(write=False)
            part.labels.setflags(write=False)
        make_stage(TINYCNN, data=data).handle(train((0, 1)), None)


class TestDivergence:
    @pytest.mark.parametrize("layer", range(4))
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_the_first_layer_that_is_not_finite_is_named(self, layer: int, value: float) -> None:
        stage = make_stage(TINYCNN)
        weight_of(stage, layer).fill_(value)
        with pytest.raises(TrainingDiverged, match="--lr") as caught:
            stage.handle(train((0, 1), (2, 3), step=40), None)
        assert (caught.value.layer_index, caught.value.step) == (layer, 40)
        assert not np.isfinite(caught.value.loss)

    def test_a_learning_rate_that_is_far_too_high_shows_in_the_next_batch(self) -> None:
        stage = make_stage(TINYCNN)
        with pytest.raises(TrainingDiverged) as caught:
            stage.handle(train((0, 1), (2, 3), (4, 5), step=10, lr=3e38), None)
        assert (caught.value.layer_index, caught.value.step) == (0, 11)

    @pytest.mark.parametrize("offset", [0, 1, 2])
    def test_the_batch_of_the_chunk_is_named(self, offset: int) -> None:
        command = train((0, 1), (2, 3), (4, 5), step=7)
        chunk, _ = make_stage(TINYCNN[:2], last=False).handle(command, None)
        assert chunk is not None
        chunk[offset].activations.features[1, 3, 2, 2] = NAN
        with pytest.raises(TrainingDiverged) as caught:
            make_stage(TINYCNN[2:], first=False).handle(command, chunk)
        assert (caught.value.layer_index, caught.value.step) == (2, 7 + offset)

    @pytest.mark.parametrize("value", [NAN, INF])
    def test_weights_that_are_not_finite_are_no_snapshot(self, value: float) -> None:
        """The last batch's loss was finite: the next one's would not be."""
        stage = make_stage(RESNET[7:], first=False)
        command = train((0, 1), (2, 3), step=4)
        stage.handle(command, make_stage(RESNET[:7], last=False).handle(command, None)[0])
        weight_of(stage, 2)[1, 0, 1, 1] = value
        with pytest.raises(TrainingDiverged, match="layer 9 became nan at step 6"):
            stage.handle(Snapshot(epoch=0, batch=6), None)

    def test_the_error_survives_pickling(self) -> None:
        error = TrainingDiverged(9, 1234, INF)
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is TrainingDiverged
        assert (again.layer_index, again.step, again.loss) == (9, 1234, INF)
        assert str(again) == str(error)
