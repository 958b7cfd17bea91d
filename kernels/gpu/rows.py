"""What kernels ask about a step's rows; functions for kernels, compiled into them.

cu_seqlens   0    1    2    3             7       9
token axis   | d0 | d1 | d2 | c0 c0 c0 c0 | c1 c1 |
"""

import triton
import triton.language as tl


@triton.jit
def row_of(token, cu_seqlens, num_decodes, num_rows):
    """The row that owns a token, by bisection among the rows that are not decodes.

    Empty rows own nothing and are passed over; a token beyond all rows gets the last one.

    Args:
        token: scalar, not negative.
        cu_seqlens: pointer to [num_rows + 1] int32.
        num_decodes: the first so many rows own one token each.
        num_rows: at least 1.
    """
    low = tl.minimum(token, tl.minimum(num_decodes, num_rows - 1))
    high = tl.where(token < num_decodes, low + 1, num_rows)
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(cu_seqlens + middle) <= token
        low = tl.where(begins, middle, low)
        high = tl.where(begins, high, middle)
    return low
