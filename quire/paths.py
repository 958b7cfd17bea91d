"""Where Quire keeps what is running; models and all that is made of them: `protos.folders`."""

import os
import stat
import tempfile
from pathlib import Path

from quire.errors import ConfigurationError

SOCKET_PATH_LIMIT_BYTES = 107
"""What a unix socket address can hold on Linux, without its closing zero."""

_LONGEST_SOCKET_NAME = len("/scheduler.sock")


def runtime_dir() -> Path:
    """What runs now: `$QUIRE_RUN`, `$XDG_RUNTIME_DIR/quire` or `/tmp/quire-UID`; made private.

    Raises ConfigurationError if it belongs to another user, who could then plant sockets in it.
    """
    if explicit := os.environ.get("QUIRE_RUN"):
        path = Path(explicit).expanduser()
    elif (xdg := os.environ.get("XDG_RUNTIME_DIR")) and os.access(xdg, os.W_OK):
        path = Path(xdg) / "quire"
    else:
        path = Path(tempfile.gettempdir()) / f"quire-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"cannot make the runtime directory {path}: {error}") from error
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise ConfigurationError(
            f"the runtime directory {path} belongs to another user; set QUIRE_RUN to one of yours"
        )
    return path


def make_run_dir() -> Path:
    """A new private directory for one stack's sockets, short enough for a socket address."""
    home = runtime_dir()
    longest = len(os.fsencode(home)) + len("/run-12345678") + _LONGEST_SOCKET_NAME
    if longest > SOCKET_PATH_LIMIT_BYTES:
        home = Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(prefix="run-", dir=home))
