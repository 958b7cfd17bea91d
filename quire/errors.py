"""The errors that `quire` raises.

QuireError                  anything below; its text is fit to show as it is
├── ModelNotFound           MODEL names nothing that can be served
├── ConfigurationError      flags or an environment that a restart cannot cure (exit code 2)
├── StackFailed             a process of the local stack could not be kept running
└── RequestFailed           the router refused or could not finish a request
    ├── InvalidRequest      it names the field, the limit and the value
    ├── AuthenticationFailed
    ├── ModelNotServed
    ├── Overloaded          too much is in flight, or a message is too large
    ├── Unavailable         nobody serves now
    ├── DeadlineExceeded    it took longer than the caller gave it
    └── Cancelled           the client was closed, or the call ended by it
"""


class QuireError(Exception):
    """An error whose text names what was wrong; `exit_code` is what the command exits with."""

    exit_code = 1


class ConfigurationError(QuireError):
    """Wrong flags or environment: starting again cannot help."""

    exit_code = 2


class ModelNotFound(ConfigurationError):
    """MODEL names no alias, directory, GGUF file or hub repository that can be had."""


class StackFailed(QuireError):
    """A process of the local stack ended for good; `exit_code` is its own where that was 2."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestFailed(QuireError):
    """A request was refused or ended in an error."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        field: str | None = None,
        code: str | None = None,
    ) -> None:
        """`retry_after_s`: when trying again may help; None: it would not, or nobody knows.
        `field` is the one that is wrong; `code` says how, in OpenAI's words ("invalid_request",
        "context_length_exceeded"); None: the server did not say."""
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.field = field
        self.code = code


class InvalidRequest(RequestFailed):
    """It can never be served as it is."""


class AuthenticationFailed(RequestFailed):
    """The API key is missing or wrong."""


class ModelNotServed(RequestFailed):
    """Another model is served there."""


class Overloaded(RequestFailed):
    """Too much is in flight; where `retry_after_s` is None, the message is too large instead."""


class Unavailable(RequestFailed):
    """Nobody answers, or nobody computes."""


class DeadlineExceeded(RequestFailed):
    """It took longer than its timeout; the server computes nothing more for it."""


class Cancelled(RequestFailed):
    """It was ended before it was complete."""
