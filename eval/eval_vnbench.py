"""VNBench under its published path; the same as `videoxl-vnbench` (`videoxl/benchmarks/vnbench_cli.py`)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # If run by its path, Python searches this folder for modules and takes the plugin `videoxl.py` for the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from videoxl.benchmarks.vnbench_cli import main

if __name__ == "__main__":
    sys.exit(main())
