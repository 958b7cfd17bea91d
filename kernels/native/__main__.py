"""Compiles the kernels into the package: python -m kernels.native [NAME ...]

Without names, for the processor that this runs on; an image that is to run anywhere names all.
"""

import sys

from kernels.native.build import IN_PACKAGE, NativeUnavailableError, build, choose

try:
    for name in sys.argv[1:] or ["auto"]:
        print(build(choose(name), IN_PACKAGE))
except NativeUnavailableError as error:
    print(f"not compiled: {error}; torch will compute on the CPU", file=sys.stderr)
