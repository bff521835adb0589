"""The models that methods start from."""

from benchmark.models.gaussian import (
    GaussianVAE,
    LanguageModel,
    gaussian_log_density,
    kl_to_standard,
    standard_log_density,
)
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder, initialise

__all__ = [
    "GaussianVAE",
    "LSTMDecoder",
    "LSTMEncoder",
    "LanguageModel",
    "gaussian_log_density",
    "initialise",
    "kl_to_standard",
    "standard_log_density",
    "token_log_likelihood",
]
