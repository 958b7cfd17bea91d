"""What every test may rely on: one compute thread per process, and the small real model on disk."""

import os

# Several test processes share the machine, and OpenMP threads that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
