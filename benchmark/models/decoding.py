"""What all models have in common whose decoder, once it is handed a code, does the rest."""

from abc import abstractmethod

from torch import Tensor, nn

from benchmark.api import Batch, LatentModel
from benchmark.models.lstm import LSTMDecoder
from benchmark.models.writing import Writing


class DecodingModel(LatentModel):
    """An encoder, and a decoder p(x|z) of codes that a subclass draws: one for a sentence, or one
    for each step, as the decoder takes them."""

    def __init__(self, encoder: nn.Module, decoder: LSTMDecoder, units: int):
        super().__init__()
        self.encoder, self.decoder, self.units = encoder, decoder, units

    def parts(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    def log_px(self, batch: Batch, z: Tensor | None) -> Tensor:
        assert z is not None
        return self.decoder.log_px(batch, z)

    def predictions(self, batch: Batch, z: Tensor | None) -> Tensor:
        assert z is not None
        return self.decoder.predictions(batch, z)

    @abstractmethod
    def rewriting(self, batch: Batch, max_length: int) -> Writing:
        """The sentences about to be written anew, from what the posterior says of each."""

    def reconstruct(self, batch: Batch, *, max_length: int) -> Tensor:
        return self.rewriting(batch, max_length).draw(max_length, 0.0)

    def decode(self, z: Tensor, *, max_length: int, temperature: float = 0.0) -> Tensor:
        return self.decoder.generate(z, max_length=max_length, temperature=temperature)
