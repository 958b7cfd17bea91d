"""What SIGHUP says: the terminal is gone, or somebody has changed a file."""

import os
import signal


class Terminal:
    """The one that this process was started from, if any, and if it ends with it."""

    def __init__(self) -> None:
        """Asked before SIGHUP has a handler: `nohup` is a wish to go on."""
        stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._was_there = not stays and _is_there()

    def is_gone(self) -> bool:
        """Whether it has been closed since."""
        return self._was_there and not _is_there()


def _is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:  # this process has none
        return False
    return True
