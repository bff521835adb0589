"""The learning-rate rule of He et al. against a literal transcription of their loop."""

import math

from hypothesis import given
from hypothesis import strategies as st

from benchmark.config import Halving
from benchmark.train import HalvingSchedule


def released_loop(losses, patience, first_epoch, most):
    """Epochs after which the released code halves its rate, and the epoch at which it stops."""
    best, not_improved, decays, halved = 1e4, 0, 0, []
    for epoch, loss in enumerate(losses):
        if loss > best:
            not_improved += 1
            if not_improved >= patience and epoch >= first_epoch:
                best = loss
                not_improved = 0
                decays += 1
                halved.append(epoch)
        else:
            not_improved = 0
            best = loss
        if decays == most:
            return halved, epoch
    return halved, None


@given(
    losses=st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60),
    patience=st.integers(1, 5),
    first_epoch=st.integers(0, 20),
    most=st.integers(1, 5),
)
def test_decays_fall_where_the_released_code_has_them(losses, patience, first_epoch, most):
    schedule = HalvingSchedule(Halving(patience, first_epoch, most))
    halved, stop = [], None
    for epoch, loss in enumerate(losses):
        if schedule.decay_after(loss, epoch):
            halved.append(epoch)
        if schedule.ended:
            stop = epoch
            break
    assert (halved, stop) == released_loop(losses, patience, first_epoch, most)


def test_the_counter_runs_before_the_first_epoch_that_may_decay():
    schedule = HalvingSchedule(Halving(patience=2, first_epoch=3, most=5))
    decays = [schedule.decay_after(loss, epoch) for epoch, loss in enumerate([5, 6, 7, 8, 9.0])]
    assert decays == [False, False, False, True, False]
    assert schedule.best == 8  # reset at the decay, then 9 counts against it
    assert not math.isinf(schedule.best)
