"""VNBench under its published path: it is `videoxl-vnbench` (`videoxl/benchmarks/vnbench_cli.py`)."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by its path, Python would look for modules in this folder, where `videoxl.py` is the plugin.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from videoxl.benchmarks.vnbench_cli import main

if __name__ == "__main__":
    sys.exit(main())
