"""One plain line per log record on stderr: `HH:MM:SS worker level message`."""

import logging
import sys


def configure(role: str) -> None:
    """Sets up the process's log; `role` stands in every line."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s {role} %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())
