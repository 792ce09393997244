"""`python -m videoxl.train`, also under `torchrun -m`."""

import sys

from videoxl.train.cli import main

sys.exit(main())
