"""The decoder with its visual front end (`model.*` of a checkpoint): a step of text or of some windows.

Shape letters: B batch, t tokens of a step without beacons, b beacons, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model

from videoxl.kernels import KERNEL_HEAD_DIMS, can_run
from videoxl.model.attention import (
    BeaconAttention,
    BeaconDecoderLayer,
    FusedRMSNorm,
    SignedRotaryEmbedding,
    WindowLayout,
)
from videoxl.model.attention_backends import build_mask
from videoxl.model.cache import SummaryCache
from videoxl.model.configuration import VideoXLConfig, check_config
from videoxl.model.gradient_cache import GradientCache
from videoxl.model.plan import WindowStep
from videoxl.model.projector import build_projector
from videoxl.model.transfer import send
from videoxl.model.vision_tower import build_vision_tower


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
    def input_device(self) -> torch.device:
        """Where token ids go and visual tokens are wanted.

        Found among `parameters()`: to name a weight inside a forward pass makes ZeRO-3 gather it there and then, and
        count it as one more parameter of that pass.
        """
        return next(self.embed_tokens.parameters()).device

    def embed_beacon(self) -> Tensor:
        """The beacon embedding [1, 1, H].

        By a call of the module, not by its weight: DeepSpeed and FSDP gather parameters when a module is called.
        """
        return self.beacon_embed_tokens(torch.zeros(1, 1, dtype=torch.long, device=self.input_device))

    def text_step(
        self, embeds: Tensor, cache: SummaryCache, position_ids: Tensor | None = None, key_mask: Tensor | None = None
    ) -> Tensor:
        """Read text and append it to the cache.

        Args:
            embeds: [B, t, H].
            position_ids: [B, t] physical positions; None: they follow on the cache.
            key_mask: [B, M + t], zero where a position is padding; None where none is.

        Returns:
            Hidden states [B, t, H] after the final norm.
        """
        return self.text_output(embeds, cache, position_ids, key_mask).last_hidden_state

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
        self, visual: Tensor, cache: SummaryCache, steps: Sequence[WindowStep], gaps: Sequence[int] | None = None
    ) -> Tensor:
        """Read windows, then leave in the cache what the plan says: their beacons, or all of one with ratio 0.

        In a layer a window needs the beacons that earlier windows have left in that layer, and nothing else of them. So
        all windows go through a layer's projections and MLP together, and only attention takes them one by one.

        Args:
            visual: [B, t, H], the projected visual tokens of all `steps`; a window with ratio 0 is the only one.
            gaps: RoPE positions left out before each window, counted from the start of the sequence (training); None:
                what the cache says, for all.

        Returns:
            Hidden states [B, t, H] of the visual tokens, after the final norm.
        """
        if steps[0].ratio == 0:
            hidden = self.text_step(visual, cache)
            cache.window_ratios.append(0)
            return hidden
        gaps = [cache.position_gap] * len(steps) if gaps is None else gaps
        beacon = cache.beacon if isinstance(cache, GradientCache) else None
        beacon = self.embed_beacon() if beacon is None else beacon
        kept = [step.num_beacons for step in steps]
        beacons = beacon.to(visual.dtype).expand(len(visual), sum(kept), -1)
        grouped = torch.cat([visual, beacons.to(visual.device)], dim=1)
        device, stored = grouped.device, cache.get_query_offset()
        order, places, owners = _window_indices(
            tuple((step.num_tokens, step.ratio, step.carry) for step in steps), device
        )
        before = np.cumsum([0, *(step.num_tokens for step in steps[:-1])])
        offsets = send(torch.from_numpy(stored + np.array([np.array(gaps) - before, gaps])), device)
        in_memory = torch.arange(sum(kept), device=device) + offsets[1][owners[visual.shape[1] :]]
        positions = places + offsets[0][owners]
        # One call for both kinds of positions: a window must call the same modules as text (see `GradientCache`).
        tables = self.rotary_emb(grouped, torch.cat([positions, in_memory]).unsqueeze(0))
        rope, memory_rope = zip(*(table.split([len(places), sum(kept)], dim=1) for table in tables))
        parts = tuple((step.num_tokens + number, number) for step, number in zip(steps, kept))
        blocks = self._kernel_blocks(parts, grouped)
        window = WindowLayout(visual.shape[1], order, places, memory_rope, parts, blocks)
        lengths = np.cumsum([stored, *kept[:-1]]).tolist()
        masks = tuple(
            build_mask(self.config._attn_implementation, rows, length + rows, None, grouped)
            for (rows, _), length in zip(parts, lengths)
        )
        extra = {"rope": rope} if isinstance(cache, GradientCache) else {}
        hidden = self._run(grouped, positions.unsqueeze(0), cache, masks, window=window, **extra).last_hidden_state
        cache.close_windows(steps)
        return hidden[:, : visual.shape[1]]

    def _kernel_blocks(self, parts: tuple[tuple[int, int], ...], hidden: Tensor) -> Tensor | None:
        """What `window_attention` needs of a layout, or None where it does not run."""
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        if self.config._attn_implementation != "sdpa" or size not in KERNEL_HEAD_DIMS or not can_run(hidden):
            return None
        return _query_blocks(parts, hidden.device)

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
        # A mask given by layer type is taken as it is; otherwise Qwen2Model would build one of its own.
        return self(
            inputs_embeds=embeds,
            attention_mask={"full_attention": mask},
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **kwargs,
        )

    def _run_with_gradients(
        self,
        embeds: Tensor,
        position_ids: Tensor,
        cache: GradientCache,
        mask: Tensor | tuple[Tensor | None, ...] | None,
        window: WindowLayout | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        **_,
    ) -> BaseModelOutputWithPast:
        """The same layers, each a pure function of its input and the cache's pieces, so that it can be run again."""
        rope = self.rotary_emb(embeds, position_ids) if rope is None else rope
        is_text = window is None
        if is_text and cache.uniform:
            window = WindowLayout(embeds.shape[1])
        hidden = embeds
        for layer, stored in zip(self.layers, cache.layers):
            hidden, *made = layer(
                hidden,
                window=window,
                pieces=tuple(stored.pieces),
                position_embeddings=rope,
                attention_mask=mask,
            )
            stored.add(tuple(made))
        hidden = hidden if cache.defers_norm else self.norm(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)


