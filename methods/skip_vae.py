"""Skip-VAE: a second way for z into the decoder, past its recurrence."""

from dataclasses import dataclass

from benchmark.api import Recipe, Task, register
from benchmark.models import GaussianVAE, SkipDecoder


@register("skip_vae")
@dataclass
class SkipVAE:
    """Dieng et al. (AISTATS 2019): the ELBO as it is, and a decoder with skip connections from z to
    what words are predicted from, h_t + W z in place of the LSTM's h_t."""

    def recipe(self, task: Task) -> Recipe:
        return Recipe(model=GaussianVAE(task.encoder(), SkipDecoder(task.decoder())))
