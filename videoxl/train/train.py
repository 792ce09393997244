"""`python -m videoxl.train` under its published path: `deepspeed videoxl/train/train.py ...`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # If this file is run by its path, Python searches this folder for modules instead of the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    from videoxl.train.cli import main

    sys.exit(main())
