"""`python -m worker` whose transport forgets whose results it carries.

    python -m tests.chaos.forgetful_worker --model DIRECTORY …

What the executor computed for a stream that has ended goes to the next one, as it might on any way
that repeats or reorders; worker and transport are this module, and `worker.link` drops them.
"""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from worker import __main__ as worker
from worker import link

ME = "tests.chaos.forgetful_worker"


class ForgetfulLink(link.Link):
    """Waits for no answer of its executor's."""

    def _ask(self) -> None:
        self._num_asked += 1


class _Started(subprocess.Popen[bytes]):
    def __init__(self, command: Sequence[str], **how: Any) -> None:
        super().__init__([ME if part == link.__name__ else part for part in command], **how)


def main() -> int:
    """Runs either of the two processes."""
    if "--fd" in sys.argv:
        setattr(link, "Link", ForgetfulLink)  # noqa: B010
        return link.main()
    setattr(subprocess, "Popen", _Started)  # noqa: B010
    worker.app()
    return 0


if __name__ == "__main__":
    sys.exit(main())
