"""What models write: the search against all sentences there are, the measures against their own
definitions, the judges against known text, and the command."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

from benchmark import generate
from benchmark.api import BOS, EOS, PAD, Batch
from benchmark.config import Dataset, Sizes
from benchmark.evaluate import TOKENS
from benchmark.generation import judge, metrics
from benchmark.generation.settings import Settings
from benchmark.generation.texts import GREEDY, Author, Rule
from benchmark.models import (
    AntiCausalEncoder,
    ForgetfulDecoder,
    GaussianVAE,
    Generator,
    Inference,
    LanguageModel,
    LSTMDecoder,
    LSTMEncoder,
    Rewriter,
    StochasticLSTM,
    TemporalVAE,
)
from benchmark.models.writing import Writing
from benchmark.record import RunDirectory
from tests.cells import found as found_run
from tests.cells import run

CPU = torch.device("cpu")
VOCAB, LONGEST = 6, 4  # three words, and at most so many tokens
SIZES = dict(vocab_size=VOCAB, embedding=4, hidden=5, latent=3)
ALL = [  # sentences, </s> included
    [*words, EOS] for n in range(LONGEST) for words in product(range(3, VOCAB), repeat=n)
]


def batch_of(sentences: list[list[int]]) -> Batch:
    """From tokens, </s> included."""
    lengths = torch.tensor([len(one) for one in sentences])
    targets = torch.zeros(len(sentences), int(lengths.max()), dtype=torch.long)
    for row, one in zip(targets, sentences, strict=True):
        row[: len(one)] = torch.tensor(one)
    source = torch.cat([torch.full((len(targets), 1), BOS), targets], 1)
    return Batch(targets, source[:, :-1] * (source[:, :-1] != EOS), source, lengths, lengths + 1)


SOURCES = batch_of([[4, 5, EOS], [5, EOS], [4, 3, 5, EOS], [3, 3, EOS], [5, 5, 5, EOS], [EOS]])


def gaussian(decoder=LSTMDecoder, **more):
    model = GaussianVAE(LSTMEncoder(**SIZES), decoder(**SIZES, dropout=0.0, **more))
    return model, lambda i, told: model.log_px(told, mean(model, i).expand(len(told), 1, -1))


def forgetful():
    return gaussian(ForgetfulDecoder, memory=2)


def temporal():
    encoder = AntiCausalEncoder(LSTMEncoder(**SIZES))
    model = TemporalVAE(encoder, LSTMDecoder(**SIZES, dropout=0.0, stepwise=True), [0.5, 0.1, 0.2])

    def score(i: int, told: Batch) -> Tensor:
        own = mean(model, i)[0, : int(SOURCES.target_lengths[i])]
        z = torch.zeros(LONGEST, 3)
        z[: len(own)] = own
        return model.log_px(told, z[: told.targets.shape[1]].expand(len(told), 1, -1, -1))

    return model, score


def stochastic():
    decoder = LSTMDecoder(**SIZES, dropout=0.0)
    model = StochasticLSTM(Inference(VOCAB, 4, 5, 4, 3), Generator(decoder, 4, 3, True), 3)

    def score(i: int, told: Batch) -> Tensor:
        steps, b = int(SOURCES.target_lengths[i]), model.read(SOURCES)[i]

        def code(h: Tensor, t: int) -> Tensor:
            if t < steps:
                return model.inference.posterior(h, b[t].expand(*h.shape[:2], -1))[0]
            return model.generator.prior(h)[0]

        return model.score(told, model.unroll(told.inputs, 1, code)[2])

    return model, score


def mean(model, i: int) -> Tensor:
    return model.encoder(SOURCES)[0][i : i + 1]


MODELS = [gaussian, forgetful, temporal, stochastic]


def random(make: Callable, seed: int):
    """A model whose every dependence shows, and what it says of texts [N] from its source `i`."""
    torch.manual_seed(seed)
    model, score = make()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    with torch.no_grad():  # else the likeliest sentence would be the empty one
        output = (model.generator if make is stochastic else model.decoder).output.weight
        output *= 4
        output[:EOS] *= 0.1
    return model.eval(), lambda i, texts: score(i, batch_of(texts))[:, 0].tolist()


def tokens(row: Tensor) -> list[int]:
    """Up to `</s>`; behind it is nothing but padding."""
    ids = row.tolist()
    end = ids.index(EOS) + 1 if EOS in ids else len(ids)
    assert set(ids[end:]) <= {PAD} and not {PAD, BOS} & {*ids[:end]}
    return ids[:end]


# -- beam search ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("make", MODELS)
def test_a_wide_beam_finds_the_likeliest_of_all_sentences(make):
    found, greedy = [], 0
    for seed in range(3):
        model, score = random(make, seed)
        assert isinstance(model, Rewriter)
        writing = model.rewriting(SOURCES, LONGEST)
        written = writing.search(LONGEST, len(ALL) * VOCAB)
        for i, row in enumerate(written):
            scores = dict(zip(map(tuple, ALL), score(i, ALL), strict=True))
            assert tokens(row) == list(max(scores, key=scores.__getitem__))
            found.append(tokens(row))
        greedy += sum(map(torch.equal, written, pad(writing.draw(LONGEST, 0.0), written)))
    assert len({*map(tuple, found)}) > 2 and any(len(one) > 1 for one in found)
    assert greedy < len(found)  # which would be a search for nothing


@torch.no_grad()
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("beams", [1, 2, 3])
def test_a_beam_keeps_the_likeliest_beginnings(make, beams):
    """Against a search over lists that scores every beginning anew."""
    for seed in range(3):
        model, score = random(make, seed)
        written = model.rewriting(SOURCES, LONGEST).search(LONGEST, beams)
        for i, row in enumerate(written):
            beginning = cache(lambda one, i=i, score=score: score(i, [[*one]])[0])
            kept: list[tuple[int, ...]] = [()]
            for _ in range(LONGEST):
                ended = [one for one in kept if EOS in one]
                going = [(*one, w) for one in kept if EOS not in one for w in range(2, VOCAB)]
                kept = sorted(ended + going, key=beginning)[::-1][:beams]
            assert tuple(tokens(row)) == max(kept, key=lambda one: (EOS in one, beginning(one)))


@torch.no_grad()
@pytest.mark.parametrize("make", MODELS)
def test_one_beam_is_greedy_and_greedy_is_the_reconstruction(make):
    for seed in range(5):
        model, _ = random(make, seed)
        writing = model.rewriting(SOURCES, 9)
        greedy = writing.draw(9, 0.0)
        assert torch.equal(pad(greedy, writing.search(9, 1)), writing.search(9, 1))
        assert torch.equal(pad(greedy, again := model.reconstruct(SOURCES, max_length=9)), again)


def pad(ids: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.pad(ids, (0, like.shape[1] - ids.shape[1]))


def chain(probabilities: dict[int, dict[int, float]]) -> Writing:
    """Words that follow the last one, 4 and 5, with known probabilities."""
    table = torch.full((VOCAB, VOCAB), -1e9)
    for last, following in probabilities.items():
        for word, p in following.items():
            table[last, word] = math.log(p)
    return Writing((torch.zeros(2, 1),), lambda t, words, state: (table[words], state))


def test_ended_sentences_compete_by_their_whole_probability():
    """The empty one has .4, the likeliest other .6 x .5: greedily it is overlooked."""
    writing = chain({BOS: {EOS: 0.4, 4: 0.6}, 4: {EOS: 0.5, 5: 0.5}, 5: {EOS: 1.0}})
    assert tokens(writing.draw(9, 0.0)[0]) in ([4, EOS], [4, 5, EOS])
    assert [tokens(row) for row in writing.search(9, 2)] == [[EOS], [EOS]]


def test_an_ended_sentence_may_be_overtaken():
    writing = chain({BOS: {EOS: 0.3, 4: 0.7}, 4: {5: 0.9, EOS: 0.1}, 5: {EOS: 1.0}})
    assert tokens(writing.search(9, 2)[0]) == [4, 5, EOS]


def test_at_the_limit_what_has_ended_comes_first():
    writing = chain({BOS: {EOS: 0.1, 4: 0.9}, 4: {4: 0.9, EOS: 0.1}})
    assert tokens(writing.search(2, 3)[0]) == [EOS]
    assert tokens(writing.search(2, 1)[0]) == [4, 4]  # nothing has ended


# -- measures of texts ----------------------------------------------------------------------------

LETTERS = st.lists(st.sampled_from("abc"), max_size=6)


@given(st.lists(LETTERS, min_size=2, max_size=6))
def test_self_bleu_is_sacrebleus_of_each_against_the_others(texts):
    scorer = BLEU(tokenize="none", force=True, effective_order=True)
    lines = [" ".join(words) for words in texts]
    scores = [
        scorer.sentence_score(line, lines[:i] + lines[i + 1 :]).score
        for i, line in enumerate(lines)
    ]
    assert metrics.self_bleu(texts) == pytest.approx(np.mean(scores))


def test_self_bleu_of_copies_of_strangers_and_of_one():
    assert metrics.self_bleu([["a", "b", "c", "d"]] * 3) == pytest.approx(100)
    assert metrics.self_bleu([["a", "b"], ["c", "d"], ["e"]]) == 0
    assert metrics.self_bleu([["a"]]) is None


def test_bleu_by_hand():
    """Papineni et al. 2002: precisions 4/5, 2/4, 1/3, and of four words 1/2 in place of none,
    smoothed to half of one of 2; the reference is longer by one."""
    written, meant = ["a", "b", "c", "x", "d"], ["a", "b", "c", "y", "d", "e"]
    logs = [math.log(p) for p in (4 / 5, 2 / 4, 1 / 3, 1 / (2 * 2))]
    expected = 100 * math.exp(1 - 6 / 5) * math.exp(sum(logs) / 4)
    assert metrics.corpus_bleu([written], [meant]) == pytest.approx(expected)
    assert metrics.corpus_bleu([meant], [meant]) == pytest.approx(100)
    assert metrics.corpus_bleu([[]], [meant]) == 0
    assert metrics.signatures(7)["self_bleu"].startswith("nrefs:7|case:mixed|eff:yes|tok:none")


def test_distinct_counts_the_first_tokens_and_none_across_sentences():
    texts = [["a", "b", "a"], ["b", "a"], ["c", "c", "c"]]
    assert metrics.distinct(texts, 1, 5) == 2 / 5
    assert metrics.distinct(texts, 2, 5) == 2 / 3  # ab ba, ba
    assert metrics.distinct(texts, 2, 6) == 2 / 3  # a third sentence of one word
    assert metrics.distinct(texts, 1, 8) == 3 / 8
    assert metrics.distinct(texts, 1, 9) is None
    assert metrics.distinct([["a"]], 2, 1) is None


@given(LETTERS, LETTERS)
def test_edits_are_the_fewest(written, meant):
    @cache
    def fewest(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        swap = fewest(i - 1, j - 1) + (written[i - 1] != meant[j - 1])
        return min(swap, fewest(i - 1, j) + 1, fewest(i, j - 1) + 1)

    assert metrics.edits(written, meant) == fewest(len(written), len(meant))


# -- what is written ------------------------------------------------------------------------------


class Numbered:
    """A split of sentences of many lengths."""

    name = "test"

    def __init__(self) -> None:
        words = [[3 + (i + j) % 3 for j in range(i % LONGEST)] for i in range(40)]
        self.sentences = [[*some, EOS] for some in words]
        self.lengths = np.array([len(one) for one in self.sentences])

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, indices) -> Batch:
        return batch_of([self.sentences[i] for i in indices])


def author(make: Callable = gaussian, seed: int = 0, deaf: bool = False) -> Author:
    model, _ = random(make, 0 if make is stochastic else 2)  # whose sentences are not all one
    if deaf:
        with torch.no_grad():
            model.decoder.initial.weight.zero_()
            model.decoder.lstm.weight_ih_l0[:, 4:] = 0
    return Author(model, CPU, VOCAB, 9, seed)


@pytest.mark.parametrize("by", [GREEDY, Rule("beam", beams=3)])
@pytest.mark.parametrize("make", MODELS)
def test_reconstructions_come_in_the_order_asked_for(make, by, monkeypatch):
    rows = np.random.default_rng(0).permutation(40)[:25]
    writer, split = author(make), Numbered()
    together = writer.reconstructions(split, rows, by)
    assert len({tuple(one.ids) for one in together}) > 2
    alone = [writer.reconstructions(split, rows[i : i + 1], by)[0] for i in range(25)]
    monkeypatch.setitem(TOKENS, "cpu", 30 * (by.beams or 1))  # three at once
    assert together == alone == writer.reconstructions(split, rows, by)


def test_a_decoder_that_ignores_its_code_writes_one_sentence():
    rows = np.arange(20)
    deaf, hears, split = author(deaf=True), author(), Numbered()
    for writer, one in ((deaf, True), (hears, False)):
        for texts in (
            writer.prior(50, GREEDY),
            writer.reconstructions(split, rows, GREEDY),
            writer.reconstructions(split, rows, Rule("beam", beams=4)),
            [text for path in writer.paths(split, rows, 5) for text in path],
        ):
            assert (len({tuple(text.ids) for text in texts}) == 1) == one
    assert len({tuple(text.ids) for text in deaf.prior(50, Rule("sampling", 1.0))}) > 5


def test_the_seed_decides_what_is_sampled():
    sampling, rows, split = Rule("sampling", temperature=1.0), np.arange(20), Numbered()
    for write in (
        lambda writer: writer.prior(40, sampling),
        lambda writer: writer.reconstructions(split, rows, sampling),
    ):
        writer, other = author(seed=3), author(seed=4)
        before = torch.get_rng_state()
        first = write(writer)
        assert torch.equal(before, torch.get_rng_state())
        torch.rand(1)
        assert write(writer) == first != write(other)


def test_the_colder_and_the_fewer_beams_the_more_greedy():
    writer, cold, rows = author(), Rule("sampling", temperature=1e-3), np.arange(40)
    assert writer.prior(50, cold) == writer.prior(50, GREEDY)
    greedy = writer.reconstructions(Numbered(), rows, GREEDY)
    assert writer.reconstructions(Numbered(), rows, cold) == greedy
    assert writer.reconstructions(Numbered(), rows, Rule("beam", beams=1)) == greedy
    for other in (Rule("sampling", temperature=1.0), Rule("beam", beams=4)):
        assert writer.reconstructions(Numbered(), rows, other) != greedy


def test_a_path_runs_straight_from_one_code_to_the_other(monkeypatch):
    writer, met = author(), []
    monkeypatch.setattr(
        writer.model, "decode", lambda z, max_length: met.append(z) or z[:, :1].long()
    )
    paths = writer.paths(Numbered(), np.array([4, 7, 9, 30]), 3)
    (codes,) = met
    with torch.no_grad():
        z = writer.model.draw(writer.batch(Numbered(), np.array([4, 7, 9, 30]))).z[:, 0]
    middle = [(z[0] + z[1]) / 2, (z[2] + z[3]) / 2]
    expected = torch.stack([z[0], middle[0], z[1], z[2], middle[1], z[3]])
    torch.testing.assert_close(codes, expected)
    assert [len(path) for path in paths] == [3, 3]


def test_a_sentence_that_is_cut_off_is_told_from_one_that_ended():
    writer = Author(author().model, CPU, VOCAB, 3, 0)
    texts = writer.prior(200, Rule("sampling", 1.0))
    assert {one.ended for one in texts} == {True, False}
    assert all(one.ended == (len(one.ids) < 3) and EOS not in one.ids for one in texts)


# -- the judges -----------------------------------------------------------------------------------


def learnt(folder: Path, texts: list[list[int]], seed: int = 0, epochs: int = 6) -> judge.Judge:
    dataset = Dataset(
        name="known",
        sizes=Sizes(embedding=8, hidden=16, latent=2, dropout=0.0, init=0.2, init_embedding=1.0),
        batch_size=32,
        learning_rate=1e-2,
    )
    folder.mkdir()
    splits = [judge.written(folder, name, some) for name, some in (("a", texts), ("b", texts))]
    about = dict(dataset=dataset, vocabulary=8, epochs=epochs, seed=seed, device=CPU)
    return judge.train(*splits, **about, folder=folder / "run")


def test_a_judge_knows_what_it_has_read(tmp_path):
    """Three words out of four, evenly: ln 64 nats for four tokens. A text of one sentence is
    certain to whoever has read it, and even text a surprise."""
    rng = np.random.default_rng(0)
    even = rng.integers(4, 8, (800, 3)).tolist()
    split = judge.written(tmp_path, "even", rng.integers(4, 8, (500, 3)).tolist())
    known = learnt(tmp_path / "even", even)
    assert known.perplexity(split)[0] == pytest.approx(64 ** (1 / 4), rel=0.03)
    one = judge.written(tmp_path, "one", [[4, 5, 6]] * 20)
    narrow = learnt(tmp_path / "one", [[4, 5, 6]] * 800)
    assert narrow.perplexity(one)[0] == pytest.approx(1, abs=0.02)
    assert (found := narrow.perplexity(split)[0]) and found > 6


def test_a_perplexitys_error_is_its_spread_over_texts(tmp_path):
    """Texts drawn anew, of uneven sentences that are of several lengths."""
    rng = np.random.default_rng(0)
    known = learnt(tmp_path / "read", [[4, 5, 6]] * 50 + [[5]] * 50, epochs=2)
    found = []
    for i in range(100):
        texts = [rng.integers(4, 8, rng.choice([1, 2, 3, 7])).tolist() for _ in range(60)]
        found.append(known.perplexity(judge.written(tmp_path, f"{i}", texts)))
    perplexities, errors = zip(*found, strict=True)
    assert np.mean(errors) == pytest.approx(np.std(perplexities, ddof=1), rel=0.2)


def test_a_judge_is_a_function_of_text_and_seed(tmp_path):
    texts = np.random.default_rng(0).integers(4, 8, (60, 3)).tolist()
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(weights))  # which is not to matter
        before = torch.get_rng_state()
        model = learnt(tmp_path / name, texts, seed, epochs=1).model
        assert isinstance(model, LanguageModel)
        assert torch.equal(before, torch.get_rng_state())
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_texts_of_empty_sentences_among_others(tmp_path):
    split = judge.written(tmp_path, "some", [[4], [], [5, 6], []])
    assert split.lengths.tolist() == [2, 1, 3, 1]
    assert split.batch([1, 2]).targets.tolist() == [[EOS, 0, 0], [5, 6, EOS]]


# -- the command ----------------------------------------------------------------------------------

FEW = ["samples=30", "sentences=12", "paths=3", "tokens=300", "corpus=40", "epochs=1", "beams=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert run(folder / "cell") == 0
    return found_run(folder / "cell")[0]


@pytest.fixture
def cell(trained, tmp_path) -> Path:
    """A run directory of this test's own."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def generated(path: Path) -> tuple[dict, list[dict]]:
    lines = (path / "generation.jsonl").read_text().splitlines()
    return json.loads((path / "generation.json").read_text()), [json.loads(x) for x in lines]


