"""Residual networks written from the papers, with the names of tensors that public codes use.

Nothing of ours is used: the forward passes are the second method that ours are held against.
Names: akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar, chenyaofo/pytorch-cifar-models,
torchvision, and the AugLocal and InfoPro authors' local networks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(num_in: int, num_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, bias=False)


class Residual(nn.Module):
    """A block of He et al. 2016: plain (two 3x3) or bottleneck (1x1, 3x3, 1x1).

    `shortcut` is the attribute that holds the projection, or "zeros" / "zeros after" (option A).
    """

    def __init__(
        self,
        num_in: int,
        width: int,
        stride: int,
        shortcut: str,
        bottleneck: bool = False,
        v1: bool = False,
    ) -> None:
        super().__init__()
        self.num_out = 4 * width if bottleneck else width
        self.stride, self.kind = stride, shortcut
        self.new = self.num_out - num_in
        if bottleneck:
            steps = [(num_in, width, 1), (width, width, 3), (width, self.num_out, 1)]
            strides = [stride, 1, 1] if v1 else [1, stride, 1]
        else:
            steps = [(num_in, width, 3), (width, width, 3)]
            strides = [stride, 1]
        self.depth = len(steps)
        for index, ((a, b, kernel), step) in enumerate(zip(steps, strides), start=1):
            setattr(self, f"conv{index}", conv(a, b, kernel, step))
            setattr(self, f"bn{index}", nn.BatchNorm2d(b))
        self.changes = stride != 1 or num_in != self.num_out
        if self.changes and not shortcut.startswith("zeros"):
            projection = nn.Sequential(
                conv(num_in, self.num_out, 1, stride), nn.BatchNorm2d(self.num_out)
            )
            setattr(self, shortcut, projection)

    def skip(self, x: Tensor) -> Tensor:
        if not self.changes:
            return x
        if not self.kind.startswith("zeros"):
            return getattr(self, self.kind)(x)
        small = x[..., :: self.stride, :: self.stride]
        n, _, h, w = small.shape
        if self.kind == "zeros":
            half = small.new_zeros(n, self.new // 2, h, w)
            return torch.cat([half, small, half], dim=1)
        return torch.cat([small, small.new_zeros(n, self.new, h, w)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            if index < self.depth:
                y = F.relu(y)
        return F.relu(y + self.skip(x))


class ResidualNetwork(nn.Module):
    """`conv1`, `bn1`, `layer1` and so on, and a classifier of the name asked for.

    Args:
        counts: blocks of each stage.
        width: of the first stage; each later one doubles it.
        shortcut: see `Residual`.
        classifier: the attribute that holds it.
        stem: (kernel, stride, whether a max pool follows).
    """

    def __init__(
        self,
        counts: tuple[int, ...],
        width: int,
        shortcut: str,
        classifier: str,
        *,
        num_classes: int = 10,
        num_channels: int = 3,
        bottleneck: bool = False,
        v1: bool = False,
        stem: tuple[int, int, bool] = (3, 1, False),
    ) -> None:
        super().__init__()
        kernel, stride, self.pooled = stem
        self.conv1 = conv(num_channels, width, kernel, stride)
        self.bn1 = nn.BatchNorm2d(width)
        num_in = width
        for stage, count in enumerate(counts):
            blocks = []
            for index in range(count):
                step = 2 if stage and not index else 1
                block = Residual(num_in, width * 2**stage, step, shortcut, bottleneck, v1)
                blocks.append(block)
                num_in = block.num_out
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_stages, self.classifier_name = len(counts), classifier
        setattr(self, classifier, nn.Linear(num_in, num_classes))

    def outputs(self, x: Tensor) -> dict[tuple[int, int], Tensor]:
        """Output of the stem, (0, 0), and of each block, (stage from 1, index from 0)."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pooled:
            x = F.max_pool2d(x, 3, 2, 1)
        found = {(0, 0): x}
        for stage in range(1, self.num_stages + 1):
            for index, block in enumerate(getattr(self, f"layer{stage}")):
                x = block(x)
                found[stage, index] = x
        return found

    def forward(self, x: Tensor) -> Tensor:
        *_, last = self.outputs(x).values()
        return getattr(self, self.classifier_name)(last.mean((-1, -2)))


class Head(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.head = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


class Decoder(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.decoder = nn.Sequential(*parts)


def pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def augmented_head(
    num_in: int,
    copies: list[tuple[int, int]],
    num_classes: int,
    *,
    norm: bool,
    bottleneck: bool = False,
) -> Head:
    """AugLocal's: copies of blocks, each (channels, stride), pooled, perhaps a norm, Linear."""
    parts: list[nn.Module] = []
    for channels, stride in copies:
        width = channels // 4 if bottleneck else channels
        parts.append(Residual(num_in, width, stride, "downsample", bottleneck))
        num_in = channels
    norms = [nn.BatchNorm1d(num_in)] if norm else []
    return Head(*parts, *pooled(), *norms, nn.Linear(num_in, num_classes))


def greedy_head(width: int, num_classes: int, size: int) -> Head:
    """DGL's, of maps of `size` pixels."""
    parts: list[nn.Module] = [nn.AdaptiveAvgPool2d(-(-size // 4))]
    for _ in range(3):
        parts += [conv(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()]
    parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    for _ in range(2):
        parts += [nn.Linear(4 * width, 4 * width, bias=False), nn.BatchNorm1d(4 * width), nn.ReLU()]
    return Head(*parts, nn.Linear(4 * width, num_classes))


def information_head(width: int, last: int, num_classes: int) -> Head:
    """InfoPro's: a convolution to twice the width, but to no more than the last stage's."""
    num_out = min(2 * width, last)
    stride = 2 if num_out > width else 1
    first = [conv(width, num_out, 3, stride), nn.BatchNorm2d(num_out), nn.ReLU()]
    hidden = [nn.Linear(num_out, 128), nn.ReLU()]
    return Head(*first, *pooled(), *hidden, nn.Linear(128, num_classes))


def image_decoder(width: int) -> Decoder:
    return Decoder(
        nn.Conv2d(width, 12, 3, 1, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 3, 3, 1, 1),
        nn.Sigmoid(),
    )
