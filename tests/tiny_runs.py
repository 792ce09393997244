"""The small model's training script as a user calls it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "assets" / "videoxl-tiny"


def run_tiny(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(ROOT / "scripts" / "train_tiny.sh"), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