def test_what_a_run_writes_is_measured(cell, capsys):
    path, before = cell, (cell / "run.json").read_bytes()
    known = json.loads(before)
    assert generate.main([str(path), *FEW, "temperature=0.8"]) == 0
    out = capsys.readouterr().out
    found, lines = generated(path)
    assert "written greedily from the prior" in out and (path / "run.json").read_bytes() == before
    assert found["cell"] == known["cell"] and found["step"] == known["selected_step"]
    assert found["settings"]["temperature"] == 0.8 and found["notes"] == {}
    assert found["judges"]["sentences"] == 40 and found["judges"]["steps"] == 1

    of = {}
    for line in lines:
        of.setdefault((line["kind"], line["rule"]), []).append(line)
    sizes = {key: len(some) for key, some in of.items()}
    rules = ("greedy", "beam", "sampling")
    assert sizes == {
        **{("reconstruction", rule): 12 for rule in rules},
        **{("interpolation", "greedy"): 21, ("prior", "sampling"): 30, ("prior", "greedy"): 30},
    }
    for (kind, rule), some in of.items():
        about = found[kind] if kind == "interpolation" else found[kind][rule]
        assert about["rule"] == rule and about["temperature"] == some[0]["temperature"]
        assert about["temperature"] == (0.8 if rule == "sampling" else None)
        assert about["beams"] == (2 if rule == "beam" else None)
        if kind != "interpolation":
            texts = [line["text"] for line in some]
            assert about["distinct"] == len({*texts}) and about["sentences"] == len(texts)
            assert about["commonest"] == max(map(texts.count, texts)) / len(texts)
            assert about["words"] == pytest.approx(np.mean([len(x.split()) for x in texts]))
    for rule in rules:
        texts, meant = zip(
            *((x["text"], x["source"]) for x in of["reconstruction", rule]), strict=True
        )
        row, scorer = found["reconstruction"][rule], BLEU(tokenize="none", force=True)
        for name, aims in (("bleu", meant), ("bleu_other", meant[1:] + meant[:1])):
            assert row[name] == pytest.approx(scorer.corpus_score(texts, [aims]).score)
        pairs = [(a.split(), b.split()) for a, b in zip(texts, meant, strict=True)]
        assert row["exact"] == np.mean([a == b for a, b in pairs])
        assert row["edits"] == sum(metrics.edits(a, b) for a, b in pairs) / (12 * 16)
    paths = [[x["text"] for x in of["interpolation", "greedy"][i : i + 7]] for i in (0, 7, 14)]
    assert found["interpolation"]["distinct"] == np.mean([len({*texts}) for texts in paths])
    assert not {*of["prior", "sampling"][0]["text"].split()} & {"<pad>", "<s>", "</s>"}
    assert of["prior", "sampling"][0]["text"] not in json.dumps(found)

    assert generate.main([str(path), *FEW, "temperature=0.8"]) == 0
    again, same = generated(path)
    assert same == lines
    for record in (found, again):
        record["judges"].pop("seconds")
    assert again == found
    assert generate.main([str(path), *FEW, "temperature=0.8", "seed=1"]) == 0
    assert generated(path)[1] != lines


