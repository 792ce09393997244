"""The loader under its published path; it lives in `videoxl.model.loading`."""

from videoxl.model.loading import load_pretrained_model

__all__ = ["load_pretrained_model"]
