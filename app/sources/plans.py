"""Plans of how a rule trains a backbone, and what that costs beside BP; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.sources.catalogue import catalogue

if TYPE_CHECKING:
    from auglocal.layer_costs import LayerCosts


@dataclass(frozen=True)
class Images:
    """What a data set's images are: title, number of classes, pixels a side."""

    title: str
    num_classes: int
    pixels: int


# By the name that `--dataset` takes.
IMAGES = {
    "digits": Images("scikit-learn digits", 10, 32),
    "cifar10": Images("CIFAR-10", 10, 32),
    "cifar100": Images("CIFAR-100", 100, 32),
    "svhn": Images("SVHN", 10, 32),
    "stl10": Images("STL-10", 10, 96),
    "imagenet": Images("ImageNet", 1000, 224),
}


@dataclass(frozen=True)
class Setting:
    """A way to train a backbone, by the names of `TrainConfig`, and the images it is for."""

    architecture: str = "resnet32"
    width: float = 1.0
    rule: str = "auglocal"
    auxiliary_depth: int = 2
    pyramid: float = 0.5
    selection: str = "uniform"
    selection_seed: int = 0
    tail: int | None = None
    modules: int | None = None
    local_loss: str = "cross-entropy"
    num_classes: int = 10
    pixels: int = 32
    batch_size: int = 128

    def config_values(self) -> dict[str, Any]:
        """Its fields that are `TrainConfig`'s."""
        return {name: getattr(self, name) for name in CONFIG_NAMES}


CONFIG_NAMES = tuple(
    item.name for item in fields(Setting) if item.name not in ("num_classes", "pixels")
)


@dataclass(frozen=True)
class PlanAnswer:
    """A plan as `python -m auglocal plan --json` prints it, what it costs, and what BP costs."""

    plan: dict[str, Any]
    costs: LayerCosts
    bp: LayerCosts


@st.cache_resource(max_entries=64, show_spinner=False)
def plan(setting: Setting) -> PlanAnswer:
    """Lay out a setting and count its costs; read-only.

    Raises:
        auglocal.errors.InputError: the setting cannot be; one sentence.
    """
    from auglocal.config import TrainConfig
    from auglocal.layer_costs import count_layer_costs
    from auglocal.plan import make_plan

    config = TrainConfig(**setting.config_values())
    rule = config.make_rule()
    size = (3, setting.pixels, setting.pixels)
    laid_out = make_plan(
        setting.architecture, setting.rule, rule, setting.num_classes, size, setting.width
    )
    costs = count_layer_costs(
        setting.architecture, rule, setting.batch_size, setting.num_classes, size, setting.width
    )
    return PlanAnswer(laid_out, costs, _bp(setting))


def _bp(setting: Setting) -> LayerCosts:
    """What BP costs on the same backbone and images."""
    where = (setting.architecture, setting.batch_size, setting.num_classes)
    return _bp_costs(*where, setting.pixels, setting.width)


@st.cache_resource(max_entries=64, show_spinner=False)
def _bp_costs(
    architecture: str, batch_size: int, num_classes: int, pixels: int, width: float
) -> LayerCosts:
    """The same, whatever the rule that it stands beside."""
    from auglocal.layer_costs import count_layer_costs
    from auglocal.rules.bp import BP

    size = (3, pixels, pixels)
    return count_layer_costs(architecture, BP(), batch_size, num_classes, size, width)


def choices() -> dict[str, tuple[str, ...]]:
    """What can be picked for fields of `TrainConfig` that take a name."""
    fields = catalogue().fields
    names = ("architecture", "rule", "local_loss", "selection")
    return {name: fields[name].choices for name in names}
