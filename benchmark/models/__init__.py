"""The models that methods start from."""

from benchmark.models.forgetful import ForgetfulDecoder
from benchmark.models.gaussian import (
    GaussianVAE,
    LanguageModel,
    gaussian_log_density,
    kl_to_standard,
    standard_log_density,
)
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder, initialise
from benchmark.models.recurrent import LSTM
from benchmark.models.stochastic import Generator, Inference, StochasticLSTM
from benchmark.models.temporal import AntiCausalEncoder, TemporalVAE, kl_to_ar1
from benchmark.models.writing import Rewriter, Writing

__all__ = [
    "LSTM",
    "AntiCausalEncoder",
    "ForgetfulDecoder",
    "GaussianVAE",
    "Generator",
    "Inference",
    "LSTMDecoder",
    "LSTMEncoder",
    "LanguageModel",
    "Rewriter",
    "StochasticLSTM",
    "TemporalVAE",
    "Writing",
    "gaussian_log_density",
    "initialise",
    "kl_to_ar1",
    "kl_to_standard",
    "standard_log_density",
    "token_log_likelihood",
]
