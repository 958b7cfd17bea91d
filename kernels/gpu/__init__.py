"""The ops and the ends of a step in Triton; imported only for a GPU, by `kernels.ops`."""
