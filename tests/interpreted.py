"""Imported before anything that imports Triton: without a GPU its kernels run on the CPU, by its interpreter."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
