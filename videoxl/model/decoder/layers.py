"""Qwen2 attention, MLP and decoder layer with separate projections for beacons.

In a window the hidden states are kept *grouped*: visual tokens first, beacons after them. Norms, projections and the
MLP do not care about order, so they work on two contiguous slices; only queries, keys and values are permuted to the
interleaved order that causal attention needs, and the attention output is permuted back.

Shape letters: B batch, T tokens of the step (beacons included), b beacons, H hidden, N query heads, G key/value heads,
D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm, Qwen2RotaryEmbedding

from videoxl.attention.backends import attend
from videoxl.attention.windows import attend_windows, can_attend_together
from videoxl.cache.gradient import KVChunk, StepView
from videoxl.cache.summary import SummaryCache
from videoxl.compression.beacon.projections import project
from videoxl.compression.rows import RowLayout, WindowLayout
from videoxl.kernels import can_run
from videoxl.model.configuration import VideoXLConfig
from videoxl.utils.compat import one_cache


class BeaconAttention(Qwen2Attention):
    """Qwen2 attention with separate projections for beacons (`config.beacon_param`; paper section 3.2)."""

    beacon_q_proj: nn.Module | None
    beacon_k_proj: nn.Module | None
    beacon_v_proj: nn.Module | None
    beacon_o_proj: nn.Module | None

    def __init__(self, config: VideoXLConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        for name in "qkvo":
            twin = None
            if name in config.beacon_param:
                base = getattr(self, f"{name}_proj")
                twin = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
            setattr(self, f"beacon_{name}_proj", twin)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | tuple[Tensor | None, ...] | None = None,
        cache=None,
        window: RowLayout | None = None,
        past_key_values=None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of one step.

        Args:
            hidden_states: [B, T, H], grouped where `window` is given.
            position_embeddings: cosine and signed sine [B or 1, T, D], in the same order as the rows.
            attention_mask: the result of `build_mask`, None for plain causal; with windows a tuple of one for each.
            cache: advanced by this call; transformers before 5.24 calls it `past_key_values`.
            window: the layout of windows, None for text.

        Returns:
            [B, T, H], and the attention weights if the back end returns them (of windows: the last one's).
        """
        cache = one_cache(cache, past_key_values)
        windows = window if isinstance(window, WindowLayout) else None
        if windows is not None and self._takes_kernel(hidden_states, cache, windows):
            output = self._windows_by_kernel(hidden_states, position_embeddings, cache, windows)
            return project(output, self.o_proj, self.beacon_o_proj, window), None
        query, key, value, beacons = self.rotated_heads(hidden_states, position_embeddings, window)
        dropout = self.attention_dropout if self.training else 0.0
        shared = None
        if isinstance(cache, SummaryCache):
            shared = cache.shared_prefix(self.layer_idx)
        if windows is not None and beacons is not None:
            masks = cast("tuple[Tensor | None, ...]", attention_mask)
            if isinstance(cache, StepView) and can_attend_together(
                self.config._attn_implementation, query, masks, dropout
            ):
                memory = cache.memory_with(beacons)
                output = attend_windows(query, key, value, memory, windows.lengths, self.scaling)
                return self._leave(output, window), None
            # The cache comes first in `zip`: so it is iterated to its end, where it writes the last window's beacons.
            seen = cache.update_windows(key, value, self.layer_idx, beacons, windows.lengths)
            queries = query.split([rows for rows, _ in windows.lengths], dim=2)
            outputs = [
                attend(self, part, keys, values, mask, dropout, shared, **kwargs)
                for (keys, values), part, mask in zip(seen, queries, masks)
            ]
            output = torch.cat([output for output, _ in outputs], dim=1) if len(outputs) > 1 else outputs[0][0]
            return self._leave(output, window), outputs[-1][1]
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        mask = cast("Tensor | None", attention_mask)
        output, weights = attend(self, query, key, value, mask, dropout, shared, **kwargs)
        return self._leave(output, window), weights

    def _takes_kernel(self, hidden_states: Tensor, cache, window: WindowLayout) -> bool:
        return (
            window.blocks is not None
            and can_run(hidden_states)
            and isinstance(cache, SummaryCache)
            and cache.shared_prefix(self.layer_idx) is None
        )

    def _windows_by_kernel(
        self, hidden_states: Tensor, rope: tuple[Tensor, Tensor], cache: SummaryCache, window: WindowLayout
    ) -> Tensor:
        """As the rest of `forward` for windows, in two kernels after the projections; returns [B, T, N D], grouped."""
        from videoxl.kernels.windows import window_attention

        query = project(hidden_states, self.q_proj, self.beacon_q_proj, window)
        key = project(hidden_states, self.k_proj, self.beacon_k_proj, window)
        value = project(hidden_states, self.v_proj, self.beacon_v_proj, window)
        num_beacons = sum(number for _, number in window.lengths)
        keys, values, stored = cache.advance(self.layer_idx, num_beacons, key, value, self.head_dim)
        assert window.blocks is not None  # see `_takes_kernel`
        return window_attention(
            query, key, value, rope, window.memory_rope, window.permutation, window.positions, window.blocks,
            (keys, values), stored, self.scaling,
        )  # fmt: skip

    def _leave(self, output: Tensor, window: RowLayout | None) -> Tensor:
        """Attention's output [B, T, N, D] in the order of the sequence -> [B, T, H] in that of the rows."""
        output = output.flatten(2)
        if isinstance(window, WindowLayout):
            output = output.index_select(1, window.positions)
        return project(output, self.o_proj, self.beacon_o_proj, window)

    def rotated_heads(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], window: RowLayout | None = None
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Queries, keys and values [B, N or G, T, D] in the order of the sequence, rotated to their positions in it.

        For windows also the beacons' keys, rotated to their final positions, and values [B, G, b, D]; else None.
        """
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = project(hidden_states, self.q_proj, self.beacon_q_proj, window).view(heads).transpose(1, 2)
        key = project(hidden_states, self.k_proj, self.beacon_k_proj, window).view(heads).transpose(1, 2)
        value = project(hidden_states, self.v_proj, self.beacon_v_proj, window).view(heads).transpose(1, 2)
        beacons = None
        if isinstance(window, WindowLayout):
            beacon_key, beacon_value = key[:, :, window.num_passing :], value[:, :, window.num_passing :]
            cos, sin = window.memory_rope
            beacons = rotate(beacon_key, cos.to(key.dtype), sin.to(key.dtype)), beacon_value
        num_heads = query.shape[1]
        if query.dtype != position_embeddings[0].dtype:  # under autocast
            position_embeddings = position_embeddings[0].to(query.dtype), position_embeddings[1].to(query.dtype)
        rotated = rotate(torch.cat([query, key], dim=1), *position_embeddings)
        query, key = rotated[:, :num_heads], rotated[:, num_heads:]
        if isinstance(window, WindowLayout):
            query, key, value = (x.index_select(2, window.permutation) for x in (query, key, value))
        return query, key, value, beacons


class SignedRotaryEmbedding(Qwen2RotaryEmbedding):
    """Qwen2's RoPE table with the sign of the rotation already in the sine's first half; see `rotate`."""

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [B or 1, T] -> cosine and signed sine, each [B or 1, T, D] in the dtype of x."""
        cos, sin = super().forward(x, position_ids)
        half = sin.shape[-1] // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """RoPE on x [B, N, T, D], in three kernels; transformers takes five.

    A decoded token is so little work that most time goes into launching its kernels.
    """
    rolled = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos.unsqueeze(1), rolled, signed_sin.unsqueeze(1))


class FusedRMSNorm(Qwen2RMSNorm):
    """Qwen2's norm in one kernel; it rounds once, after the weight, where Qwen2's rounds before it as well."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        # Under autocast the weight is wider than its input, for which PyTorch has no single kernel.
        weight = self.weight.to(hidden_states.dtype)
        return F.rms_norm(hidden_states, weight.shape, weight, self.variance_epsilon)


