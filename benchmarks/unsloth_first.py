"""As `benchmarks.contenders`, for Unsloth: it patches the other libraries, and has to be imported before them."""

import unsloth  # noqa: F401, I001 - first

import sys

from benchmarks.contenders import main

if __name__ == "__main__":
    main(sys.argv[1])
