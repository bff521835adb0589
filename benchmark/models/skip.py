"""A decoder in which the code also enters behind the LSTM, where no recurrence can forget it."""

from torch import Tensor, nn

from benchmark.models.lstm import LSTMDecoder, initialise


class SkipDecoder(LSTMDecoder):
    """p(x_t | x_<t, z) = softmax(O (h_t + W z)), h_t the states of a configured decoder's LSTM, all
    of whose modules, as they are, become this one's."""

    def __init__(self, like: LSTMDecoder):
        if like.memory is not None:
            raise ValueError("a decoder with a skip connection remembers all; drop model.memory")
        nn.Module.__init__(self)
        self.latent, self.init = like.latent, like.init
        self.embed, self.dropout, self.lstm = like.embed, like.dropout, like.lstm
        self.initial, self.output = like.initial, like.output
        self.skip = nn.Linear(like.latent, like.lstm.hidden_size, bias=False)
        initialise(self.skip, *self.init)

    def step(
        self, tokens: Tensor, z: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        states, state = super().step(tokens, z, state)
        return states + self.skip(z if z.dim() == 3 else z[:, None]), state
