"""What a run's model writes, and what can be said of it.

Sentences from codes of the prior, sampled and greedy: a decoder that ignores its code writes one
sentence greedily, whatever the code. Test sentences written anew from their posteriors' means. The
straight lines between the codes of pairs of them. And two language models that have read as many
sentences: one, of real text, judges what was written (forward perplexity); the other, of samples
from the prior, judges real test text (reverse perplexity).

generation.json, where null has its reason in `notes`, by its place:

    settings        the command's words; max_length, tokens after which a sentence is cut off
    real, prior     a row each of real test text, and by rule of what was written: rule,
                    temperature, beams; sentences, distinct ones, the share of the commonest, words
                    a sentence, the share that was cut off; self_bleu, distinct_1 to _3, perplexity,
                    perplexity_se, over sentences
    reconstruction  by rule: bleu, bleu_other (chance: against what another text meant), exact (the
                    share), edits (a word of what was meant), and counts as above
    interpolation   distinct, of as many `steps` on a path, the mean
    reverse         perplexity, and that of the judge of real text
    judges          their sizes, what they read, what they cost
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.api import LatentModel
from benchmark.cell import Restored
from benchmark.data.corpus import Split
from benchmark.evaluate import subset
from benchmark.generation import judge, metrics
from benchmark.generation.judge import Judge
from benchmark.generation.settings import Settings
from benchmark.generation.texts import GREEDY, Author, Rule, Text
from benchmark.models import Rewriter

log = logging.getLogger(__name__)

SCHEMA = 1
ONE_CODE = ("global", "implicit")  # kinds of models with one code a sentence

Found = dict[str, Any]


def measure(run: Restored, settings: Settings) -> tuple[Found, list[Found]]:
    """What goes into generation.json, and the lines of generation.jsonl, the texts themselves."""
    with tempfile.TemporaryDirectory() as folder:
        return _Look(run, settings, Path(folder)).measure()


class _Look:
    """One measurement under way.

    notes: why something is null, by its place in what is found; lines: the texts.
    """

    def __init__(self, run: Restored, settings: Settings, folder: Path):
        self.run, self.settings, self.folder = run, settings, folder
        longest = 2 * int(run.corpus.test.lengths.max())
        self.author = Author(
            *(run.model, run.device, len(run.corpus.vocabulary), longest, settings.seed)
        )
        self.sampling = Rule("sampling", temperature=settings.temperature)
        self.notes: dict[str, str] = {}
        self.lines: list[Found] = []

    def measure(self) -> tuple[Found, list[Found]]:
        found = {
            "schema": SCHEMA,
            "cell": self.run.record["cell"],
            "step": self.run.record["selected_step"],
            "latent": self.run.model.latent,
            "settings": asdict(self.settings) | {"max_length": self.author.max_length},
            "signatures": metrics.signatures(self.settings.samples - 1),
            "reconstruction": self.reconstruction(),
            "interpolation": self.interpolation(),
            **self.prior(),
        }
        return found | {"notes": self.notes}, self.lines

    def reconstruction(self) -> Found | None:
        """By each rule, how near the texts come to what was meant."""
        model, split = self.run.model, self.run.split("test")
        if model.latent == "none":
            return self.null("reconstruction", "the model has no code to write a sentence from")
        log.info("reconstructing test sentences")
        rows = subset(split, "reconstruction", self.settings.sentences)
        meant = [self.words(self.run.corpus.test.ids(row)) for row in rows]
        found: Found = {}
        for by in (GREEDY, Rule("beam", beams=self.settings.beams), self.sampling):
            if by != GREEDY and not isinstance(model, Rewriter):
                why = "the model has no `rewriting`, which writes word by word"
                found[by.rule] = self.null(f"reconstruction/{by.rule}", why)
                continue
            texts = self.author.reconstructions(split, rows, by)
            self.keep("reconstruction", by, texts, map(" ".join, meant))
            found[by.rule] = asdict(by) | counts(texts) | self.nearness(texts, meant)
        return found

    def nearness(self, texts: list[Text], meant: list[list[str]]) -> Found:
        """Of each text to what was meant by it; `bleu_other`, to what was meant by another one, is
        how near chance comes."""
        written = [self.words(one.ids) for one in texts]
        return {
            "bleu": metrics.corpus_bleu(written, meant),
            "bleu_other": metrics.corpus_bleu(written, meant[1:] + meant[:1]),
            "exact": float(np.mean([a == b for a, b in zip(written, meant, strict=True)])),
            # a word of what was meant
            "edits": sum(map(metrics.edits, written, meant)) / sum(map(len, meant)),
        }

    def interpolation(self) -> Found | None:
        """How many different sentences stand on a line."""
        model, split, steps = self.run.model, self.run.split("test"), self.settings.steps
        if model.latent not in ONE_CODE:
            return self.null("interpolation", "the model has not one code a sentence")
        if type(model).decode is LatentModel.decode:
            return self.null("interpolation", "the model decodes no codes handed in")
        rows = subset(split, "interpolation", 2 * min(self.settings.paths, len(split) // 2))
        if not len(rows):
            return self.null("interpolation", "there are no two test sentences")
        paths = self.author.paths(split, rows, steps)
        for path, pair in zip(paths, rows.reshape(-1, 2), strict=True):
            ends = [" ".join(self.words(self.run.corpus.test.ids(row))) for row in pair]
            self.keep("interpolation", GREEDY, path, [ends] * steps)
        different = float(np.mean([len({tuple(one.ids) for one in path}) for path in paths]))
        about = {"line": "straight", "ends": "drawn from the posteriors", "paths": len(paths)}
        return asdict(GREEDY) | about | {"steps": steps, "distinct": different}

    def prior(self) -> Found:
        """What is written from the prior, real text beside it, and what the judges say."""
        settings, corpus = self.settings, self.run.corpus
        size = min(settings.corpus, len(corpus.train))  # as much for one to read as for the other
        held = min(max(1, size // 10), len(corpus.valid))
        log.info("writing sentences from the prior")
        drawn = self.author.prior(max(settings.samples, size + held), self.sampling)
        greedy = self.author.prior(settings.samples, GREEDY)
        sampled, read, kept = drawn[: settings.samples], drawn[:size], drawn[size : size + held]
        self.keep("prior", self.sampling, sampled)
        self.keep("prior", GREEDY, greedy)

        known = self.judge("real", real(corpus.train, size), real(corpus.valid, held))
        own = None
        if any(one.ids for one in read) and any(one.ids for one in kept):
            own = self.judge("sampled", read, kept)
        else:
            self.null("reverse/perplexity", "the samples have no words to learn from")
        both = {"real": known, "sampled": own}
        return {
            "prior": {
                "sampling": asdict(self.sampling) | self.row("prior/sampling", sampled, known),
                "greedy": asdict(GREEDY) | self.row("prior/greedy", greedy, known),
            },
            "real": self.row("real", real(corpus.test, settings.samples), known),
            "reverse": {
                "perplexity": own and self.perplexity("reverse/perplexity", own, corpus.test)[0],
                "real": self.perplexity("reverse/real", known, corpus.test)[0],
            },
            "judges": {
                "sentences": size,
                "held_out": held,
                "embedding": known.task.embedding,
                "hidden": known.task.hidden,
                "steps": known.task.steps,
                "selected_step": {name: one and one.step for name, one in both.items()},
                "seconds": {name: one and one.seconds for name, one in both.items()},
            },
        }

    def judge(self, of: str, text: list[Text], held_out: list[Text]) -> Judge:
        log.info("training a language model on %d %s sentences", len(text), of)
        return judge.train(
            *(self.split(f"{of}-text", text), self.split(f"{of}-held-out", held_out)),
            dataset=self.run.config.dataset,
            vocabulary=self.author.vocabulary,
            epochs=self.settings.epochs,
            seed=self.settings.seed,
            device=self.run.device,
            folder=self.folder / of,
        )

    def row(self, place: str, texts: list[Text], known: Judge) -> Found:
        """How diverse texts are, and how probable."""
        words, tokens = [self.words(one.ids) for one in texts], self.settings.tokens
        found = counts(texts) | {"self_bleu": metrics.self_bleu(words)}
        if found["self_bleu"] is None:
            self.null(f"{place}/self_bleu", "there is one sentence alone")
        for n in (1, 2, 3):
            found[f"distinct_{n}"] = metrics.distinct(words, n, tokens)
            if found[f"distinct_{n}"] is None:
                self.null(f"{place}/distinct_{n}", f"there are fewer than {tokens} words")
        if any(words):
            split = self.split(place.replace("/", "-"), texts)
            judged = self.perplexity(f"{place}/perplexity", known, split)
        else:
            judged = self.null(f"{place}/perplexity", "there are no words"), None
        return found | dict(zip(("perplexity", "perplexity_se"), judged, strict=True))

    def perplexity(self, place: str, of: Judge, split: Split) -> tuple[float | None, float | None]:
        """And its standard error."""
        found = of.perplexity(split)
        if found[0] is None:
            self.null(place, "it is beyond any float")
        return found

    def split(self, name: str, texts: list[Text]) -> Split:
        return judge.written(self.folder, name, [one.ids for one in texts])

    def words(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [self.run.corpus.vocabulary[i] for i in ids]

    def keep(self, kind: str, by: Rule, texts: list[Text], sources: Iterable | None = None) -> None:
        """For generation.jsonl; sources: what each text was written from."""
        for one, source in zip(texts, sources or [None] * len(texts), strict=True):
            text = " ".join(self.words(one.ids))
            self.lines.append({"kind": kind, **asdict(by), "source": source, "text": text})

    def null(self, place: str, reason: str) -> None:
        """Say why something is."""
        self.notes[place] = reason


def counts(texts: list[Text]) -> Found:
    """Of sentences, and of different ones."""
    each = Counter(tuple(one.ids) for one in texts)
    return {
        "sentences": len(texts),
        "distinct": len(each),
        "commonest": max(each.values()) / len(texts),  # share of the one that is met most often
        "words": float(np.mean([len(one.ids) for one in texts])),
        "cut_off": float(np.mean([not one.ended for one in texts])),  # share without `</s>`
    }


def real(split: Split, most: int) -> list[Text]:
    """At most so many sentences of a split, the same for all runs."""
    return [Text(split.ids(row).tolist()) for row in subset(split, "generation", most)]
