"""Blocks of layers: every layer once, a long enough tail, nearly equal blocks before it."""

from __future__ import annotations

import math

import pytest

from auglocal.blocks import cut_into_blocks
from auglocal.errors import InputError


@pytest.mark.parametrize("num_layers", [1, 2, 7, 10, 16, 55])
def test_any_number_of_modules_is_possible_and_holds_every_layer_once(num_layers: int) -> None:
    for num_modules in range(1, num_layers + 1):
        blocks = cut_into_blocks(num_layers, num_modules, smallest_tail=1)
        assert len(blocks) == num_modules
        assert [index for block in blocks for index in block] == list(range(num_layers))
        assert len(blocks[-1]) == math.ceil(num_layers / num_modules)
        lengths = [len(block) for block in blocks[:-1]]
        assert all(lengths)
        assert lengths == sorted(lengths, reverse=True)
        assert not lengths or lengths[0] - lengths[-1] <= 1


def test_larger_blocks_come_first() -> None:
    assert cut_into_blocks(10, 4, smallest_tail=1) == [
        range(0, 3),
        range(3, 5),
        range(5, 7),
        range(7, 10),
    ]


def test_the_default_is_a_block_a_layer_before_the_smallest_tail() -> None:
    for num_layers in (10, 16, 55):
        for smallest in range(1, num_layers):
            blocks = cut_into_blocks(num_layers, None, smallest)
            assert [len(block) for block in blocks] == [*[1] * (num_layers - smallest), smallest]


def test_the_rules_smallest_tail_is_kept_where_equal_blocks_would_be_shorter() -> None:
    assert [len(block) for block in cut_into_blocks(16, 8, smallest_tail=4)] == [
        *[2] * 5,
        *[1] * 2,
        4,
    ]


def test_a_tail_that_is_given_is_kept_and_the_rest_is_cut() -> None:
    assert [len(block) for block in cut_into_blocks(16, 4, 3, tail=1)] == [5, 5, 5, 1]
    assert [len(block) for block in cut_into_blocks(16, 2, 3, tail=15)] == [1, 15]
    assert [len(block) for block in cut_into_blocks(16, None, 3, tail=14)] == [1, 1, 14]


@pytest.mark.parametrize("smallest", [1, 3, 16, 40])
def test_the_smallest_tail_gives_way_to_the_modules_asked_for(smallest: int) -> None:
    for num_modules in range(2, 17):
        blocks = cut_into_blocks(16, num_modules, smallest)
        assert len(blocks) == num_modules
        assert all(len(block) > 0 for block in blocks)
        assert len(blocks[-1]) == max(min(smallest, 17 - num_modules), math.ceil(16 / num_modules))


def test_one_module_is_all_layers_whatever_the_smallest_tail() -> None:
    assert cut_into_blocks(16, 1, smallest_tail=40) == [range(16)]
    assert cut_into_blocks(16, 1, smallest_tail=1, tail=16) == [range(16)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 17, 1), "16 layers has 1 to 16 modules, not 17; give --modules 16 or fewer"),
        ((16, 0, 1), "16 layers has 1 to 16 modules, not 0"),
        ((16, 1, 3, 4), "One module is a tail of all 16 layers, not of 4; leave --tail out"),
        ((16, 15, 1, 3), "13 of 16 are left for 14 modules before it; give --modules 14 or fewer"),
        ((16, 4, 3, 14), "tail of 14 layers, 2 of 16 are left for 3 modules .* --modules 3"),
    ],
)
def test_impossible_cuts_say_what_is_possible(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut_into_blocks(*arguments)
