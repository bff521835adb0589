"""The placebo: what is then inferred from says nothing of the sentence but its length."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark.api import BOS, EOS, UNK
from benchmark.data.corpus import Split
from benchmark.placebo import Misread, partners, shuffled
from benchmark.trial import reworded, write_corpus
from tests import cells
from tests.cells import differences, found, result, run, stop_when


@pytest.fixture(autouse=True)
def one_thread():
    with cells.one_thread():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


# Who is whose partner ----------------------------------------------------------------------------


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 2**31))
def test_partners_are_another_of_the_same_length(lengths: list[int], seed: int):
    keys = torch.rand(len(lengths), generator=torch.Generator().manual_seed(seed))
    partner = partners(torch.tensor(lengths), keys).tolist()
    assert sorted(partner) == list(range(len(lengths)))
    for i, j in enumerate(partner):
        assert lengths[i] == lengths[j]
        assert (i == j) == (Counter(lengths)[lengths[i]] == 1)
    cycle, i = set(), 0  # that of the first sentence
    while i not in cycle:
        cycle.add(i)
        i = partner[i]
    assert len(cycle) == Counter(lengths)[lengths[0]]


def test_every_pair_is_equally_likely():
    lengths, counts = torch.full((5,), 7), np.zeros((5, 5))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4000):
        counts[np.arange(5), partners(lengths, torch.rand(5, generator=generator)).numpy()] += 1
    assert not counts.diagonal().any()
    others = counts[~np.eye(5, dtype=bool)] / 1000
    assert np.abs(others - 1).max() < 4.5 * np.sqrt(0.75 / 1000)  # of 20, at 4.5 s.e.


# What is read ------------------------------------------------------------------------------------


def test_in_training_sources_are_exchanged_anew_at_each_step(corpus):
    rows = [0, 3, 6, 9, 1, 4, 2]  # four of one length, two of another, one alone
    batch = corpus.train.batch(rows)
    torch.manual_seed(0)
    seen = [shuffled(batch) for _ in range(8)]
    assert len({str(b.source.tolist()) for b in seen}) > 2
    for other in seen:
        for role in ("targets", "inputs", "target_lengths", "source_lengths"):
            assert torch.equal(getattr(other, role), getattr(batch, role))
        assert sorted(other.source[:4].tolist()) == sorted(batch.source[:4].tolist())
        assert torch.equal(other.source[4:6], batch.source[[5, 4]])
        n = int(batch.source_lengths[6])
        blotted = [BOS, *[UNK] * (n - 2), EOS]
        assert other.source[6, :n].tolist() == blotted and not other.source[6, n:].any()


def test_in_evaluation_the_partner_is_fixed_however_sentences_are_batched(corpus):
    misread, again = Misread(corpus.valid), Misread(corpus.valid)
    whole = misread.batch(np.arange(len(misread)))
    assert torch.equal(whole.targets, corpus.valid.batch(np.arange(len(misread))).targets)
    for i in range(len(misread)):
        alone = again.batch([i])
        n = int(alone.source_lengths[0])
        assert torch.equal(alone.source[0], whole.source[i, :n])
        assert n == int(whole.target_lengths[i]) + 1
        assert not torch.equal(alone.source, corpus.valid.batch([i]).source)


def test_what_a_sentence_says_is_not_read(corpus):
    class Reworded(Split):
        """In which the first sentence has other words."""

        def batch(self, indices):
            batch, first = super().batch(indices), torch.as_tensor(indices)[:, None] == 0
            other = {
                role: getattr(reworded(batch, role, 13), role) for role in ("targets", "source")
            }
            return batch.but(
                **{role: torch.where(first, other[role], getattr(batch, role)) for role in other}
            )

    own, others = corpus.valid, Reworded(corpus.folder, "valid")
    assert not torch.equal(own.batch([0]).source, others.batch([0]).source)
    one, other = Misread(own).batch([0]), Misread(others).batch([0])
    assert torch.equal(one.source, other.source) and not torch.equal(one.targets, other.targets)


# What it does to a cell --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cells") / "uncut"
    assert run(folder, "placebo=true") == 0
    return folder


def test_the_decoder_has_nothing_to_read(uncut: Path):
    words = ["budget.steps=200", "method=free_bits", "placebo=true"]
    assert run(uncut.parent / "forced", *words) == 0
    test = found(uncut.parent / "forced")[1]["summary"]["test"]
    assert test["kl"] > 1  # rate there is
    assert test["i_read"] - 3 * test["i_read_se"] < 0.02
    assert abs(test["z_gain"]) < 4 * test["z_gain_se"] + 0.02


def test_it_is_a_cell_of_its_own(uncut: Path):
    assert run(uncut.parent / "true") == 0
    (one, placebo), (other, itself) = (found(uncut), found(uncut.parent / "true"))
    assert one.parent.name != other.parent.name
    assert placebo["cell"]["variant"] == itself["cell"]["variant"] + " placebo"
    assert placebo["summary"]["test"]["nll"] != itself["summary"]["test"]["nll"]


def test_it_resumes_to_the_bit(uncut: Path, monkeypatch):
    folder, asked = uncut.parent / "cut", itertools.count()
    stop_when(monkeypatch, lambda: next(asked) == 30)
    assert run(folder, "placebo=true") == 143
    monkeypatch.undo()
    assert run(folder, "placebo=true") == 0
    assert differences(result(folder), result(uncut)) == []
