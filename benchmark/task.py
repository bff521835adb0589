"""What a method is told of the cell it will be trained in."""

from dataclasses import dataclass
from typing import Any

from benchmark.models import ForgetfulDecoder, GaussianVAE, LSTMDecoder, LSTMEncoder


@dataclass
class CellTask:
    """The `Task` of one cell: the training data's measures and the configured model."""

    vocab_size: int
    mean_length: float
    max_length: int
    n_train: int
    batch_size: int
    steps_per_epoch: int
    steps: int
    embedding: int
    hidden: int
    latent: int
    dropout: float
    init: float
    init_embedding: float
    memory: int | None = None

    def _sizes(self, **changes: Any) -> dict[str, Any]:
        sizes = {
            "vocab_size": self.vocab_size,
            "embedding": self.embedding,
            "hidden": self.hidden,
            "latent": self.latent,
            "init": self.init,
            "init_embedding": self.init_embedding,
        }
        return sizes | changes

    def encoder(self, **changes: Any) -> LSTMEncoder:
        return LSTMEncoder(**self._sizes(**changes))

    def decoder(self, **changes: Any) -> LSTMDecoder:
        sizes = self._sizes(**{"dropout": self.dropout} | changes)
        if self.memory is None:
            return LSTMDecoder(**sizes)
        return ForgetfulDecoder(memory=self.memory, **sizes)

    def model(self, **changes: Any) -> GaussianVAE:
        encoder = {name: value for name, value in changes.items() if name != "dropout"}
        return GaussianVAE(self.encoder(**encoder), self.decoder(**changes))