@lru_cache(maxsize=8)
def _window_indices(windows: tuple[tuple[int, int, int], ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`order` and `places` of a layout of windows (tokens, ratio, carry), and which window each grouped row is of.

    Kept for what comes next: with one ratio all chunks of a video have the same layout.
    """
    tokens, beacons, start = [], [], 0
    for window in windows:
        of_tokens, of_beacons = _window_places(*window)
        tokens.append(of_tokens + start)
        beacons.append(of_beacons + start)
        start += len(of_tokens) + len(of_beacons)
    places = np.concatenate([*tokens, *beacons])
    owners = np.concatenate([np.full(len(part), i) for parts in (tokens, beacons) for i, part in enumerate(parts)])
    with torch.inference_mode(False):  # an inference tensor kept here could not be used in training
        found = (torch.from_numpy(each) for each in (places.argsort(), places, owners))
        return tuple(send(each, device) for each in found)


@lru_cache(maxsize=8)
def _query_blocks(parts: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    from videoxl.kernels.windows import query_blocks

    with torch.inference_mode(False):
        return send(query_blocks(parts), device)


@lru_cache(maxsize=256)
def _window_places(num_tokens: int, ratio: int, carry: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of visual tokens and of beacons in one window's interleaved sequence, int64."""
    step = WindowStep(0, num_tokens, ratio, carry)
    return np.array(step.token_places(), dtype=np.int64), np.array(step.beacon_places(), dtype=np.int64)
