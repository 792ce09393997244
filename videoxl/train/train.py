"""The program under its published path, `deepspeed videoxl/train/train.py ...`: it is `python -m videoxl.train`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Run by its path, Python would look for modules in this folder instead of the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from videoxl.train.cli import main

    sys.exit(main())
