"""`python -m NIAH.run`, published path of the needle test; the same as `videoxl-niah` (`videoxl/benchmarks/niah`)."""

import sys

from videoxl.benchmarks.niah.run import main

if __name__ == "__main__":
    sys.exit(main())
