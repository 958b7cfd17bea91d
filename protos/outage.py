"""What a client of ours says while its server cannot be reached.

It dials again and again; whoever reads the log wants to know that the server was lost, of each new
reason, now and then that it is still gone, and that it is back. That nobody is there is news only
once: a server that has said that it goes, or whose connection broke, is then not there. There are
four kinds of line, and gRPC's own words, which name its inner workings, are in none of them.
"""

FIRST_REMINDER_S = 10.0
LAST_REMINDER_S = 600.0
"""Reminders come ever more seldom, but no more seldom than this."""

_IN_PLAIN_WORDS = (
    (("handshake", "CERTIFICATE"), "its certificate, or ours, is not accepted"),
    (("resolving", "resolution"), "no address goes by that name"),
    (("refused", "No such file"), "nobody listens there"),
    (("keepalive", "ping timeout", "timed out"), "it does not answer"),
    (
        (
            "Socket closed",
            "reset",
            "Broken pipe",
            "GOAWAY",
            "RST_STREAM",
            "Internal error from Core",
        ),
        "the connection broke",
    ),
    (("failed to connect",), "it cannot be reached"),
)


def is_unsaid(details: str | None) -> bool:
    """Whether a call had ended before it was written to, and gRPC's library has lost the status
    that it ended with: what the call before it has said is the better reason."""
    return details == "Internal error from Core"


_ABSENT = {"nobody listens there", "the connection broke", "it cannot be reached"}


class Outage:
    """Decides what to log; times are seconds on one clock of the caller's."""

    def __init__(self, server: str) -> None:
        """`server` names it: "the scheduler at 127.0.0.1:50051"."""
        self._server = server
        self._since: float | None = None
        """None while there is no outage."""
        self._told: set[str] = set()
        self._next_reminder = 0.0
        self._interval_s = FIRST_REMINDER_S

    def failed(self, reason: str, now: float) -> str | None:
        """The connection was lost or not had; returns the line to log, if one is due."""
        if self._since is None:
            self._since = now
        age_s = now - self._since
        is_known = reason in self._told or (bool(self._told) and reason in _ABSENT)
        if is_known and now < self._next_reminder:
            return None
        if is_known:
            self._interval_s = min(2 * self._interval_s, LAST_REMINDER_S)
            line = f"still no connection to {self._server} after {age_s:.0f} s: {reason}"
        else:
            line = f"no connection to {self._server}: {reason}; dialling again"
        self._told.add(reason)
        self._next_reminder = now + self._interval_s
        return line

    def over(self) -> None:
        """There is a connection."""
        self._since = None
        self._told.clear()
        self._interval_s = FIRST_REMINDER_S


def plainly(code: str, details: str | None) -> str:
    """Why a call ended, from its status: gRPC's words translated, a server's own left as they are.

    Args:
        code: the name of the status, like "UNAVAILABLE".
        details: what came with it.
    """
    details = details or ""
    for signs, words in _IN_PLAIN_WORDS:
        if any(sign in details for sign in signs):
            return words
    return details or code.lower().replace("_", " ")
