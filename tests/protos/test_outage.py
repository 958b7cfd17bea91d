"""A lost server is told once, each new reason once, and its absence ever more seldom."""

from itertools import pairwise

import pytest

from protos.outage import LAST_REMINDER_S, Outage, plainly

BROKE, NOBODY = "the connection broke", "nobody listens there"
CERTIFICATE = "its certificate, or ours, is not accepted"


@pytest.fixture
def outage() -> Outage:
    return Outage("the scheduler at here")


def test_a_loss_and_a_new_reason_are_told_once(outage: Outage) -> None:
    assert [
        outage.failed(reason, now)
        for now, reason in enumerate((NOBODY, NOBODY, CERTIFICATE, NOBODY, CERTIFICATE))
    ] == [
        "no connection to the scheduler at here: nobody listens there; dialling again",
        None,
        f"no connection to the scheduler at here: {CERTIFICATE}; dialling again",
        *(None, None),
    ]


@pytest.mark.parametrize("first", [BROKE, "the scheduler is shutting down"])
def test_that_who_went_is_not_there_is_no_news(outage: Outage, first: str) -> None:
    told = [outage.failed(reason, now) for now, reason in enumerate((first, NOBODY, BROKE, NOBODY))]
    assert told == [f"no connection to the scheduler at here: {first}; dialling again", *[None] * 3]
    assert outage.failed(NOBODY, 10) == (
        "still no connection to the scheduler at here after 10 s: nobody listens there"
    )


def test_reminders_come_ever_more_seldom(outage: Outage) -> None:
    told = [now for now in range(6000) if outage.failed(NOBODY, now)]
    gaps = [later - earlier for earlier, later in pairwise(told)]
    assert gaps[:4] == [10, 20, 40, 80]
    assert gaps[-1] == max(gaps) == LAST_REMINDER_S


def test_a_reminder_says_for_how_long(outage: Outage) -> None:
    outage.failed(BROKE, 100)
    outage.failed(NOBODY, 101)
    assert outage.failed(NOBODY, 142) == (
        "still no connection to the scheduler at here after 42 s: nobody listens there"
    )


def test_the_next_loss_is_told_anew(outage: Outage) -> None:
    first = outage.failed(BROKE, 0)
    outage.over()
    assert outage.failed(BROKE, 1) == first


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
            "Failed to connect to remote host: Connection refused",
            NOBODY,
        ),
        (
            "failed to connect to all addresses; last error: FAILED_PRECONDITION: unix:/s: "
            "connect failed: addr: unix:/s error: No such file or directory",
            NOBODY,
        ),
        ("Socket closed", BROKE),
        ("errors resolving nowhere:1: Domain name not found", "no address goes by that name"),
        ("the scheduler is shutting down", "the scheduler is shutting down"),
        ("", "deadline exceeded"),
        (None, "deadline exceeded"),
    ],
)
def test_grpcs_words_are_translated_and_ours_are_not(details: str | None, expected: str) -> None:
    assert plainly("DEADLINE_EXCEEDED", details) == expected
