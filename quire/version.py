"""The installed version, read once from the distribution's metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("quire")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"
