"""`python -m NIAH.make_data`: it lives in `videoxl/synth/niah_data.py`."""

import sys

from videoxl.synth.niah_data import main

if __name__ == "__main__":
    sys.exit(main())
