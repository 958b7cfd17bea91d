"""Load on a running server, and what it felt like: the measuring half of `quire bench`."""
