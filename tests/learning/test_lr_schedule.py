"""Learning rates of epochs, batches and layers against hand-written tables and torch."""

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from rayff.config.recipe import Recipe
from rayff.learning.lr_schedule import batch_lr, cosine_lr, epoch_lr, layer_factor


def steps(epochs: int, lr_steps: tuple[float, ...], lr_decay: float = 0.25) -> Recipe:
    return Recipe(
        epochs=epochs,
        lr=1.0,
        lr_schedule="step",
        lr_min=None,
        lr_steps=lr_steps,
        lr_decay=lr_decay,
    )


class TestCosine:
    @pytest.mark.parametrize(
        ("epoch", "lr"),
        # of the way from 0.008 to 0.08: all, three quarters, half, a quarter
        [(0, 0.08), (50, 0.062), (75, 0.044), (100, 0.026)],
    )
    def test_the_papers_rates(self, epoch: int, lr: float):
        assert cosine_lr(Recipe(), epoch) == pytest.approx(lr, rel=1e-12)
        assert epoch_lr(Recipe(), epoch) == cosine_lr(Recipe(), epoch)

    @pytest.mark.parametrize("epochs", [1, 2, 7, 150])
    def test_it_is_the_schedule_of_torch(self, epochs: int):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.08)
        schedule = CosineAnnealingLR(optimizer, T_max=epochs, eta_min=0.008)
        recipe = Recipe(epochs=epochs)
        for epoch in range(epochs):
            assert cosine_lr(recipe, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            schedule.step()


def test_a_constant_one():
    recipe = Recipe(epochs=9, lr=0.3, lr_schedule="constant", lr_min=None)
    assert [epoch_lr(recipe, epoch) for epoch in range(9)] == [0.3] * 9


class TestSteps:
    @pytest.mark.parametrize(
        ("epochs", "lr_steps", "rates"),
        [
            (4, (0.5,), [1, 1, 0.25, 0.25]),
            (4, (0.5, 0.75), [1, 1, 0.25, 0.0625]),
            (3, (0.5,), [1, 1, 0.25]),  # half of three epochs is over before the third
            (2, (0.1, 0.2, 0.3), [1, 0.015625]),
            (1, (0.5,), [1]),
        ],
    )
    def test_a_table(self, epochs: int, lr_steps: tuple[float, ...], rates: list[float]):
        recipe = steps(epochs, lr_steps)
        assert [epoch_lr(recipe, epoch) for epoch in range(epochs)] == rates

    def test_the_steps_of_noekland_and_eidnes(self):
        recipe = steps(100, (0.5, 0.75, 0.89, 0.94))
        rates = [epoch_lr(recipe, epoch) for epoch in range(100)]
        expected = [1.0] * 50 + [1 / 4] * 25 + [1 / 16] * 14 + [1 / 64] * 5 + [1 / 256] * 6
        assert rates == expected

    @pytest.mark.parametrize("percent", range(1, 100))
    def test_a_share_is_reached_at_its_epoch_exactly(self, percent: int):
        """0.07 times 100 is above 7."""
        recipe = steps(100, (float(f"0.{percent:02d}"),))
        assert [epoch_lr(recipe, percent - 1), epoch_lr(recipe, percent)] == [1.0, 0.25]

    def test_it_is_the_schedule_of_torch(self):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = MultiStepLR(optimizer, milestones=[10, 15, 18], gamma=0.1)
        for epoch in range(20):
            found = epoch_lr(steps(20, (0.5, 0.75, 0.9), 0.1), epoch)
            assert found == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
            optimizer.step()
            schedule.step()


class TestWarmUp:
    def test_it_grows_evenly_over_the_batches_of_its_epochs(self):
        recipe = Recipe(epochs=4, lr=1.0, lr_schedule="constant", lr_min=None, warmup_epochs=2)
        rates = [batch_lr(recipe, epoch, batch, 3) for epoch in range(4) for batch in range(3)]
        sixths = [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]
        assert rates == pytest.approx(sixths + [1.0] * 6, rel=1e-12)

    def test_it_takes_its_share_of_a_schedule_that_falls_meanwhile(self):
        recipe = Recipe(epochs=3, warmup_epochs=3)
        for epoch in range(3):
            for batch in range(2):
                share = (2 * epoch + batch + 1) / 6
                expected = share * cosine_lr(recipe, epoch)
                assert batch_lr(recipe, epoch, batch, 2) == pytest.approx(expected, rel=1e-12)

    def test_without_one_every_batch_has_the_epochs_own_bits(self):
        recipe = Recipe(epochs=7)
        for epoch in range(7):
            assert {batch_lr(recipe, epoch, n, 5) for n in range(5)} == {cosine_lr(recipe, epoch)}


class TestLayers:
    @pytest.mark.parametrize(
        ("lr_scale", "factors"),
        [
            (1.0, [1, 1, 1, 1, 1]),
            (0.0625, [1, 0.5, 0.25, 0.125, 0.0625]),
            (16.0, [1, 2, 4, 8, 16]),
            (0.5, [1.0]),
        ],
    )
    def test_they_are_spaced_geometrically(self, lr_scale: float, factors: list[float]):
        count = len(factors)
        assert [layer_factor(lr_scale, i, count) for i in range(count)] == factors
