"""The decoder with its visual front end (`model.*` of a checkpoint): one step reads text or some windows.

Shape letters: B batch, t tokens of a step without beacons, b beacons, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from videoxl.attention.backends import build_mask
from videoxl.cache.gradient import GradientCache
from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor, get_compressor
from videoxl.compression.plan import Window
from videoxl.compression.rows import RowLayout, RowPlan, WindowLayout
from videoxl.errors import ConfigError
from videoxl.kernels import KERNEL_HEAD_DIMS, can_run
from videoxl.model.configuration import VideoXLConfig, check_config
from videoxl.model.decoder.layers import BeaconAttention, BeaconDecoderLayer, FusedRMSNorm, SignedRotaryEmbedding
from videoxl.model.projector import build_projector
from videoxl.model.towers import VisionTower, build_vision_tower
from videoxl.utils.compat import CACHE
from videoxl.utils.transfer import send

BEACON = get_compressor("beacon")


class VideoXLModel(Qwen2Model):
    """Qwen2's decoder with beacon projections, a beacon embedding, a vision tower and a projector.

    `forward` is Qwen2's own and serves text; `text_step` and `windows_step` advance a `SummaryCache`.
    """

    config: VideoXLConfig
    _can_record_outputs = {"hidden_states": BeaconDecoderLayer, "attentions": BeaconAttention}
    _no_split_modules = ["BeaconDecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]

    def __init__(self, config: VideoXLConfig):
        check_config(config)
        super(Qwen2Model, self).__init__(config)  # Qwen2Model would build plain layers only to be replaced
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.beacon_embed_tokens = nn.Embedding(1, config.hidden_size)
        self.layers = nn.ModuleList(
            [BeaconDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = SignedRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.has_sliding_layers = False
        self.vision_tower = build_vision_tower(config)
        self.mm_projector = build_projector(config) if self.vision_tower is not None else None
        self.post_init()

    @property
    def tower(self) -> VisionTower:
        """The vision tower. Raises `ConfigError` where the checkpoint is a bare language model."""
        if self.vision_tower is None:
            raise ConfigError("this checkpoint names no vision tower, so it cannot read images; set mm_vision_tower")
        return self.vision_tower

    @property
    def projector(self) -> nn.Module:
        """Maps the tower's features to the decoder's width; it exists if there is a tower."""
        assert self.mm_projector is not None
        return self.mm_projector

    @property
    def input_device(self) -> torch.device:
        """The device for token ids and visual tokens.

        Found through `parameters()`: accessing a weight by name in a forward pass makes ZeRO-3 gather it at once, and
        count it as one more parameter of that pass.
        """
        return next(self.embed_tokens.parameters()).device

    def embed_beacon(self) -> Tensor:
        """The beacon embedding [1, 1, H].

        Calls the module instead of reading its weight: DeepSpeed and FSDP gather parameters when a module is called.
        """
        return self.beacon_embed_tokens(torch.zeros(1, 1, dtype=torch.long, device=self.input_device))

    def text_step(
        self, embeds: Tensor, cache: SummaryCache, position_ids: Tensor | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """Read text and append it to the cache.

        Args:
            embeds: [B, t, H].
            position_ids: [B, t] physical positions; None: they continue after the cache.
            key_mask: [B, M + t] with M stored positions, zero where a position is padding; None if none is.

        Returns:
            Hidden states [B, t, H] after the final norm (before it if the cache `defers_norm`).
        """
        return _last_hidden_state(self.text_output(embeds, cache, position_ids, key_mask))

    def text_output(
        self, embeds: Tensor, cache: SummaryCache, position_ids: Tensor | None, key_mask: Tensor | None, **wanted
    ) -> BaseModelOutputWithPast:
        """`text_step` with what transformers records on request (`output_hidden_states`, `output_attentions`)."""
        stored = cache.get_query_offset()
        if position_ids is None:
            position_ids = cache.next_position + torch.arange(embeds.shape[1], device=embeds.device).unsqueeze(0)
        return self._run(
            embeds,
            position_ids,
            cache,
            build_mask(self.config._attn_implementation, embeds.shape[1], stored + embeds.shape[1], key_mask, embeds),
            **wanted,
        )

    def windows_step(
        self,
        visual: Tensor,
        cache: SummaryCache,
        windows: Sequence[Window],
        gaps: Sequence[int] | None = None,
        compressor: Compressor | None = None,
    ) -> Tensor:
        """Read windows and keep the compressor's positions in the cache: the one path from visual tokens to cache.

        In each layer, a window needs only the positions that earlier windows have left in that layer. So all windows go
        through a layer's projections and MLP together, and only attention takes them one by one.

        Args:
            visual: [B, t, H], the projected visual tokens of all `windows`; a window with ratio 0 must be the only one.
            gaps: RoPE positions left out before each window, counted from the start of the sequence (training); None:
                the cache's `position_gap` before all.
            compressor: how tokens become positions; None: by beacons.

        Returns:
            Hidden states [B, T, H] after the final norm (see `text_step`) of the rows that `Compressor.token_of_row`
            describes: for beacons, of every visual token.
        """
        compressor = BEACON if compressor is None else compressor
        compresses = windows[0].ratio > 0
        rows = compressor.embed(self, visual, windows, cache) if compresses else visual
        plan = compressor.row_plan(windows) if compresses else None
        if plan is None:
            hidden = self.text_step(rows, cache) if rows.shape[1] else rows
        else:
            gaps = [cache.position_gap] * len(windows) if gaps is None else gaps
            hidden = self._planned_step(rows, cache, plan, gaps)
        cache.close_windows(windows, [compressor.num_kept(window) for window in windows])
        return hidden

    def _planned_step(self, grouped: Tensor, cache: SummaryCache, plan: RowPlan, gaps: Sequence[int]) -> Tensor:
        """Read the grouped rows [B, T, H] of windows; those that the plan keeps stay in the cache."""
        device, stored = grouped.device, cache.get_query_offset()
        permutation, indices, owners = plan.on(device)
        lengths, passing = plan.lengths, plan.num_passing
        kept = [number for _, number in lengths]
        before = np.cumsum([0, *(rows - number for rows, number in lengths[:-1])])
        offsets = send(torch.from_numpy(stored + np.array([np.array(gaps) - before, gaps])), device)
        in_memory = torch.arange(sum(kept), device=device) + offsets[1][owners[passing:]]
        positions = indices + offsets[0][owners]
        # One call for both kinds of positions: a window must call the same modules as text (see `GradientCache`).
        tables = self.rotary_emb(grouped, torch.cat([positions, in_memory]).unsqueeze(0))
        (cos, memory_cos), (sin, memory_sin) = (table.split([len(indices), sum(kept)], dim=1) for table in tables)
        layout = WindowLayout(
            num_passing=passing,
            own_projections=plan.own_projections,
            permutation=permutation,
            positions=indices,
            memory_rope=(memory_cos, memory_sin),
            lengths=lengths,
            blocks=self._kernel_blocks(lengths, grouped),
        )
        seen = np.cumsum([stored, *kept[:-1]]).tolist()
        masks = tuple(
            build_mask(self.config._attn_implementation, rows, length + rows, None, grouped)
            for (rows, _), length in zip(lengths, seen)
        )
        extra = {"rope": (cos, sin)} if isinstance(cache, GradientCache) else {}
        output = self._run(grouped, positions.unsqueeze(0), cache, masks, window=layout, **extra)
        return _last_hidden_state(output)[:, :passing]

    def _kernel_blocks(self, lengths: tuple[tuple[int, int], ...], hidden: Tensor) -> Tensor | None:
        """The layout's `blocks` for `window_attention`, or None if it does not run."""
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        if self.config._attn_implementation != "sdpa" or size not in KERNEL_HEAD_DIMS or not can_run(hidden):
            return None
        return _query_blocks(lengths, hidden.device)

    def _run(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        cache: SummaryCache,
        mask: Tensor | tuple[Tensor | None, ...] | None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        if isinstance(cache, GradientCache):
            return self._run_with_gradients(embeds, position_ids, cache, mask, **kwargs)
        # Qwen2Model uses a mask given by layer type as it is; otherwise it would build its own.
        return self(
            inputs_embeds=embeds,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: cache},
            **kwargs,
        )

    def _run_with_gradients(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        cache: GradientCache,
        mask: Tensor | tuple[Tensor | None, ...] | None,
        window: RowLayout | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        **_,
    ) -> BaseModelOutputWithPast:
        """The same layers, each a pure function of its input and the cache's chunks, so that it can be recomputed."""
        rope = self.rotary_emb(embeds, position_ids) if rope is None else rope
        if window is None and cache.uniform:
            window = RowLayout(embeds.shape[1])
        hidden = embeds
        for layer, stored in zip(self.layers, cache.layers):
            hidden, *chunk = layer(
                hidden,
                window=window,
                kv_chunks=tuple(stored.kv_chunks),
                position_embeddings=rope,
                attention_mask=mask,
            )
            stored.add(tuple(chunk))
        hidden = hidden if cache.defers_norm else self.norm(hidden)
        past: dict[str, Any] = {CACHE: cache}
        return BaseModelOutputWithPast(last_hidden_state=hidden, **past)


def _last_hidden_state(output: BaseModelOutputWithPast) -> Tensor:
    assert output.last_hidden_state is not None  # Optional in transformers' type only
    return output.last_hidden_state


@lru_cache(maxsize=8)
def _query_blocks(lengths: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    from videoxl.kernels.windows import query_blocks

    with torch.inference_mode(False):
        return send(query_blocks(lengths), device)
