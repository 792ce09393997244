"""Beacons as a `Compressor`: additional rows among the visual tokens; only they stay in the cache.

Shape letters: B batch, t visual tokens of some windows, b beacons, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoxl.compression.base import Compressor
from videoxl.compression.beacon.layout import beacon_rows
from videoxl.compression.plan import Window
from videoxl.compression.rows import RowPlan


class BeaconCompressor(Compressor):
    """A beacon follows every `ratio` visual tokens and summarises them (Video-XL, section 3.2).

    Its input is the checkpoint's beacon embedding; in attention it uses the projections of `config.beacon_param`.
    """

    name = "beacon"

    def num_rows(self, window: Window) -> int:
        return window.num_tokens + window.num_groups

    def embed(self, decoder, visual: Tensor, windows: Sequence[Window], cache) -> Tensor:
        beacon = getattr(cache, "beacon", None)
        beacon = decoder.embed_beacon() if beacon is None else beacon
        number = sum(window.num_groups for window in windows)
        beacons = beacon.to(visual.dtype).expand(len(visual), number, -1)
        return torch.cat([visual, beacons.to(visual.device)], dim=1)

    def row_plan(self, windows: Sequence[Window]) -> RowPlan:
        return beacon_rows(tuple((window.num_tokens, window.ratio, window.remainder) for window in windows))

    def is_parameter(self, name: str) -> bool:
        return "beacon_" in name
