"""What can be told of texts alone: lists of sentences, a sentence a list of words; no model."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np
from sacrebleu.metrics.bleu import BLEU

Words = Sequence[str]
ORDER = 4  # BLEU's longest n-grams

# The texts are tokens already. A single sentence may have no n-gram of some order in common, or be
# shorter than it: smoothing by "exp" as in mteval-v13a, and only the orders that it has.
CORPUS = BLEU(tokenize="none", force=True)
SENTENCE = BLEU(tokenize="none", force=True, effective_order=True)


def corpus_bleu(written: Sequence[Words], meant: Sequence[Words]) -> float:
    """0 to 100, sacrebleu's of all sentences, each against the one that was meant."""
    return CORPUS.corpus_score(_joined(written), [_joined(meant)]).score


def signatures(references: int) -> dict[str, str]:
    """How sacrebleu scores, in its own words: a reconstruction, and a text against so many."""
    found = {}
    for name, scorer, n in (("bleu", CORPUS, 1), ("self_bleu", SENTENCE, references)):
        scorer.corpus_score(["a"], [["a"]] * n)  # it tells once it has counted the references
        found[name] = str(scorer.get_signature())
    return found


def self_bleu(texts: Sequence[Words]) -> float | None:
    """0 to 100, the mean over sentences of sacrebleu's BLEU against all the others (Zhu et al.,
    SIGIR 2018); higher is less diverse, and so are more sentences. None of a single one.

    Each n-gram's two highest counts say what it is in all but one sentence: linear in the text.
    """
    if len(texts) < 2:
        return None
    grams = [_grams(words) for words in texts]
    most: dict[Words, tuple[int, int, int]] = {}  # the highest count, whose, and the next
    for i, counts in enumerate(grams):
        for gram, count in counts.items():
            highest, whose, second = most.get(gram, (0, -1, 0))
            if count > highest:
                most[gram] = count, i, highest
            elif count > second:
                most[gram] = highest, whose, count
    lengths = Counter(map(len, texts))
    scores = []
    for i, (words, counts) in enumerate(zip(texts, grams, strict=True)):
        correct, total = [0] * ORDER, [0] * ORDER
        for gram, count in counts.items():
            highest, whose, second = most[gram]
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, second if whose == i else highest)
        lengths[len(words)] -= 1
        closest = min(+lengths, key=lambda n: (abs(n - len(words)), n))
        lengths[len(words)] += 1
        scores.append(
            BLEU.compute_bleu(
                *(correct, total, len(words), closest),
                smooth_method=SENTENCE.smooth_method,
                effective_order=SENTENCE.effective_order,
            ).score
        )
    return float(np.mean(scores))


def distinct(texts: Sequence[Words], n: int, tokens: int) -> float | None:
    """Different n-grams over all (Li et al., NAACL 2016), of the first so many tokens: the share
    falls with their number. None where there are fewer."""
    if sum(map(len, texts)) < tokens:
        return None
    found, left = Counter[Words](), tokens
    for words in texts:
        found.update(_grams(words[:left], n, n))
        left -= min(left, len(words))
    return len(found) / found.total() if found else None


def edits(written: Words, meant: Words) -> int:
    """Words to insert, delete or replace to make one of the other (Levenshtein 1966)."""
    places, ids = np.arange(len(meant) + 1), {word: i for i, word in enumerate({*written, *meant})}
    other = np.array([ids[word] for word in meant], dtype=int)
    row = places.copy()
    for word in written:
        new = row + 1
        new[1:] = np.minimum(new[1:], row[:-1] + (other != ids[word]))
        row = np.minimum.accumulate(new - places) + places  # insertions, as many as it takes
    return int(row[-1])


def _grams(words: Words, least: int = 1, most: int = ORDER) -> Counter[Words]:
    return Counter(
        gram
        for n in range(least, most + 1)
        for gram in zip(*(islice(words, i, None) for i in range(n)), strict=False)
    )


def _joined(texts: Sequence[Words]) -> list[str]:
    return [" ".join(words) for words in texts]
