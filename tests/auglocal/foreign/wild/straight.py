"""VGGs and mobile networks written from the papers, with the names that public codes use.

kuangliu/pytorch-cifar, chenyaofo/pytorch-cifar-models, the AugLocal authors' VGG, and timm's VGG,
MobileNetV2, EfficientNet-B0 and RegNetX.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

VGG_COUNTS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width)


class Features(nn.Module):
    """A VGG whose `features` are a flat list; what follows is up to the subclass."""

    def __init__(self, depth: int, width: int, trailing: bool = False) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        num_in = 3
        for stage, count in enumerate(VGG_COUNTS[depth]):
            num_out = width * 2 ** min(stage, 3)
            for _ in range(count):
                parts += [nn.Conv2d(num_in, num_out, 3, padding=1), norm(num_out), nn.ReLU()]
                num_in = num_out
            parts.append(nn.MaxPool2d(2))
        if trailing:
            parts.append(nn.AvgPool2d(1, 1))
        self.features = nn.Sequential(*parts)
        self.num_out = num_in


class KuangliuVGG(Features):
    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__(depth, width, trailing=True)
        self.classifier = nn.Linear(self.num_out, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class ChenyaofoVGG(Features):
    def __init__(self, depth: int, width: int, num_classes: int, dropout_first: bool = False):
        super().__init__(depth, width)
        wide = self.num_out
        hidden: list[nn.Module] = []
        for _ in range(2):
            step = [nn.Linear(wide, wide), nn.ReLU()]
            hidden += [nn.Dropout(), *step] if dropout_first else [*step, nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(wide, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


class TorchvisionVGG(Features):
    """Seven by seven pixels, whatever the image, and two hidden layers of 4096."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__(depth, width)
        hidden: list[nn.Module] = []
        for num_in in (49 * self.num_out, 4096):
            hidden += [nn.Linear(num_in, 4096), nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(4096, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


class TimmVGG(Features):
    """The hidden layers are convolutions, of 7x7 pixels and of one."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__(depth, width)
        self.pre_logits = nn.Module()
        self.pre_logits.fc1 = nn.Conv2d(self.num_out, 4096, 7)
        self.pre_logits.fc2 = nn.Conv2d(4096, 4096, 1)
        self.head = nn.Module()
        self.head.fc = nn.Linear(4096, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pre_logits.fc1(self.features(x)))
        x = F.relu(self.pre_logits.fc2(x))
        return self.head.fc(x.mean((-1, -2)))


class WholeLayerVGG(nn.Module):
    """The AugLocal authors' names: each entry of `features` is a whole layer or a pool."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.ModuleList()
        num_in = 3
        for stage, count in enumerate(VGG_COUNTS[depth]):
            num_out = width * 2 ** min(stage, 3)
            for _ in range(count):
                layer = nn.Module()
                layer.conv1 = nn.Conv2d(num_in, num_out, 3, padding=1)
                layer.bn1 = norm(num_out)
                self.features.append(layer)
                num_in = num_out
            self.features.append(nn.MaxPool2d(2))
        hidden = [nn.Linear(49 * num_in, 4096), nn.ReLU(), nn.Dropout()]
        hidden += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
        self.fc = nn.Sequential(*hidden, nn.Linear(4096, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.features:
            x = layer(x) if isinstance(layer, nn.MaxPool2d) else F.relu(layer.bn1(layer.conv1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 7).flatten(1))


def depthwise(width: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=width, bias=False)


def pointwise(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 1, bias=False)


class Squeeze(nn.Module):
    def __init__(self, width: int, narrow: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(width, narrow, 1)
        self.conv_expand = nn.Conv2d(narrow, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.conv_reduce(x.mean((-1, -2), keepdim=True)))
        return x * self.conv_expand(gate).sigmoid()


class MobileBlock(nn.Module):
    """timm's names of an inverted residual; without expansion the last convolution is conv_pw."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        expansion: int,
        kernel: int,
        stride: int,
        squeezes: bool,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        wide = num_in * expansion
        if expansion == 1:
            self.conv_dw, self.bn1 = depthwise(num_in, kernel, stride), norm(num_in)
            self.conv_pw, self.bn2 = pointwise(num_in, num_out), norm(num_out)
        else:
            self.conv_pw, self.bn1 = pointwise(num_in, wide), norm(wide)
            self.conv_dw, self.bn2 = depthwise(wide, kernel, stride), norm(wide)
            self.conv_pwl, self.bn3 = pointwise(wide, num_out), norm(num_out)
        self.se = Squeeze(wide, max(1, num_in // 4)) if squeezes else nn.Identity()
        self.act, self.expands = activation(), expansion != 1
        self.residual = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        if self.expands:
            y = self.act(self.bn1(self.conv_pw(x)))
            y = self.se(self.act(self.bn2(self.conv_dw(y))))
            y = self.bn3(self.conv_pwl(y))
        else:
            y = self.se(self.act(self.bn1(self.conv_dw(x))))
            y = self.bn2(self.conv_pw(y))
        return x + y if self.residual else y


# Expansion, channels, blocks, stride, kernel.
MOBILE = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 3),
    (6, 96, 3, 1, 3),
    (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
]
EFFICIENT = [
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
]


class TimmMobile(nn.Module):
    def __init__(self, num_classes: int, efficient: bool, num_channels: int = 3) -> None:
        super().__init__()
        activation = nn.SiLU if efficient else nn.ReLU6
        self.act = activation()
        self.conv_stem = nn.Conv2d(num_channels, 32, 3, 2, 1, bias=False)
        self.bn1 = norm(32)
        stages, num_in = [], 32
        for expansion, width, count, stride, kernel in EFFICIENT if efficient else MOBILE:
            blocks = []
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(
                    MobileBlock(num_in, width, expansion, kernel, step, efficient, activation)
                )
                num_in = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = pointwise(num_in, 1280), norm(1280)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((-1, -2)))


class Norm(nn.Module):
    """timm's pair `conv` and `bn`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.bn = convolution, norm(convolution.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class XBlock(nn.Module):
    def __init__(self, num_in: int, width: int, stride: int) -> None:
        super().__init__()
        grouped = nn.Conv2d(width, width, 3, stride, 1, groups=width // 16, bias=False)
        self.conv1 = Norm(pointwise(num_in, width))
        self.conv2 = Norm(grouped)
        self.conv3 = Norm(pointwise(width, width))
        if stride > 1 or num_in != width:
            self.downsample = Norm(nn.Conv2d(num_in, width, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class TimmRegNet(nn.Module):
    """RegNetX-400MF of the paper's table."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = Norm(nn.Conv2d(3, 32, 3, 2, 1, bias=False))
        num_in = 32
        for stage, (count, width) in enumerate(zip((1, 2, 7, 12), (32, 64, 160, 384)), start=1):
            blocks = nn.Module()
            for index in range(count):
                setattr(blocks, f"b{index + 1}", XBlock(num_in, width, 1 if index else 2))
                num_in = width
            setattr(self, f"s{stage}", blocks)
        self.head = nn.Module()
        self.head.fc = nn.Linear(num_in, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for stage in range(1, 5):
            for block in getattr(self, f"s{stage}").children():
                x = block(x)
        return self.head.fc(x.mean((-1, -2)))
