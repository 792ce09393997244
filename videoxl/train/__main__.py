"""`python -m videoxl.train`, also under `torchrun -m`."""

import sys

from videoxl.train.run import main

sys.exit(main())
