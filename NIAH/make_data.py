"""`python -m NIAH.make_data`, implemented in `videoxl/synth/niah_data.py`."""

import sys

from videoxl.synth.niah_data import main

if __name__ == "__main__":
    sys.exit(main())
