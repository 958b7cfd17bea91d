"""The CPU's own kernels, in C++: a decoder's layers and its head, one call each per step.

    simd.h        vectors of sixteen lanes, on whatever the processor has
    team.h        threads that go through the phases of a step together
    linear.h      products with packed matrices, in floats or in codes
    attention.h   attention over the paged cache
    decoder.h     the layers, phase by phase
    quire_cpu.cpp what Python calls

    build.py      compiles them for this processor
    library.py    loads them; their structures
    packing.py    matrices in the panels that they read
    outline.py    the sizes of such, without data

Whatever is summed is summed in an order that depends on nothing but the row itself: not on its
neighbours in the batch, not on how a prompt was cut into chunks, not on the number of threads. So a
sequence gets the same logits, bit by bit, however it is served.
"""
