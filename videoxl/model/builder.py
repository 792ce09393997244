"""The loader under its published import path; it is defined in `videoxl.model.loading`."""

from videoxl.model.loading import load_pretrained_model

__all__ = ["load_pretrained_model"]
