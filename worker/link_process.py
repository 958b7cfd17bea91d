"""The transport child as the executor has it: started, listened to, waited for.

The child is `worker.link`. It ends the executor where that hangs, and the executor ends the child
where it does: its beats (`worker.beats`) are heard on a thread of their own, whatever the executor
does meanwhile.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from worker.beats import SILENCE_S, listen
from worker.pipe import Pipe

log = logging.getLogger(__name__)

END_S = 10
"""In which an executor that ends lets go of its device: one that is stuck never would."""

_EXIT_S = 5.0


class LinkProcess:
    """The child, on one end of a socketpair.

    It ends this process when that does not answer for `patience_s` or longer after the end of a
    stream. When it hangs itself it is killed, and this process `END_S` later, unless it has left by
    then: what it computes reaches nobody.

    Args:
        arguments: what the child is told besides: whom to dial, and whom to trust.
        siblings: to the links of the ranks that this one agrees with; the child owns them.
        leads: this is rank 0's.
        wake: see `Pipe`.
        patience_s: seconds.

    Attributes:
        pipe: this side's end.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        siblings: Sequence[socket.socket],
        *,
        leads: bool,
        wake: socket.socket,
        patience_s: float,
    ) -> None:
        ours, theirs = socket.socketpair()
        heard, beats = os.pipe()
        fds = [theirs.fileno(), beats, *(end.fileno() for end in siblings)]
        python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
        command = [*python, "-m", "worker.link", *arguments, "--patience-s", str(patience_s)]
        command += ["--fd", str(theirs.fileno()), "--beats-fd", str(beats)]
        for fd in fds[2:]:
            command += ["--follower-fd" if leads else "--leader-fd", str(fd)]
        self._child = subprocess.Popen(
            command,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            env={"GRPC_VERBOSITY": "NONE", **os.environ},  # the link reports gRPC's errors itself
        )
        os.close(beats)
        for end in (theirs, *siblings):
            end.close()
        self.pipe = Pipe(ours, wake)
        listening = threading.Thread(
            target=listen, args=(heard, self._end, SILENCE_S), name="beats", daemon=True
        )
        listening.start()

    def exit_code(self) -> int:
        """Waits for the child, which leaves by itself once the socketpair is closed on either
        side."""
        try:
            return self._child.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def _end(self) -> None:
        log.error(
            "the transport process has not shown for %g s that it lives; ending it", SILENCE_S
        )
        self._child.kill()
        signal.alarm(END_S)


def end_within(seconds: int) -> None:
    """Whatever hangs from now on, the kernel ends: the transport has gone, which would have."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
