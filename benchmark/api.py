"""What a method imports: the types that everything meets in, and the registry.

A remedy for posterior collapse edits one or more of four slots, (model, objective, corruption of
the batch, training step), and nothing else; a `Recipe` holds the four. The harness sees
`LatentModel`s and their `Draw`s, never a method.

Shapes: B sentences, T predicted tokens, S tokens read, K samples, U latent units. Costs are in
nats per sentence, summed over tokens and units.
"""

import bisect
import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmark.noise import Noise

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")


Encoded = tuple[Tensor | None, ...]
"""What an inference network says of B sentences, [B, ...] each."""


@dataclass(frozen=True)
class Batch:
    """Some sentences, in the three roles a sentence plays.

    targets: [B, T] ids to predict, `</s>` included, PAD behind it; never edited by a method.
    inputs: [B, T] ids fed to the teacher-forced decoder, `<s>` first; corrupted by word dropout.
    source: [B, S] ids the inference network reads, `<s>` and `</s>` included.
    target_lengths, source_lengths: [B] int64.
    noise: None in training; in evaluation what makes every draw reproducible.
    encoded: what the model's `encode` said of these sentences, where that is known already.
    """

    targets: Tensor
    inputs: Tensor
    source: Tensor
    target_lengths: Tensor
    source_lengths: Tensor
    noise: Noise | None = None
    encoded: Encoded | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def mask(self) -> Tensor:
        """[B, T] bool, True at real tokens."""
        return self.targets != PAD

    def but(self, **changes: Any) -> "Batch":
        """This batch with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """This batch on `device`."""
        return self.but(
            **{
                f.name: value.to(device, non_blocking=non_blocking)
                for f in dataclasses.fields(self)
                if isinstance(value := getattr(self, f.name), Tensor)
            }
        )

    def pin(self) -> "Batch":
        """This batch in pinned memory, from where a copy to a GPU need not block."""
        return self.but(
            **{
                f.name: value.pin_memory()
                for f in dataclasses.fields(self)
                if isinstance(value := getattr(self, f.name), Tensor)
            }
        )

    def normal(self, k: int, *shape: int) -> Tensor:
        """Standard normal noise [B, k, *shape] for these sentences; all of a model's draws of
        latents take theirs from here."""
        if self.noise is not None:
            return self.noise.normal(k, *shape)
        return torch.randn(len(self), k, *shape, device=self.targets.device)


@dataclass
class Draw:
    """K codes drawn for each of B sentences, and their scores.

    z: [B, K, ...] the codes that were scored; None only for a model without latents.
    log_px: [B, K] log p(x|z); log_pz: [B, K] log p(z), NaN where the prior is implicit;
    log_qz: [B, K] log q(z|x).
    kl: [B, U] nats per unit, analytic given what was sampled, averaged over the K samples where it
    depends on them.
    aux: extra costs by name, [B] each; log_pz_alt: another prior's density by name, [B, K].
    """

    z: Tensor | None
    log_px: Tensor
    log_pz: Tensor
    log_qz: Tensor
    kl: Tensor
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    log_pz_alt: Mapping[str, Tensor] = field(default_factory=dict)


class LatentModel(nn.Module):
    """p(x, z) with an inference network q(z|x): all that the harness knows of a model.

    latent: "none", "global" (one code a sentence), "sequence" (one a step) or "implicit" (codes
    without densities). units: number of latent dimensions (global) or channels (sequence).
    own_rates: whether each unit has a KL of its own, rather than an equal share of the whole.
    The inference network learns of the sentence through `batch.source` alone.
    """

    latent: str = "global"
    units: int = 0
    own_rates: bool = True

    @abstractmethod
    def draw(self, batch: Batch, k: int = 1) -> Draw:
        """K codes from the posterior of each sentence, refined if the model refines, and scored."""

    @abstractmethod
    def log_px(self, batch: Batch, z: Tensor | None) -> Tensor:
        """[B, K], the decoder's score of each sentence under codes z [B, K, ...] handed in;
        differentiable in z."""

    def prior_codes(self, batch: Batch, k: int = 1) -> Tensor | None:
        """[B, K, ...], codes of the prior, with as many steps as the sentences have, after their
        own history where it follows that. None where there is no such."""
        return None

    def predictions(self, batch: Batch, z: Tensor | None) -> Tensor | None:
        """[B, K, T, V], log p of every word there is at every step, given the words before it and
        codes z [B, K, ...]; the targets' own sum to `log_px`. None where a model has no such."""
        return None

    def encode(self, batch: Batch) -> Encoded | None:
        """[B, ...] each, all that `draw`, `posterior` and `log_q` learn of `source`. A model that
        has it asks `encoded` for it, and the evaluator computes it once a sentence."""
        return None

    def encoded(self, batch: Batch) -> Any:
        """`encode`, or what it said before."""
        found = self.encode(batch) if batch.encoded is None else batch.encoded
        assert found is not None, f"{type(self).__name__} has no encode"
        return found

    def posterior(
        self, batch: Batch
    ) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor] | None:
        """Mean and variance of q(z|x), [B, U] each, or [B, T, U] with a mask [B, T]; relative to
        the model's prior (whitened by it where it is learned). None where they do not exist."""
        return None

    def log_q(self, z: Tensor, batch: Batch) -> Tensor | None:
        """[N, B], the density of every code z [N, ...] under the posterior of every sentence;
        None where that has no meaning (`why_no_log_q` says why)."""
        return None

    why_no_log_q: str = "the model has no latent variable"

    @abstractmethod
    def sample(self, n: int, *, max_length: int, temperature: float = 1.0) -> Tensor:
        """[n, <= max_length] token ids from the prior, `</s>` included, PAD behind it; at
        temperature 0 the likeliest word at each step."""

    @abstractmethod
    def reconstruct(self, batch: Batch, *, max_length: int) -> Tensor:
        """[B, <= max_length] token ids, greedily decoded from the posterior mean."""

    def decode(self, z: Tensor, *, max_length: int, temperature: float = 0.0) -> Tensor:
        """[N, <= max_length] token ids decoded from codes [N, ...]; greedily at temperature 0."""
        raise NotImplementedError(f"{type(self).__name__} decodes no codes handed in")

    @abstractmethod
    def parts(self) -> dict[str, nn.Module]:
        """The modules that may be stepped apart, by name; together they hold every parameter."""


