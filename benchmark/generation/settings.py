"""How much is written, by which rules, and how it is judged; imports no torch."""

from dataclasses import dataclass

from benchmark.config import at_least, must, positive


@dataclass
class Settings:
    """The words of the command."""

    samples: int = at_least(2, 1_000)
    """Sentences from the prior by each rule, and of real text beside them."""
    sentences: int = at_least(2, 500)
    """Of the test split, reconstructed by each rule."""
    temperature: float = must("be at least 0.01", lambda value: value >= 0.01, default=1.0)
    """Of what is sampled: logits are divided by it."""
    beams: int = positive(5)
    """Hypotheses that a beam search keeps."""
    paths: int = positive(20)
    """Pairs of test sentences that are interpolated."""
    steps: int = at_least(2, 7)
    """Of a path, both ends among them."""
    tokens: int = positive(5_000)
    """On which distinct n-grams are counted."""
    corpus: int = at_least(2, 10_000)
    """Sentences that each of the two language models is trained on."""
    epochs: int = positive(10)
    """Of their training."""
    seed: int = at_least(0, 0)
    device: str | None = None
    """In place of the run's own."""
