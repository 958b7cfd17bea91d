"""Compiles the kernels into the package: python -m kernels.native [all]

For the processor that this runs on; for an image that is to run on any of its kind, `all`.
"""

import sys

from kernels.native.build import IN_PACKAGE, NativeUnavailableError, build, choose, of_this_kind

try:
    wanted = of_this_kind() if sys.argv[1:] == ["all"] else (choose(),)
    for instructions in wanted:
        print(build(instructions, IN_PACKAGE))
except NativeUnavailableError as error:
    print(f"not compiled: {error}; torch will compute on the CPU", file=sys.stderr)
