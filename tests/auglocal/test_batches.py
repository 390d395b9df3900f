"""Augmentation against PyTorch's own padding, and batches that follow from the place in a run."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from auglocal.batches import (
    Augmentation,
    ResidentSplit,
    augment,
    channel_statistics,
    normalise,
    num_batches,
)


def make_images(num_images: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_images, 3, 8, 8), dtype=torch.uint8, generator=generator)


def crops(image: torch.Tensor, padding: int, border: str) -> list[torch.Tensor]:
    """Every crop that padding by PyTorch allows."""
    mode = {"reflect": "reflect", "zero": "constant"}[border]
    padded = functional.pad(image[None].float(), [padding] * 4, mode=mode)[0].to(torch.uint8)
    size = image.shape[-1]
    reach = range(2 * padding + 1)
    return [
        padded[:, row : row + size, column : column + size] for row in reach for column in reach
    ]


@pytest.mark.parametrize("border", ["reflect", "zero"])
@pytest.mark.parametrize("flip", [False, True])
def test_every_image_is_a_crop_of_the_padded_image_or_its_mirror(border: str, flip: bool) -> None:
    images = make_images()
    changed = augment(images, Augmentation(2, border, flip), torch.Generator().manual_seed(3))
    mirrored = 0
    for image, result in zip(images, changed, strict=True):
        allowed = crops(image, 2, border)
        plain = any(torch.equal(result, crop) for crop in allowed)
        mirror = any(torch.equal(result, crop.flip(2)) for crop in allowed)
        assert plain or (flip and mirror)
        mirrored += not plain
    assert (mirrored > 0) == flip


def test_every_shift_comes_up() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).repeat(2000, 1, 1, 1)
    changed = augment(image, Augmentation(2, "zero", False), torch.Generator().manual_seed(0))
    assert len({tuple(result.flatten().tolist()) for result in changed}) == 25


def test_no_padding_and_no_flip_change_nothing() -> None:
    images = make_images()
    changed = augment(images, Augmentation(0, "reflect", False), torch.Generator())
    assert torch.equal(images, changed)


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    images = make_images(200)
    mean, std = channel_statistics(images.split(64))
    values = normalise(images, mean, std)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    deviation = values.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(deviation, torch.ones(3), atol=1e-3, rtol=0)


def test_normalising_is_the_formula_to_rounding() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
    pixels = images.double() / 255
    exact = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    values = normalise(images, mean, std)
    assert values.dtype == torch.float32
    assert (values - exact).abs().max() < 1e-6


def test_statistics_do_not_depend_on_the_batches() -> None:
    images = make_images(50)
    pixels = images.double() / 255
    mean, std = channel_statistics(images.split(7))
    assert mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist(), abs=5.1e-5)
    assert std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist(), abs=5.1e-5)


def test_batches_in_order_are_the_split() -> None:
    split = ResidentSplit(make_images(20), torch.arange(20))
    images, labels = (torch.cat(parts) for parts in zip(*split.batches(6)))
    assert torch.equal(images, split.images)
    assert torch.equal(labels, split.labels)
    assert split.image_shape == (3, 8, 8)
    assert len(split) == 20


def collect(first_step: int = 0, epoch: int = 0, seed: int = 0) -> list[torch.Tensor]:
    batches = ResidentSplit(make_images(20), torch.arange(20)).training_batches(
        6,
        seed=seed,
        epoch=epoch,
        first_step=first_step,
        augmentation=Augmentation(1, "reflect", True),
    )
    return [torch.cat([labels.float(), pixels.float().flatten()]) for pixels, labels in batches]


def test_an_epoch_holds_every_image_once() -> None:
    labels = torch.cat([batch[: len(batch) // 193] for batch in collect()])
    assert sorted(labels.tolist()) == list(range(20))


def test_a_later_start_gives_the_same_later_batches() -> None:
    for batch, same in zip(collect()[2:], collect(first_step=2), strict=True):
        assert torch.equal(batch, same)


def test_order_changes_with_epoch_and_seed() -> None:
    first, other_epoch, other_seed = collect(), collect(epoch=1), collect(seed=1)
    assert not torch.equal(first[0], other_epoch[0])
    assert not torch.equal(first[0], other_seed[0])


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert [num_batches(count, 8) for count in (16, 17, 18)] == [2, 2, 3]
