"""What a user says about a checkpoint file that does not say it itself."""

from __future__ import annotations

from dataclasses import dataclass

RGB, BGR = "RGB", "BGR"


@dataclass(frozen=True)
class Choices:
    """What the user says about a file; None leaves it to the file, or to what is usual.

    Attributes:
        state: name of the state dict to take where a file holds several, of `other_states`.
        architecture: one of those that fit.
        mean, std: of pixel values in [0, 1], by channel, red first.
        channel_order: "RGB", or "BGR" where the network reads blue first.
        classes: names of the K outputs, in order.
        dataset: what people call the data it was trained on.
        rule: what trained it.
        image_size: (H, W) of its images, where keys and shapes leave it open.
    """

    state: str | None = None
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channel_order: str = RGB
    classes: tuple[str, ...] | None = None
    dataset: str | None = None
    rule: str | None = None
    image_size: tuple[int, int] | None = None
