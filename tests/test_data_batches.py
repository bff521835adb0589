"""Cutting a split into batches, and an epoch's order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.config import Batching
from benchmark.data.batches import cut, order

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=60).map(np.array)


@given(lengths, st.integers(1, 9), st.sampled_from(Batching), st.integers(0, 3))
def test_every_sentence_is_in_one_batch(lengths, size, batching, seed):
    batches = cut(lengths, size, batching, seed)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)


@given(lengths, st.integers(1, 9))
def test_exact_batches_have_one_length_and_are_as_few_as_can_be(lengths, size):
    batches = cut(lengths, size, Batching.exact)
    assert all(len(set(lengths[batch])) == 1 for batch in batches)
    assert len(batches) == sum(-(-n // size) for n in np.bincount(lengths))


@given(lengths, st.integers(1, 9))
def test_bucketed_batches_overlap_in_no_length(lengths, size):
    batches = cut(lengths, size, Batching.bucketed)
    assert len(batches) == -(-len(lengths) // size)
    for one, next_one in itertools.pairwise(batches):
        assert lengths[one].max() <= lengths[next_one].min()


@pytest.mark.parametrize("batching", Batching)
def test_ties_are_shuffled_by_the_seed_alone(batching):
    lengths = np.repeat([3, 5], 50)
    same, again, other = (cut(lengths, 10, batching, seed) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(same, again, strict=True))
    assert any((a != b).any() for a, b in zip(same, other, strict=True))
    assert (same[0] != np.arange(10)).any()


def test_an_epochs_order_is_a_function_of_seed_and_epoch():
    assert sorted(order(50, 1, 2)) == list(range(50))
    np.testing.assert_array_equal(order(50, 1, 2), order(50, 1, 2))
    assert (order(50, 1, 2) != order(50, 1, 3)).any()
    assert (order(50, 1, 2) != order(50, 2, 2)).any()
