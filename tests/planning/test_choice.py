"""The candidate for a speed-up, with a clock that is a formula."""

import pytest

from src.errors import UserError
from src.planning.candidates import candidates
from src.planning.choice import choose
from src.planning.rows import Candidate, Row
from src.planning.timing import Ratio

RATES = (0.5, 0.2, 0.1)
UNCUT = Candidate(3, 3, 1.0)


def row(candidate, speed, given=False, stock=None):
    """A layer is a tenth of all parameters, whatever it is of."""
    most = 1 - 0.1 * (6 - sum(candidate.depths))
    share = min(candidate.rate, most)
    ratio = Ratio(speed, 0.9 * speed, 1.1 * speed)
    stock = stock and Ratio(*(stock * x for x in ratio))
    return Row(
        "clock", candidate, given, int(share * 1e6), share, 1.0, 1, None, 1 / speed, ratio, stock
    )


class Clock:
    """A decoder layer takes as long as any other, and the rest takes its part.

    Args:
        given: the model as it is, None if it is the uncut one.
        stock: how many times as fast as stock fairseq the uncut model is, if that is timed.
    """

    def __init__(self, given=None, stock=None):
        self.given, self.stock, self.asked = given, stock, []

    def speed(self, candidate):
        share = row(candidate, 1.0).share
        return 1 / (0.1 + 0.3 * candidate.decoder_layers * share**0.5)

    def __call__(self, asked):
        self.asked.append(list(asked))
        rows = [row(UNCUT, 1.0, True, self.stock)]
        if self.given:
            rows.append(row(self.given, self.speed(self.given), True, self.stock))
        return rows + [row(c, self.speed(c), False, self.stock) for c in asked if c != UNCUT]


def chosen(speed_up, depths=((3, 3), (3, 2), (3, 1)), clock=None, **baseline):
    clock = clock or Clock()
    return choose(clock(candidates(depths, RATES)), clock, speed_up, **baseline)


def test_the_largest_that_reaches_it_is_taken():
    choice = chosen(2.6)
    # nothing but two layers cut is fast enough, and larger than any other such
    assert choice.row.candidate == Candidate(3, 1, 1.0)
    assert all(r.parameters <= choice.row.parameters for r in choice.rows if r.speed_up[0] >= 2.6)
    reasons = choice.reasons(2.6)
    assert "3+1 layers at 1, 800,000 parameters: measured 2.71 times" in reasons
    assert "3+3 reaches it at 0.1" in reasons and "3+2 reaches it at 0.2" in reasons


@pytest.mark.parametrize("speed_up", [3, 4, 5])
def test_rates_between_those_of_the_table_come_close(speed_up):
    choice = chosen(speed_up)
    assert 1 <= choice.row.speed_up.median / speed_up < 1.05
    assert choice.row.candidate.rate not in RATES


def test_given_depths_are_kept():
    choice = chosen(2.6, depths=[(3, 3)])
    assert choice.row.candidate.depths == (3, 3)
    assert 1 <= choice.row.speed_up.median / 2.6 < 1.05


def test_out_of_reach_says_what_can_be_reached():
    with pytest.raises(UserError) as error:
        chosen(9)
    assert str(error.value) == (
        "--speed-up 9: out of reach on this machine; the fastest that was measured in clock is "
        "3+1 layers at 0.1, 5.13 times as fast as the uncut model"
    )


def test_a_model_that_is_as_fast_already():
    given = Candidate(3, 2, 0.2)
    with pytest.raises(UserError, match="the model is 2.71 times as fast in clock as the uncut"):
        chosen(2.5, clock=Clock(given))
    assert chosen(3, depths=[(3, 2), (3, 1)], clock=Clock(given)).row.candidate != given


def test_speed_may_count_from_stock_fairseq():
    clock = Clock(stock=3.0)
    choice = chosen(7.8, clock=clock, baseline="fairseq")
    assert choice.row.candidate == chosen(2.6, clock=clock).row.candidate
    assert "8.14 times as fast in clock as stock fairseq" in choice.reasons(7.8)
    near = chosen(12, depths=[(3, 1)], clock=clock, baseline="fairseq")
    assert 12 <= near.row.times_fairseq.median < 12.6
    with pytest.raises(UserError, match="the model is 3.00 times as fast in clock as stock fairs"):
        chosen(2.9, clock=clock, baseline="fairseq")
    with pytest.raises(UserError, match="5.13 times .* the uncut model, and 15.40 times as stock"):
        chosen(9, clock=clock)


def test_close_enough_needs_no_more_measuring():
    clock = Clock()
    speed = clock.speed(Candidate(3, 1, 0.2)) / 1.01
    choice = choose(clock(candidates([(3, 1)], RATES)), clock, speed)
    assert len(clock.asked) == 1 and choice.row.candidate == Candidate(3, 1, 0.2)
