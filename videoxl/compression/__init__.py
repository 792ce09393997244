"""How visual tokens become cached positions: the plan of windows, the interface for methods, beacons and baselines."""

from videoxl.compression.base import COMPRESSORS, Compressor, TokenReducer, get_compressor
from videoxl.compression.plan import RatioChooser, Window

__all__ = ["COMPRESSORS", "Compressor", "RatioChooser", "TokenReducer", "Window", "get_compressor"]
