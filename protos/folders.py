"""Where processes keep what outlives them."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Models, and what is made of them: `$QUIRE_CACHE`, or `quire` in the user's cache."""
    if explicit := os.environ.get("QUIRE_CACHE"):
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "quire"
