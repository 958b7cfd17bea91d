"""Columns: little-endian int32, float32 or uint8 values in a bytes field, read where they lie."""

import sys

import numpy as np

from scheduler.core.events import Int32Column
from scheduler.messages import Float32Column

assert sys.byteorder == "little", "columns are little-endian and travel as they lie in memory"

MAX_INT32 = 2**31 - 1
MAX_NAME_LENGTH = 256


class Malformed(Exception):
    """A peer's message breaks the contract; its stream ends with INVALID_ARGUMENT."""


def int32_column(field: str, data: bytes) -> Int32Column:
    """The values, read-only. Raises Malformed."""
    if len(data) % 4:
        raise Malformed(f"{field} has {len(data)} bytes; an int32 column has a multiple of 4")
    return np.frombuffer(data, "<i4")


def float_column(field: str, data: bytes) -> Float32Column:
    """The values, read-only. Raises Malformed."""
    if len(data) % 4:
        raise Malformed(f"{field} has {len(data)} bytes; a float column has a multiple of 4")
    return np.frombuffer(data, "<f4")


def all_below(ids: Int32Column, limit: int) -> bool:
    """Whether 0 <= id < limit for all ids; read as unsigned, one comparison covers both ends."""
    return not np.count_nonzero(ids.view(np.uint32) >= limit)


def checked_name(field: str, text: str) -> str:
    """The text, neither empty nor long. Raises Malformed."""
    if not 0 < len(text) <= MAX_NAME_LENGTH:
        raise Malformed(f"{field} must have 1 to {MAX_NAME_LENGTH} characters; it has {len(text)}")
    return text
