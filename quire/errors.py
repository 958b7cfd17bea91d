"""The errors that `quire` raises.

QuireError                  anything below; its text is fit to show as it is
├── ModelNotFound           MODEL names nothing that can be served
├── ConfigurationError      flags or an environment that a restart cannot cure (exit code 2)
├── StackFailed             a process of the local stack could not be kept running
└── RequestFailed           the router refused or could not finish a request
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
