"""The ops and the ends of a step in Triton; imported only where there is a GPU, see `kernels.ops`."""
