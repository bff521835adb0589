"""The models that methods start from."""

from benchmark.models.bag import BagVAE
from benchmark.models.forgetful import ForgetfulDecoder
from benchmark.models.gaussian import (
    GaussianVAE,
    LanguageModel,
    gaussian_log_density,
    kl_to_standard,
    standard_log_density,
)
from benchmark.models.implicit import (
    Frozen,
    GaussianCodes,
    ImplicitAutoencoder,
    critic_loss,
    gradient_penalty,
    perceptron,
)
from benchmark.models.kernels import gaussian_kernel, inverse_multiquadrics, squared_mmd
from benchmark.models.likelihood import token_log_likelihood
from benchmark.models.lstm import LSTMDecoder, LSTMEncoder, initialise
from benchmark.models.normalised import NormalisedEncoder, scale_of_rate
from benchmark.models.paths import TwoHeadedEncoder, TwoPathVAE
from benchmark.models.recurrent import LSTM
from benchmark.models.refined import RefinedVAE, Teacher
from benchmark.models.skip import SkipDecoder
from benchmark.models.spherical import DirectionEncoder, SphericalVAE, vmf_concentration
from benchmark.models.stepwise import Pool, StepwiseEncoder, StepwiseVAE
from benchmark.models.stochastic import Generator, Inference, StochasticLSTM
from benchmark.models.temporal import AntiCausalEncoder, TemporalVAE, kl_to_ar1
from benchmark.models.writing import Rewriter, Writing

__all__ = [
    "LSTM",
    "AntiCausalEncoder",
    "BagVAE",
    "DirectionEncoder",
    "ForgetfulDecoder",
    "Frozen",
    "GaussianCodes",
    "GaussianVAE",
    "Generator",
    "ImplicitAutoencoder",
    "Inference",
    "LSTMDecoder",
    "LSTMEncoder",
    "LanguageModel",
    "NormalisedEncoder",
    "Pool",
    "RefinedVAE",
    "Rewriter",
    "SkipDecoder",
    "SphericalVAE",
    "StepwiseEncoder",
    "StepwiseVAE",
    "StochasticLSTM",
    "Teacher",
    "TemporalVAE",
    "TwoHeadedEncoder",
    "TwoPathVAE",
    "Writing",
    "critic_loss",
    "gaussian_kernel",
    "gaussian_log_density",
    "gradient_penalty",
    "initialise",
    "inverse_multiquadrics",
    "kl_to_ar1",
    "kl_to_standard",
    "perceptron",
    "scale_of_rate",
    "squared_mmd",
    "standard_log_density",
    "token_log_likelihood",
    "vmf_concentration",
]
