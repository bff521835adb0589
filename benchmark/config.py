"""What may be configured, of which type; imports no torch.

One cell's configuration is these classes filled from configs/, but for `method`, whose schema is
the method's own dataclass. A default that stands in a class here is neutral: a field that holds it
is no part of a cell's identity, so that a field added later changes no identity. A field's range
stands beside it, as the metadata `must`; null, where the type allows it, is out of no range.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from benchmark.record import NAME


@cache
def schema(cls: type) -> DictConfig:
    """The structured schema of a dataclass; to be merged into, which copies it."""
    return OmegaConf.structured(cls)


@dataclass(frozen=True)
class Must:
    """What a value must do, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def __str__(self) -> str:
        return self.words


def must(words: str, holds: Callable[[Any], bool], default: Any = MISSING) -> Any:
    """A field with a range."""
    return field(default=default, metadata={"must": Must(words, holds)})


def positive(default: Any = MISSING) -> Any:
    return must("be above 0", lambda value: value > 0, default=default)


def at_least(least: int, default: Any = MISSING) -> Any:
    return must(f"be at least {least}", lambda value: value >= least, default=default)


def per_split(words: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """The metadata of a field that has values by train, valid and test."""

    def holds(value: Any) -> bool:
        return all(key in ("train", "valid", "test") and fits(value[key]) for key in value)

    return {"must": Must(f"have {words} by train, valid and test", holds)}


def share(default: Any = MISSING) -> Any:
    return must("lie in [0, 1)", lambda value: 0 <= value < 1, default=default)


class Tokens(Enum):
    """How raw text becomes tokens; `split` only splits at blanks."""

    words = "words"
    split = "split"


class Overlong(Enum):
    """What becomes of a text longer than `max_tokens`."""

    drop = "drop"
    cut = "cut"


class Batching(Enum):
    """exact: all sentences of a batch have one length, as in the papers; bucketed: like lengths."""

    exact = "exact"
    bucketed = "bucketed"


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"


class Optimiser(Enum):
    adam = "adam"
    sgd = "sgd"


@dataclass
class Sizes:
    """The data set's part in the model's sizes, as its papers have them."""

    embedding: int = positive()
    hidden: int = positive()
    latent: int = positive()
    dropout: float = share()
    init: float = positive(0.01)  # bound of the uniform initialisation (He et al. 2019)
    init_embedding: float = positive(0.1)  # the embeddings' bound


@dataclass
class Dataset:
    """One of: a generator with a known truth, a hub data set, a local folder (`path`)."""

    name: str = must(
        "be letters, digits, '_', '-', '+' and '.', the first no '.'",
        lambda value: NAME.fullmatch(value) is not None,
    )
    # where the text comes from; `path` (a folder, or a copy of the hub repository) is no content
    path: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    revision: str | None = None
    generator: dict[str, Any] | None = None
    # what is read of it
    columns: list[str] = field(default_factory=list)  # text columns
    join: str | None = " "  # what stands between them; null: each column is a sentence of its own
    label: str | None = None  # label column
    splits: dict[str, str] = field(
        default_factory=dict, metadata=per_split("names of the source's splits", bool)
    )
    sentences: dict[str, int] = field(  # how many to draw
        default_factory=dict, metadata=per_split("counts above 0", lambda n: n > 0)
    )
    distinct: bool = False  # a sentence that has been met, in any split, is passed over
    split_seed: int = at_least(0, 0)
    # what becomes of it
    tokens: Tokens = Tokens.words
    max_tokens: int | None = positive(None)
    overlong: Overlong = Overlong.drop
    vocabulary: int | None = positive(None)  # most frequent words kept, specials not counted
    min_count: int = positive(1)
    # what training takes from it
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = positive()
    learning_rate: float = positive()  # Adam's
    nll_sentences: int | None = positive(500)  # of test, measured by importance sampling; null: all
    licence: str | None = None  # where text may not be passed on, why


@dataclass
class Model:
    """The sentence VAE of He et al. 2019; sizes are the data set's unless overridden."""

    embedding: int = positive()
    hidden: int = positive()
    latent: int = positive()
    dropout: float = share()
    init: float = positive(0.01)
    init_embedding: float = positive(0.1)
    memory: int | None = positive(None)  # words that the decoder sees; null: all


@dataclass
class Halving:
    """He et al.'s schedule: halve the rate and reload the best checkpoint when the validation
    loss has not improved `patience` times, from epoch `first_epoch` (counted from 0) on."""

    patience: int = positive(2)
    first_epoch: int = at_least(0, 15)
    most: int = positive(5)  # decays, after which training ends


@dataclass
class Evaluation:
    """How much is spent on measuring; each pair is samples (or candidates) x sentences."""

    elbo_samples: int = positive(10)
    nll_samples: int | str = must(  # auto: as many of 32 to 500 as each sentence needs
        "be a count above 0, or auto",
        lambda value: value == "auto" or (isinstance(value, int) and value > 0),
        default=500,
    )
    nll_sentences: int | None = positive(500)  # None: the whole split
    read_candidates: int = at_least(2, 64)
    read_sentences: int = positive(500)
    # validation, at each epoch's end
    valid_gain_sentences: int = positive(500)
    valid_nll_samples: int = positive(16)
    valid_nll_sentences: int = positive(500)
    valid_read_candidates: int = at_least(2, 16)
    valid_read_sentences: int = positive(100)
    every: int | None = positive(None)  # extra records every so many steps, which nothing reads


@dataclass
class Budget:
    """How long and how a cell is trained, and how closely it is measured."""

    name: str = MISSING
    epochs: float | None = positive(None)  # of outer steps
    steps: int | None = positive(None)  # in place of epochs
    batch_size: int = positive()
    optimiser: Optimiser = MISSING
    learning_rate: float = positive()
    clip: float = positive()
    halving: Halving | None = None
    select: str = must("be nll or neg_elbo", lambda value: value in ("nll", "neg_elbo"))
    max_embedding: int | None = positive(None)
    max_hidden: int | None = positive(None)
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class Diagnosis:
    """How much is spent on a diagnosis, and from where a quantity counts."""

    sentences: int = at_least(2, 500)
    candidates: int = at_least(2, 32)
    """Codes that a sentence's own is told from."""
    refined: int = at_least(2, 100)
    """Sentences whose codes are refined, to see whether the encoder lags."""
    draws: int = at_least(2, 4)
    """Of each nuisance, by which a unit's reliability is told."""
    blotted: float = share(0.15)
    """Share of the words that token noise blots out."""
    signal: float = positive(0.01)
    """Variance of the posterior mean over sentences: Burda et al.'s for an active unit."""
    information: float = positive(0.05)
    """Nats of a unit's bound on information, or of its mismatch with the prior; of its information
    itself the half."""
    read: float = positive(0.05)
    """Nats a sentence that the decoder loses with another sentence's unit."""
    reliability: float = share(0.5)
    delta: float = share(0.01)
    """Share of the sentences that may tell more of a unit that has collapsed."""


@dataclass
class Config:
    """One cell."""

    method: Any = MISSING
    dataset: Dataset = field(default_factory=Dataset)
    model: Model = field(default_factory=Model)
    budget: Budget = field(default_factory=Budget)
    batching: Batching = Batching.exact
    precision: Precision = Precision.fp32
    placebo: bool = False  # the inference network reads another sentence: every method's control
    seed: int = must("lie in [0, 2^63)", lambda value: 0 <= value < 2**63, default=0)
    # no part of a result
    device: str = "auto"
    threads: int | None = positive(None)  # torch threads on CPU
    save_every: float = at_least(0, 300.0)  # s between checkpoints within an epoch
    results_dir: str = "results"
    data_dir: str = "data"
    stop_after: float | None = positive(
        None
    )  # epochs; the cell keeps its budget's schedules and ends there
