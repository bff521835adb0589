"""What may be configured, of which type; imports no torch.

One cell's configuration is these classes filled from configs/, but for `method`, whose schema is
the method's own dataclass. A default that stands in a class here is neutral: a field that holds it
is no part of a cell's identity, so that a field added later changes no identity.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


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

    embedding: int = MISSING
    hidden: int = MISSING
    latent: int = MISSING
    dropout: float = MISSING
    init: float = 0.01  # bound of the uniform initialisation (He et al. 2019)
    init_embedding: float = 0.1  # the embeddings' bound


@dataclass
class Dataset:
    """One of: a generator with a known truth, a hub data set, a local folder (`path`)."""

    name: str = MISSING
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
    splits: dict[str, str] = field(default_factory=dict)  # train/valid/test -> the hub's split
    sentences: dict[str, int] = field(default_factory=dict)  # train/valid/test -> how many to draw
    distinct: bool = False  # a sentence that has been met, in any split, is passed over
    split_seed: int = 0
    # what becomes of it
    tokens: Tokens = Tokens.words
    max_tokens: int | None = None
    overlong: Overlong = Overlong.drop
    vocabulary: int | None = None  # most frequent words kept, specials not counted
    min_count: int = 1
    # what training takes from it
    sizes: Sizes = field(default_factory=Sizes)
    batch_size: int = MISSING
    learning_rate: float = MISSING  # Adam's
    nll_sentences: int | None = 500  # of test, measured by importance sampling; null: all
    licence: str | None = None  # where text may not be passed on, why


@dataclass
class Model:
    """The sentence VAE of He et al. 2019; sizes are the data set's unless overridden."""

    embedding: int = MISSING
    hidden: int = MISSING
    latent: int = MISSING
    dropout: float = MISSING
    init: float = 0.01
    init_embedding: float = 0.1


@dataclass
class Halving:
    """He et al.'s schedule: halve the rate and reload the best checkpoint when the validation
    loss has not improved `patience` times, from epoch `first_epoch` (counted from 0) on."""

    patience: int = 2
    first_epoch: int = 15
    most: int = 5  # decays, after which training ends


@dataclass
class Evaluation:
    """How much is spent on measuring; each pair is samples (or candidates) x sentences."""

    elbo_samples: int = 10
    nll_samples: int = 500
    nll_sentences: int | None = 500  # None: the whole split
    read_candidates: int = 64
    read_sentences: int = 500
    # validation, at each epoch's end
    valid_nll_samples: int = 16
    valid_nll_sentences: int = 500
    valid_read_candidates: int = 16
    valid_read_sentences: int = 100
    every: int | None = None  # extra records every so many steps, which nothing reads


@dataclass
class Budget:
    """How long and how a cell is trained, and how closely it is measured."""

    name: str = MISSING
    epochs: float | None = None  # of outer steps
    steps: int | None = None  # in place of epochs
    batch_size: int = MISSING
    optimiser: Optimiser = MISSING
    learning_rate: float = MISSING
    clip: float = MISSING
    halving: Halving | None = None
    select: str = MISSING  # nll or neg_elbo
    max_embedding: int | None = None
    max_hidden: int | None = None
    evaluation: Evaluation = field(default_factory=Evaluation)


@dataclass
class Config:
    """One cell."""

    method: Any = MISSING
    dataset: Dataset = field(default_factory=Dataset)
    model: Model = field(default_factory=Model)
    budget: Budget = field(default_factory=Budget)
    batching: Batching = Batching.exact
    precision: Precision = Precision.fp32
    seed: int = 0
    # no part of a result
    device: str = "auto"
    threads: int | None = None  # torch threads on CPU
    results_dir: str = "results"
    data_dir: str = "data"
    stop_after: float | None = None  # epochs; the cell keeps its budget's schedules and ends there
