"""How much of oneDNN's work is kept: one compiled primitive for each matrix and number of rows.

A primitive of a CPU's matrix product is made for one number of rows and kept for the next step that
has as many. Steps have all numbers of rows, a primitive takes up to 0.8 MiB, and both oneDNN and
the layer between it and torch (ideep) keep 1,024 of them: a worker whose model takes half a
megabyte grows by 800 MiB in its first thousands of requests. Decode steps, which come again and
again with nearly the same number of rows, need a few dozen numbers times the four or five matrices
of a layer; what a chunk's number needs is made again in half a millisecond.
"""

import os

NUM_KEPT = 256
"""Primitives, by each of the two: up to 200 MiB."""


def bound_primitive_caches() -> None:
    """Sets how many are kept, unless the operator has; call before torch is loaded."""
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(NUM_KEPT))
