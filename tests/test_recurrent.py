"""The LSTM's two ways of computing one recurrence, and what is trained in bf16."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark import check, objectives
from benchmark.cell import fast_in_bf16
from benchmark.compose import CONFIGS
from benchmark.models import LSTM, likelihood, token_log_likelihood
from benchmark.noise import Noise
from benchmark.trial import subject
from tests.test_device import QUICKER
from tests.test_parity import NAMES, as_batch, both, differences, gradients, sentences

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))


def narrow():
    return torch.autocast("cpu", torch.bfloat16)


def differentiated(lstm: LSTM, copies: int, codes: str, scan: bool) -> dict[str, Tensor]:
    """States, last state, and the gradients of a sum of all with random weights."""
    torch.manual_seed(0)
    b, t, h, d = 3, 5, lstm.hidden_size, 4
    shape = {"none": None, "constant": (b * copies, d), "stepwise": (b * copies, t, d)}[codes]
    given = {
        "inputs": torch.randn(b, t, 6, requires_grad=True),
        "h": torch.randn(1, b * copies, h, requires_grad=True),
        "c": torch.randn(1, b * copies, h, requires_grad=True),
    }
    code = None
    if shape is not None:
        code = given["codes"] = torch.randn(*shape, requires_grad=True)
    state = (given["h"], given["c"])
    if scan:
        states, last = lstm._scan(given["inputs"], state, code, copies)
    else:
        states, last = by_torch(lstm, given["inputs"], state, code, copies)
    found = {"states": states, "last h": last[0], "last c": last[1]}
    total = sum((value * torch.randn_like(value)).sum() for value in found.values())
    wanted = given | dict(lstm.named_parameters())
    return found | dict(zip(wanted, torch.autograd.grad(total, list(wanted.values())), strict=True))


def by_torch(lstm: LSTM, inputs, state, codes, copies):
    """`nn.LSTM` on inputs with the codes written beside them."""
    inputs = inputs.repeat_interleave(copies, 0)
    if codes is not None:
        codes = codes[:, None].expand(-1, inputs.shape[1], -1) if codes.dim() == 2 else codes
        inputs = torch.cat([inputs, codes], -1)
    return nn.LSTM.forward(lstm, inputs, state)


CASES = [("none", 1), *((codes, copies) for codes in ("constant", "stepwise") for copies in (1, 3))]


@pytest.mark.parametrize(("codes", "copies"), CASES)
def test_the_scan_is_the_lstm(codes, copies):
    lstm = LSTM(6, 7, 0 if codes == "none" else 4)
    expected = differentiated(lstm, copies, codes, scan=False)
    found = differentiated(lstm, copies, codes, scan=True)
    assert max(differences(found, expected).values()) < 1e-6


@pytest.mark.parametrize("grad", [True, False])
def test_many_codes_share_what_is_made_of_their_sentence(grad, monkeypatch):
    """On a CPU; and from the state that is the default."""
    lstm, inputs, codes = LSTM(6, 7, 4), torch.randn(2, 5, 6), torch.randn(6, 4)
    with torch.set_grad_enabled(grad):
        expected, last = by_torch(lstm, inputs, None, codes, 3)
        monkeypatch.setattr(nn.LSTM, "forward", None)
        found, (h, c) = lstm(inputs, None, codes)
    torch.testing.assert_close((found, h, c), (expected, *last))


def test_what_can_be_differentiated_once_says_so():
    lstm, inputs, codes = LSTM(6, 7, 4), torch.randn(2, 5, 6), torch.randn(6, 4, requires_grad=True)
    states, _ = lstm(inputs, None, codes)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(states.sum(), codes, create_graph=True)


def test_double_precision_stays_double():
    lstm, codes = LSTM(6, 7, 4).double(), torch.randn(6, 4).double()
    assert lstm(torch.randn(2, 5, 6).double(), None, codes)[0].dtype == torch.float64


def in_bf16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def test_gradients_in_bf16_at_the_size_where_an_lstm_of_onednn_has_wrong_ones():
    theirs, ours = both(embedding=256, hidden=1024, latent=32)
    rows = sentences([15] * 6)
    ids = torch.arange(len(rows))
    with in_bf16():
        batch = as_batch(rows, Noise("train", ids))
        objectives.negative_elbo(ours.draw(batch), batch, 0).backward()
    eps = Noise("train", ids).normal(1, 32)[:, 0]
    theirs.loss(torch.stack(rows), eps)[0].mean().backward()
    found = gradients(theirs, ours, NAMES)
    assert found["total"] < 1e-2 and max(found.values()) < 3e-2, found
    assert found["total"] > 1e-4, "this was not bf16"


def test_products_in_bf16_leave_their_gradients_in_float32(monkeypatch):
    """A gradient rounded on its way to the weights would be its own rounding; a product's is, but
    not what the words that were predicted add to it."""
    monkeypatch.setattr(likelihood, "CACHED", 0)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 16, requires_grad=True) for n in (50, 40))
    with in_bf16():
        token_log_likelihood(hidden, weight, torch.randint(0, 40, (50,))).sum().backward()
    for grad in (hidden.grad, weight.grad):
        assert grad is not None and grad.dtype == torch.float32
        assert (grad != grad.bfloat16().float()).float().mean() > 0.3


@pytest.mark.parametrize(
    ("device", "has", "fast"),
    [
        ("cuda", (), True),
        ("cpu", (), False),
        ("cpu", ("avx512_f",), False),
        ("cpu", ("avx512_f", "avx512_bf16"), True),
        ("cpu", ("amx_bf16",), True),
    ],
)
def test_who_multiplies_in_bf16_itself(device, has, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(has, True))
    assert fast_in_bf16(torch.device(device)) == fast


class NoWrongLSTM(TorchDispatchMode):
    """Refuses oneDNN's LSTM in bf16 where it would be differentiated; counts narrow products."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        narrow = any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in args)
        assert not (narrow and "rnn" in func.name()), func
        self.products += narrow and func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


PRODUCTS = {torch.ops.aten.mm, torch.ops.aten.addmm}


@pytest.mark.parametrize("method", METHODS)
def test_no_method_trains_an_lstm_of_onednn_in_bf16(method):
    (config,) = check.configure([f"method={method}", *QUICKER.get(method, ())])
    with subject(config) as found:
        trainer = found.trainer()
        trainer.autocast = in_bf16
        with NoWrongLSTM() as watch:
            trainer._advance()
        assert watch.products > 4


def test_an_lstm_of_onednn_in_bf16_would_be_seen():
    with pytest.raises(AssertionError, match="rnn"), in_bf16(), NoWrongLSTM():
        nn.LSTM(6, 7, batch_first=True)(torch.randn(2, 5, 6))
