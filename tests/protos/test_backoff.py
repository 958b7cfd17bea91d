"""Dials are frequent at first, and never further apart than a limit."""

from itertools import islice

from protos.backoff import EAGER_S, FIRST_S, LAST_S, NUM_EAGER, backoff


def test_a_while_of_frequent_dials_and_then_a_limit() -> None:
    delays = list(islice(backoff(), 2 * NUM_EAGER))
    assert FIRST_S / 2 <= delays[0] <= FIRST_S
    assert all(EAGER_S / 2 <= delay <= EAGER_S for delay in delays[2:NUM_EAGER])
    assert all(LAST_S / 2 <= delay <= LAST_S for delay in delays[NUM_EAGER + 4 :])
    assert len(set(delays)) > NUM_EAGER, "they are not spread"