class BeaconMLP(Qwen2MLP):
    """Qwen2's gated MLP; with `mlp` in `beacon_param` beacons have their own up and down projections."""

    def __init__(self, config: VideoXLConfig):
        super().__init__(config)
        own = "mlp" in config.beacon_param
        self.beacon_up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False) if own else None
        self.beacon_down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False) if own else None

    def forward(self, x: Tensor, window: RowLayout | None = None) -> Tensor:
        gate, up = self.gate_proj(x), project(x, self.up_proj, self.beacon_up_proj, window)
        if can_run(gate, up, with_gradients=True) and self.config.hidden_act == "silu":
            from videoxl.kernels.activations import swiglu

            middle = swiglu(gate, up)
        else:
            middle = self.act_fn(gate) * up
        return project(middle, self.down_proj, self.beacon_down_proj, window)


class BeaconDecoderLayer(nn.Module):
    """A Qwen2 decoder layer that passes the window's layout to its attention and MLP.

    Not one of transformers' `GradientCheckpointingLayer`s: those remove the cache from a layer that is recomputed.
    `gradient_checkpointing_enable` still finds the two attributes below.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any] | None = None

    def __init__(self, config: VideoXLConfig, layer_idx: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.self_attn = BeaconAttention(config, layer_idx)
        self.mlp = BeaconMLP(config)
        self.input_layernorm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        window: RowLayout | None = None,
        kv_chunks: tuple[KVChunk, ...] | None = None,
        **kwargs,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """hidden_states [B, T, H] -> [B, T, H]; see `BeaconAttention.forward` for the rest.

        With `kv_chunks`, the cache as a `GradientCache` holds it, also returns the keys and values [B, G, t, D] that
        the step adds. They are outputs like any other, so that wrappers of the layer see gradients through them.
        """
        if kv_chunks is None:
            return self._compute(hidden_states, window, **kwargs)

        def run(hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            view = StepView(kv_chunks)
            output = self._compute(hidden_states, window, cache=view, **kwargs)
            keys, values = view.new_chunk
            return output, keys, values

        checkpoint = self._gradient_checkpointing_func
        if checkpoint is not None and self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(run, hidden_states)
        return run(hidden_states)

    def _compute(self, hidden_states: Tensor, window: RowLayout | None, **kwargs) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), window=window, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states), window)