Objective = Callable[[Draw, Batch, int], Tensor]
Corrupt = Callable[[Batch, int], Batch]
Step = Callable[["Run"], dict[str, Tensor]]
SLOTS = ("model", "objective", "corrupt", "step")
"""Of a `Recipe`, those that a method may fill."""


@dataclass(frozen=True)
class Recipe:
    """A method, as four values. A slot left None is the default: the configured VAE, the negative
    ELBO, the batch as it is, one joint step.

    select: what picks the checkpoint, lowest on validation first: None for the budget's rule ("nll"
    or "neg_elbo"), else "nll", "neg_elbo", "rec", "last" or a number b, which is Rec + b KL.
    select_after: share of the steps before which no checkpoint is eligible, such as the end of an
    annealing ramp; of the last stage's where there are several (`Phases`).
    """

    model: LatentModel | None = None
    objective: Objective | None = None
    corrupt: Corrupt | None = None
    step: Step | None = None
    select: str | float | None = None
    select_after: float = 0.0

    def but(self, **slots: Any) -> "Recipe":
        """This recipe with some slots replaced."""
        return dataclasses.replace(self, **slots)


class Task(Protocol):
    """What a method may know of the cell it will be trained in. What it makes are the configured
    model's own classes, of `benchmark.models`."""

    vocab_size: int
    mean_length: float  # predicted tokens per training sentence, </s> included
    max_length: int  # the same, of the longest
    n_train: int
    batch_size: int
    steps_per_epoch: int
    steps: int  # outer steps of the whole budget
    latent: int  # dimensions of z as configured

    def encoder(self, **changes: Any) -> Any:
        """The configured encoder, with some of its arguments changed."""
        ...

    def decoder(self, **changes: Any) -> Any:
        """The configured decoder, with some of its arguments changed."""
        ...

    def model(self, **changes: Any) -> Any:
        """The configured VAE, with some sizes changed."""
        ...


