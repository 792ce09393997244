"""`python -m NIAH.plot RESULTS`, implemented in `videoxl/benchmarks/niah`."""

import sys

from videoxl.benchmarks.niah.plot import main

if __name__ == "__main__":
    sys.exit(main())
