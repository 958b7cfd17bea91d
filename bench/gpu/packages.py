"""Which packages are not there, said before anything fails for the want of them."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def missing(names: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in names if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        # A build for other devices may come under another name.
        return find_spec(name.replace("-", "_")) is not None
    return True