class Run(Protocol):
    """A training run as a step sees it. A step makes exactly one update of the decoder."""

    t: int  # outer steps done
    steps: int  # outer steps of the whole budget
    model: LatentModel
    history: list[dict[str, float | None]]  # validation results, oldest first

    def next(self) -> Batch:
        """This step's batch, corrupted; the same object all through the step."""
        ...

    def another(self) -> Batch:
        """A uniformly drawn training batch from a stream of its own; counted, but not part of
        the epoch."""
        ...

    def loss(self, batch: Batch) -> Tensor:
        """The objective on a fresh draw for `batch`."""
        ...

    def descend(self, loss: Tensor, *parts: str, clip: str = "all") -> None:
        """One backward pass, then one update of the named parts (none named: all). The gradient is
        clipped by the joint norm of "all" parts (He et al. 2019) or of what is "moved"."""
        ...

    def reset(self, *parts: str) -> None:
        """Re-initialise the named parts' weights and forget their optimisers' state."""
        ...

    def fresh(self, metric: str) -> float | None:
        """The newest value of a validation metric ("valid/mi_batch32") if it was evaluated since
        last asked, else None; never evaluates."""
        ...


def joint_step(run: Run) -> dict[str, Tensor]:
    """The default step: one gradient step of all parts together."""
    loss = run.loss(run.next())
    run.descend(loss)
    return {"loss": loss.detach()}


@dataclass(frozen=True)
class Phase:
    """A stage of training, such as that of an auto-encoder whose encoder a VAE is to start from.

    share: of the budget's steps; step and select: as a `Recipe`'s, None being the recipe's own
    selection; reset: the parts that are re-initialised as the stage begins.
    """

    share: float
    step: Step = joint_step
    select: str | float | None = None
    reset: tuple[str, ...] = ()


class Phases(nn.Module):
    """A `Step` that is another in each stage of training.

    Where a stage ends, its selected checkpoint is put back, the selection, the optimisers and the
    learning rate start anew, and the next stage's `reset` is done. Where the learning rate's
    schedule ends a stage before its time, the steps that are left of it are passed over. A stage's
    objective and corruption know it by t.
    """

    def __init__(self, steps: int, *phases: Phase):
        super().__init__()
        shares = [phase.share for phase in phases]
        if min(shares) <= 0 or not math.isclose(sum(shares), 1):
            raise ValueError(f"the stages' shares of the steps must make up 1, not {shares}")
        self.phases = phases
        self.ends = [round(steps * sum(shares[: n + 1])) for n in range(len(shares))]
        """The step behind the last of each stage; the last is that of the whole budget."""
        if any(start >= end for start, end in itertools.pairwise([0, *self.ends])):
            raise ValueError(f"{steps} steps are too few for {len(phases)} stages of training")
        self.stateful = nn.ModuleList([p.step for p in phases if isinstance(p.step, nn.Module)])

    def forward(self, run: Run) -> dict[str, Tensor]:
        return self.phases[bisect.bisect(self.ends, run.t)].step(run)


METHODS: dict[str, type] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: make a method known. The class is a plain dataclass whose fields are the
    hyper-parameters and which has `recipe(self, task: Task) -> Recipe`.

    Raises TypeError for another kind of class, ValueError for a name that is taken.
    """

    def add(cls: type) -> type:
        # asked of the class itself: a subclass of a dataclass is one, but its own fields are not
        if "__dataclass_fields__" not in vars(cls):
            raise TypeError(f"method {name!r}: write @register above @dataclass, not below")
        if vars(cls)["__dataclass_params__"].frozen:
            raise TypeError(f"method {name!r}: write @dataclass without frozen=True")
        if not callable(getattr(cls, "recipe", None)):
            raise TypeError(f"method {name!r}: {cls.__name__} has no recipe(self, task)")
        known = METHODS.get(name, cls)
        places = [f"{c.__qualname__} in {c.__module__}" for c in (known, cls)]
        if places[0] != places[1]:  # where they are equal, a file is read again
            raise ValueError(
                f"two methods are named {name!r}: {' and '.join(places)}; rename one of them"
            )
        METHODS[name] = cls
        return cls

    return add
