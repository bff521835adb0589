"""The decoder that sees the last words alone."""

import pytest
import torch
from torch import nn

from benchmark.models import ForgetfulDecoder, GaussianVAE, LSTMDecoder, LSTMEncoder
from benchmark.run import main
from tests.test_evaluate import words

SIZES = {"vocab_size": 30, "embedding": 5, "hidden": 6, "latent": 3}


def loud(module):
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.eval()


def forgetful(memory):
    decoder = ForgetfulDecoder(**SIZES, dropout=0.0, memory=memory)
    return loud(GaussianVAE(LSTMEncoder(**SIZES), decoder))


@torch.no_grad()
def test_it_sees_its_last_words_and_no_other():
    model = forgetful(2)
    split = words(6, (7,))
    batch = split.batch(range(6))
    z = torch.randn(6, 2, 3)
    told = model.predictions(batch, z)
    assert told.shape == (6, 2, 8, 30)
    for place in range(8):
        other = batch.inputs.clone()
        other[:, place] = 4 + (other[:, place] - 3) % 20
        moved = (model.predictions(batch.but(inputs=other), z) - told).abs().amax((1, 3)) > 1e-6
        assert (moved.any(0).nonzero()[:, 0]).tolist() == [t for t in (place, place + 1) if t < 8]


@torch.no_grad()
def test_it_is_the_lstm_on_each_window_alone():
    model = forgetful(3)
    plain = LSTMDecoder(**SIZES, dropout=0.0)
    plain.load_state_dict(model.decoder.state_dict())
    batch = words(4, (5,)).batch(range(4))
    z = torch.randn(4, 1, 3)
    for t in range(2, 6):
        states, _ = plain.step(batch.inputs[:, t - 2 : t + 1], z[:, 0], plain.start(z[:, 0]))
        torch.testing.assert_close(model.decoder.states(batch, z)[:, t], states[:, -1])
    everything = loud(ForgetfulDecoder(**SIZES, dropout=0.0, memory=6))
    alike = loud(LSTMDecoder(**SIZES, dropout=0.0))
    # at the last word the whole sentence is in the window
    torch.testing.assert_close(everything.states(batch, z)[:, -1], alike.states(batch, z)[:, -1])


@torch.no_grad()
def test_what_it_writes_is_what_it_scores_highest():
    model = forgetful(1)
    z = torch.randn(5, 3)
    written = model.decode(z, max_length=6)
    batch = words(5, (5,)).batch(range(5))
    inputs = torch.cat([torch.ones(5, 1, dtype=torch.long), written[:, :-1]], 1)
    told = model.predictions(batch.but(inputs=inputs), z[:, None])[:, 0]
    told[..., :2] = -torch.inf
    alive = (written != 0) & (written.roll(1, 1) != 2)
    assert (told.argmax(-1) == written)[alive].all()


@pytest.mark.parametrize("method", ["zforcing", "temporal_delta_vae"])
def test_who_remembers_by_nature_refuses(method, tmp_path, capsys):
    places = [f"results_dir={tmp_path}", f"data_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        main([f"method={method}", "model.memory=1", "budget=smoke", *places])
    assert "remembers all" in capsys.readouterr().err
