import math

import pytest
import torch

from rayff.partition.profile import LayerTime, SummingTime, costs, time_layers
from rayff.spec import Recipe, architecture


@pytest.mark.parametrize(("name", "num_layers"), [("tinycnn", 4), ("resnet", 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_has_a_time_above_zero(name: str, num_layers: int, dtype: torch.dtype):
    network = architecture(name, num_classes=2, image_channels=1, width=2)
    times = time_layers(network, Recipe(batch_size=2), torch.device("cpu"), dtype)
    assert len(times) == num_layers
    seconds = [second for layer in times for second in layer]
    assert all(0 <= second < 10 and math.isfinite(second) for second in seconds)
    assert all(sum(layer) > 0 for layer in times)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_any_optimizer_can_be_timed(optimizer):
    network = architecture("tinycnn", num_classes=2, image_channels=3, width=2)
    recipe = Recipe(batch_size=1, optimizer=optimizer)
    times = time_layers(network, recipe, torch.device("cpu"), torch.float32)
    assert min(layer.step_s for layer in times) > 0


def test_a_large_batch_is_scaled_up_from_a_few_images():
    network = architecture("tinycnn", num_classes=2, image_channels=1, width=2)

    def whole_s(batch_size: int) -> float:
        recipe = Recipe(batch_size=batch_size)
        return sum(map(sum, time_layers(network, recipe, torch.device("cpu"), torch.float32)))

    # a million images would take minutes, and far more memory than there is
    assert whole_s(1_000_000) > 100 * whole_s(16)


def test_transfers_and_gradients_cost_their_bytes_at_the_measured_speed():
    network = architecture("resnet", num_classes=10, image_channels=3)
    times = [LayerTime(images_s=float(index), step_s=0.5 * index) for index in range(17)]
    found = costs(
        network,
        times,
        batch_size=8,
        bytes_per_element=2,
        seconds_per_byte=1e-9,
        summing=SummingTime(call_s=0.25, byte_s=1e-6),
    )
    assert found.layer_s == [float(index) for index in range(17)]
    assert found.step_s == [0.5 * index for index in range(17)]
    assert found.summing_s[1] == pytest.approx(0.25 + 100 * 100 * 9 * 4 * 1e-6)
    assert len(found.crossing_s) == 17
    assert found.crossing_s[0] == 0
    assert found.crossing_s[5] == pytest.approx(200 * 32 * 32 * 8 * 2 * 1e-9)
    assert found.crossing_s[6] == pytest.approx((200 * 16 * 16 + 200 * 32 * 32) * 8 * 2 * 1e-9)
    assert found.crossing_s[16] == pytest.approx(800 * 4 * 4 * 8 * 2 * 1e-9)
