"""Runs a command that dies with its parent: `python -I -S launch.py PARENT_PID COMMAND...`.

On Linux the kernel can send a process a signal when the thread that started it ends, however it
ends (PR_SET_PDEATHSIG), and exec keeps that wish. So this asks for SIGKILL, and becomes the
command. Nobody is left to drain for, hence KILL and not TERM.

Asking here, and not in a `preexec_fn`, is deliberate: that runs Python between fork and exec in a
process with threads (gRPC's among them), where any lock may be held for ever. Elsewhere than on
Linux the command runs without this guard.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, command: list[str]) -> None:
    """Becomes `command`; never returns."""
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent_pid:
            sys.exit(1)  # it ended before the wish was made
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
