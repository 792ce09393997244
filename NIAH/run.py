"""`python -m NIAH.run`, the published path of the needle test: it is `videoxl-niah` (`videoxl/benchmarks/niah`)."""

import sys

from videoxl.benchmarks.niah.run import main

if __name__ == "__main__":
    sys.exit(main())
