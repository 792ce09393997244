"""Imported before anything that imports Triton: kernels run on the CPU, by its interpreter.

`TRITON_INTERPRET=0 python -m pytest tests/kernels tests/model/test_decode_graph.py` on a machine with a GPU runs the
tests of compiled kernels instead.
"""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")
COMPILED = torch.cuda.is_available() and os.environ["TRITON_INTERPRET"] == "0"

by_interpreter = pytest.mark.skipif(COMPILED, reason="the interpreter's tests were not asked for")
on_gpu = pytest.mark.skipif(not COMPILED, reason="compiled kernels need a GPU and TRITON_INTERPRET=0")
