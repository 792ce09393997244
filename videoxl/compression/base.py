"""The interface of compression methods, which turn visual tokens into cached positions.

There is one path from visual tokens to cache (`VideoXLModel.windows_step`), for inference, training and evaluation. It
asks a `Compressor` for the rows that go through the decoder, their positions, and which of them stay. A new method is
a class and a registration; `baselines.py` has the shortest ones.

Shape letters: B batch, t visual tokens of some windows, T decoder rows of these windows, H hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from videoxl.compression.plan import Window
from videoxl.errors import ConfigError, PlanError
from videoxl.utils.registry import Registry

if TYPE_CHECKING:
    from videoxl.compression.rows import RowPlan

DEFAULT = "beacon"


class Compressor(ABC):
    """Turns windows of visual tokens into cached positions, one for every full group of `ratio` tokens.

    A window with ratio 0 is not compressed by any method: its tokens are read like text, and all of them stay.

    Attributes:
        name: the name users select it by, also stored in a memory's file.
        fixed_ratio: the only ratio it knows; None: any.
    """

    name: ClassVar[str]
    fixed_ratio: ClassVar[int | None] = None

    def resolve_ratio(self, ratio: int | None) -> int | None:
        """The ratio to use: the method's only one, or the one asked for. Raises `PlanError` if they differ."""
        if self.fixed_ratio is None:
            return ratio
        if ratio not in (None, self.fixed_ratio):
            raise PlanError(f"compressor {self.name!r} works at ratio {self.fixed_ratio} alone, not at {ratio}")
        return self.fixed_ratio

    def num_kept(self, window: Window) -> int:
        """Positions that stay in the cache after a window."""
        return window.num_groups if window.ratio else window.num_tokens

    @abstractmethod
    def num_rows(self, window: Window) -> int:
        """Rows that go through the decoder for a window: what it costs."""

    def has_rows(self, windows: Sequence[Window]) -> bool:
        """Whether the decoder has anything to read for windows."""
        return any(self.num_rows(window) if window.ratio else window.num_tokens for window in windows)

    @abstractmethod
    def embed(self, decoder, visual: Tensor, windows: Sequence[Window], cache) -> Tensor:
        """The rows [B, T, H] that go through the decoder.

        Args:
            decoder: the `VideoXLModel`, for embeddings that a method has in the checkpoint.
            visual: [B, t, H], the projected visual tokens of `windows`, all of which have a ratio above 0.
            cache: the cache that earlier windows have filled.
        """

    def row_plan(self, windows: Sequence[Window]) -> RowPlan | None:
        """The rows' positions, and which rows stay; None: they are read like text, in order, and all stay."""
        return None

    def token_of_row(self, windows: Sequence[Window]) -> list[int] | None:
        """For each row whose hidden state `windows_step` returns, the visual token (of `visual`) that it stands for.

        Training needs it to assign labels to rows. None: there is a row for every token, in order.
        """
        return None

    def spans(self, window: Window) -> list[tuple[int, int]]:
        """The visual tokens that each kept position summarises, as half-open ranges of the visual span."""
        if not window.ratio:
            return [(token, token + 1) for token in range(window.start, window.stop)]
        return window.group_spans()

    def is_parameter(self, name: str) -> bool:
        """Whether a parameter of the model, by its name, belongs to this method."""
        return False


class TokenReducer(Compressor):
    """A method without parameters that reduces the number of tokens before the decoder reads them."""

    def num_rows(self, window: Window) -> int:
        return self.num_kept(window)

    @abstractmethod
    def reduce(self, tokens: Tensor, window: Window) -> Tensor:
        """The tokens [B, t, H] of one window with a ratio above 0 -> [B, num_kept(window), H]."""

    def embed(self, decoder, visual: Tensor, windows: Sequence[Window], cache) -> Tensor:
        parts = visual.split([window.num_tokens for window in windows], dim=1)
        rows = [self.reduce(part, window) for part, window in zip(parts, windows)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def token_of_row(self, windows: Sequence[Window]) -> list[int]:
        first = windows[0].start
        return [stop - 1 - first for window in windows for _, stop in self.spans(window)]


COMPRESSORS: Registry[type[Compressor]] = Registry(
    "compressor",
    "videoxl.compressors",
    {
        "beacon": "videoxl.compression.beacon.compressor:BeaconCompressor",
        "none": "videoxl.compression.baselines:KeepAll",
        "drop": "videoxl.compression.baselines:DropTokens",
        "mean": "videoxl.compression.baselines:MeanOfTokens",
    },
)


def get_compressor(name: str | Compressor | None = None) -> Compressor:
    """The compressor of that name; None: the checkpoint's own method. Raises `ConfigError` for an unknown one."""
    if isinstance(name, Compressor):
        return name
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"compressor is {name!r}; give a name or a Compressor object")
    return COMPRESSORS.get(DEFAULT if name is None else name)()


def check_registered(compressor: Compressor) -> None:
    """Raise `ConfigError` unless the name is registered for this class: a file that names it could not be loaded."""
    if compressor.name not in COMPRESSORS.names() or COMPRESSORS.get(compressor.name) is not type(compressor):
        raise ConfigError(
            f"compressor {compressor.name!r} is not registered, so a file that names it could not be loaded; register "
            f"{type(compressor).__name__} with COMPRESSORS.register"
        )