class Telling(judge.Judge):
    """Tells which it is, and of a text how many sentences it has."""

    def perplexity(self, split):
        return self.step + len(split), 0.5


def test_who_reads_and_who_judges_what(cell, monkeypatch):
    """Forward: what was written, by the judge of real text; reverse: real text, by the other."""
    train, read = judge.train, []

    def told(split):
        return [split.ids(i).tolist() for i in range(len(split))]

    def telling(text, held_out, **about):
        read.append((told(text), told(held_out)))
        found = train(text, held_out, **about)
        return Telling(found.model, CPU, found.task, 1000 * len(read), 0.0)

    def sample(self, n, *, max_length, temperature):
        numbers = torch.arange(n) if temperature else torch.zeros(n, dtype=torch.long)
        return 4 + torch.stack([numbers // 20, numbers % 20], 1)

    monkeypatch.setattr(judge, "train", telling)
    monkeypatch.setattr(GaussianVAE, "sample", sample)
    assert generate.main([str(cell), *FEW, "samples=50"]) == 0
    found, lines = generated(cell)
    (real, held), sampled = read
    assert sampled == (
        [[4 + i // 20, 4 + i % 20] for i in range(40)],
        [[6, i] for i in range(4, 8)],
    )
    assert len(real) == 40 and len(held) == 4
    assert all(len(ids) == 16 and ids not in held for ids in real)
    prior = {rule: found["prior"][rule] for rule in ("sampling", "greedy")}
    assert prior["sampling"]["distinct"] == 50 and prior["greedy"]["distinct"] == 1
    for row in (*prior.values(), found["real"]):
        assert row["perplexity"] == 1050 and row["perplexity_se"] == 0.5
    assert found["reverse"] == {"perplexity": 2060, "real": 1060}
    assert sum(line["kind"] == "prior" for line in lines) == 100


@pytest.mark.parametrize(
    ("method", "null"),
    [
        ("lm", {"reconstruction": "no code", "interpolation": "not one code a sentence"}),
        ("temporal_delta_vae", {"interpolation": "not one code a sentence"}),
        ("zforcing", {"interpolation": "not one code a sentence"}),
    ],
)
def test_what_has_no_meaning_for_a_model_is_null_with_its_reason(method, null, tmp_path):
    assert run(tmp_path / "cell", f"method={method}", "budget.steps=5") == 0
    path, _ = found_run(tmp_path / "cell")
    assert generate.main([str(path), *FEW, "tokens=100000"]) == 0
    found, _ = generated(path)
    for place, reason in null.items():
        assert found[place] is None and reason in found["notes"][place]
    assert found["real"]["distinct_2"] is None
    assert "fewer than 100000" in found["notes"]["real/distinct_2"]
    if "reconstruction" not in null:
        assert set(found["reconstruction"]) == {"greedy", "beam", "sampling"}
        assert all(found["reconstruction"].values())


def test_a_placebo_is_held_to_the_sentence_it_should_have_read(tmp_path):
    assert run(tmp_path / "cell", "placebo=true", "budget.steps=5") == 0
    path, _ = found_run(tmp_path / "cell")
    assert generate.main([str(path), *FEW]) == 0
    samples = [x for x in generated(path)[1] if x["kind"] == "reconstruction"]
    test = {line["source"] for line in samples}
    assert len(test) == 12


def test_a_model_that_does_not_write_word_by_word_is_written_greedily(cell, monkeypatch):
    class Plain(GaussianVAE):
        rewriting = None  # type: ignore[assignment]

        def reconstruct(self, batch, *, max_length):
            return self.decode(self.encoded(batch)[0], max_length=max_length)

    monkeypatch.setattr("benchmark.task.GaussianVAE", Plain)
    assert generate.main([str(cell), *FEW]) == 0
    found, _ = generated(cell)
    assert found["reconstruction"]["greedy"] and found["reconstruction"]["beam"] is None
    assert "word by word" in found["notes"]["reconstruction/beam"]


def test_a_model_that_writes_no_words(cell, monkeypatch):
    def nothing(self, n, *, max_length, temperature=1.0):
        return torch.full((n, 1), EOS)

    monkeypatch.setattr(GaussianVAE, "sample", nothing)
    assert generate.main([str(cell), *FEW]) == 0
    found, _ = generated(cell)
    assert found["reverse"]["perplexity"] is None and found["prior"]["greedy"]["distinct"] == 1
    assert found["prior"]["sampling"]["perplexity"] is None
    assert {"reverse/perplexity", "prior/sampling/perplexity"} <= found["notes"].keys()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{}", "sample=4"], "did you mean 'samples'"),
        (["{}", "samples=1"], "samples must be at least 2, not 1"),
        (["{}", "temperature=0"], "temperature must be at least 0.01, not 0.0"),
        (["{}", "beams=x"], "beams must be an integer, not 'x'"),
        (["{}", "{}"], "name one run directory"),
        (["{}", "--greedy"], "name one run directory"),
        (["{}"], "is no run with a selected checkpoint"),
        (["{}/not/there"], "is no run with a selected checkpoint"),
    ],
)
def test_a_wrong_word_is_told(words, told, tmp_path, capsys):
    assert generate.main([word.format(tmp_path) for word in words]) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_written_to_is_refused_before_the_work(cell, capsys, monkeypatch):
    monkeypatch.setattr("benchmark.generation.measure.measure", None)
    with RunDirectory(cell).lease():
        assert generate.main([str(cell)]) == 1
    assert "is being written by another process" in capsys.readouterr().err

    def refused(dir):
        if Path(dir) == cell:
            raise PermissionError(13, "Permission denied")
        return TemporaryFile(dir=dir)

    monkeypatch.setattr("benchmark.compose.TemporaryFile", refused)
    assert generate.main([str(cell)]) == 1
    told = f"RUN_DIR={cell} cannot be written to (Permission denied)"
    assert told in capsys.readouterr().err
    assert not list(cell.glob("generation*"))


def test_a_full_disk_takes_no_table_back(cell, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(cell / "generation.json"))

    monkeypatch.setattr(RunDirectory, "save_json", full)
    assert generate.main([str(cell), *FEW]) == 1
    told = capsys.readouterr()
    assert "written greedily from the prior" in told.out
    assert told.err.strip().endswith("generation.json cannot be written: No space left on device.")


def test_help_needs_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('benchmark.generate', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'sacrebleu' not in sys.modules"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    defaults = vars(Settings())
    for name, value in defaults.items():
        if isinstance(value, int | float):
            assert f"{name}={value:g}" in told.stdout
