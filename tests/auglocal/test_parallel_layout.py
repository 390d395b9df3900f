"""Who does what: grids, shares of a batch, and runs of blocks."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch

from auglocal.__main__ import main
from auglocal.batches import Augmentation, ResidentSplit, epoch_order, num_batches
from auglocal.bench import flops_ratio
from auglocal.config import TrainConfig
from auglocal.errors import InputError
from auglocal.layer_costs import count_layer_costs
from auglocal.memory import Subject
from auglocal.parallel.balance import (
    counted_costs,
    describe_sharing,
    measured_costs,
    share_out,
)
from auglocal.parallel.layout import (
    Layout,
    check_batch,
    check_ranks,
    parse_layout,
    plan_epoch,
    shares_by_step,
)


def test_a_layout_is_read_in_any_order_and_each_rank_has_a_place_of_its_own() -> None:
    assert parse_layout("layers=4") == Layout(layers=4, data=1)
    assert parse_layout("data=3") == Layout(layers=1, data=3)
    layout = parse_layout("data=2, layers=3")
    assert layout == parse_layout(str(layout)) == Layout(layers=3, data=2)
    places = [layout.place(rank) for rank in range(layout.size)]
    assert sorted(places) == sorted(itertools.product(range(3), range(2)))
    assert [layout.rank_at(*place) for place in places] == list(range(6))


@pytest.mark.parametrize("text", ["", "4", "layers", "layers=0", "layers=2,layers=2", "rows=2"])
def test_another_layout_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--parallel takes layers=4"):
        parse_layout(text)


def test_too_few_processes_or_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"layers=2,data=2 needs 4 processes.* started 3"):
        check_ranks(Layout(2, 2), 3)
    check_batch(Layout(data=3), 6)
    with pytest.raises(InputError, match=r"5 images is too small for 3 ranks.*--batch-size 6"):
        check_batch(Layout(data=3), 5)


@pytest.mark.parametrize("num_images", [40, 41, 42, 43, 47, 48])
@pytest.mark.parametrize(("num_shares", "accumulate"), [(1, 1), (1, 3), (3, 1), (3, 2), (2, 9)])
def test_the_shares_of_all_ranks_are_the_batches_of_one_process(
    num_images: int, num_shares: int, accumulate: int
) -> None:
    order = dict(epoch_order(num_images, 10, seed=0, epoch=0, first_step=1))
    seen: dict[int, list[torch.Tensor]] = {step: [] for step in order}
    weights = dict.fromkeys(order, 0.0)
    counts = []
    for share_index in range(num_shares):
        parts = list(
            plan_epoch(
                num_images,
                10,
                first_step=1,
                num_shares=num_shares,
                share_index=share_index,
                accumulate=accumulate,
            )
        )
        counts.append([part.step for part in parts])
        assert sum(part.first for part in parts) == sum(part.last for part in parts) == len(order)
        for part in parts:
            assert part.num_images >= 2
            weights[part.step] += part.weight
            if share_index < num_shares // part.copies:
                seen[part.step].append(order[part.step][part.start : part.stop])
    assert len(order) == num_batches(num_images, 10) - 1
    # Replicas count their BatchNorms alike, so they must have as many parts.
    assert all(steps == counts[0] for steps in counts)
    for step, indices in order.items():
        assert torch.equal(torch.cat(seen[step]), indices)
        assert weights[step] == pytest.approx(1)


def test_blocks_are_shared_out_as_well_as_can_be() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_ranks in (1, 2, 3, 4, 7):
        costs = torch.randint(1, 20, (7,), generator=generator).tolist()
        sharing = share_out(costs, num_ranks)
        assert [index for span in sharing.spans for index in span] == list(range(7))
        best = min(
            max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *cuts, 7)))
            for cuts in itertools.combinations(range(1, 7), num_ranks - 1)
        )
        assert sharing.speed_up == pytest.approx(sum(costs) / best)
    with pytest.raises(InputError, match="7 blocks cannot be shared out among 8 ranks"):
        share_out(costs, 8)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("num_steps", [1, 2, 8])
def test_a_round_takes_as_long_as_its_steps_pass_through_all_ranks(
    num_ranks: int, num_steps: int
) -> None:
    sharing = share_out([3.0, 1.0, 4.0, 1.0, 5.0, 9.0], num_ranks)
    free = [0.0] * num_ranks  # when each rank has done what it has begun
    for _ in range(num_steps):
        arrived = 0.0
        for rank, share in enumerate(sharing.shares):
            free[rank] = arrived = max(free[rank], arrived) + share
    assert sharing.speed_up_of(num_steps) == pytest.approx(num_steps / free[-1])
    assert sharing.speed_up_of(10**6) == pytest.approx(sharing.speed_up, rel=1e-3)


def test_operations_promise_ratios_to_one_rank_and_to_bp(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["bench", "--parallel", "--count-only", "--ranks", "3", "--architecture", "resnet20"]
    assert main([*command, "--rule", "dgl", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    one, two, three, _, _, bp, *_ = rows
    config = TrainConfig(architecture="resnet20", rule="dgl")
    ratio = flops_ratio(Subject(config, 10, (3, 32, 32)))
    assert bp["ideal"] == pytest.approx(ratio, rel=1e-2)
    assert 1 == one["ideal"] < two["ideal"] <= 2
    assert two["ideal"] < three["ideal"] <= 3
    assert main([*command, "--rule", "dgl"]) == 0
    said = capsys.readouterr().out
    assert f"{three['ideal'] / bp['ideal']:.2f}" in said
    assert "to BP on one" in said


def test_blocks_cost_what_their_layers_and_auxiliary_networks_cost() -> None:
    config = TrainConfig(width=0.25, batch_size=4, rule="dgl", modules=4)
    costs = counted_costs(config, 10, (3, 16, 16))
    whole = count_layer_costs(
        config.architecture, config.make_rule(), 4, 10, (3, 16, 16), config.width
    )
    assert len(costs) == 4
    assert sum(costs) == whole.flops
    seconds = measured_costs(config, 10, (3, 16, 16), torch.device("cpu"))
    assert len(seconds) == 4
    assert min(seconds) > 0


def test_people_are_told_who_owns_what_and_what_to_expect() -> None:
    text = describe_sharing(share_out([1, 2, 3], 2), ["stem", "middle", "head"], "flops")
    assert "layers 0: 2 blocks, stem to middle, 50% of the FLOPs" in text
    assert "layers 1: 1 block, head, 50% of the FLOPs" in text
    assert "2.00 times" in text


def test_a_share_of_a_batch_is_augmented_as_in_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (23, 3, 8, 8), dtype=torch.uint8, generator=generator)
    split = ResidentSplit(images, torch.arange(23))
    place: dict[str, Any] = {"seed": 1, "epoch": 2, "first_step": 1}
    place["augmentation"] = Augmentation(padding=2, border="zero", flip=True)
    whole = list(split.training_batches(10, **place))
    plans = [
        list(plan_epoch(23, 10, first_step=1, num_shares=2, share_index=index))
        for index in range(2)
    ]
    first, second = (
        list(split.training_batches(10, **place, shares=shares_by_step(parts))) for parts in plans
    )
    assert [part.copies for part in plans[0]] == [1, 2]
    for tensor, one, other in zip(whole[0], first[0], second[0], strict=True):
        assert torch.equal(tensor, torch.cat([one, other]))
    for tensor, one, other in zip(whole[1], first[1], second[1], strict=True):
        assert torch.equal(tensor, one)
        assert torch.equal(tensor, other)
