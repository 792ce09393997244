"""Video-XL for a checkout of lmms-eval: put this file into `lmms_eval/models/simple/` and add the line
`"videoxl": "VideoXL",` to `AVAILABLE_SIMPLE_MODELS` in `lmms_eval/models/__init__.py`. The package must be installed.

If lmms-eval is installed from PyPI, this file is not needed: `pip install -e ".[eval]"`.
"""

from videoxl.benchmarks.lmms import VideoXL

__all__ = ["VideoXL"]
