"""One entry point for attention that hides the back end.

Every step of Video-XL is plain causal over `[cache, step]`, aligned to the lower right: query i of T sees the first
`K - T + i + 1` of K keys. transformers' built-in sdpa path assumes the upper left and truncates the keys where no mask
is given, so the alignment is handled here.

Shape letters: B batch, N query heads, G key/value heads, T queries, K keys, D head dimension.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward


class AttentionModule(Protocol):
    """The attributes of an attention layer that `attend` reads."""

    config: Any
    scaling: float


def attend(
    module: AttentionModule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    shared: tuple[Tensor, Tensor] | None = None,
    **kwargs,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention, aligned to the lower right.

    Args:
        module: the attention layer; it gives the back end's name, the scaling and the head groups.
        query: [B, N, T, D]. key, value: [B, G, K, D], already rotated.
        mask: the result of `build_mask`; None for plain causal attention.
        dropout: probability, 0 in inference.
        shared: keys and values [1, G, M, D] that all rows see before `key`; sdpa does not copy them in inference.

    Returns:
        [B, T, N, D], and the attention weights where the back end gives them (eager).
    """
    backend = module.config._attn_implementation
    if shared is not None and backend == "sdpa" and not _needs_grad(query, key, value):
        return attend_shared(query, shared, key, value, mask, module.scaling).transpose(1, 2), None
    if shared is not None:  # another back end, or gradients, which `attend_shared` does not compute
        key, value = (torch.cat([x.expand(len(y), -1, -1, -1), y], 2) for x, y in zip(shared, (key, value)))
    if backend == "sdpa":
        output = _sdpa(query, key, value, mask, module.scaling, dropout)
        return output.transpose(1, 2), None
    # Kernels take positions that do not increase (beacons come after the tokens) for several packed sequences.
    kwargs.pop("position_ids", None)
    function = ALL_ATTENTION_FUNCTIONS.get_interface(backend, eager_attention_forward)
    return function(module, query, key, value, mask, dropout=dropout, scaling=module.scaling, **kwargs)


def build_mask(backend: str, num_queries: int, num_keys: int, key_mask: Tensor | None, like: Tensor) -> Tensor | None:
    """The mask that a back end needs for lower-right causal attention, or None where it needs none.

    Args:
        num_queries, num_keys: T and K.
        key_mask: [B, K], zero for padding; None where no row is padded.
        like: a tensor with the device and dtype of the hidden states.

    Returns:
        [B or 1, 1, T, K]: bool for sdpa, else in the dtype of `like`, to be added to the scores; for
        flash_attention_2, `key_mask`.
    """
    if backend == "flash_attention_2":
        return key_mask
    if key_mask is None and backend == "sdpa":
        return None
    allowed = lower_right_causal(num_queries, num_keys, like.device)[None, None]
    if key_mask is not None:
        # A padded query would see no key and give NaN, so let it see itself; its output is not used.
        diagonal = torch.eye(num_queries, dtype=torch.bool, device=like.device)
        allowed = allowed & key_mask[:, None, None, :].bool()
        allowed[..., num_keys - num_queries :] |= diagonal
    if backend == "sdpa":
        return allowed
    return torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(
        ~allowed, torch.finfo(like.dtype).min
    )


def lower_right_causal(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[T, K], True where query i may see key j."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, dropout: float) -> Tensor:
    num_queries, num_keys = query.shape[2], key.shape[2]
    if mask is None and has_flash(query):
        # The operator behind F.scaled_dot_product_attention, called directly: here `is_causal` means the lower right,
        # and grouped heads are taken as they are. For one query the function would pick cuDNN, which builds a new
        # plan for every length of the cache (4 ms per layer and token).
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout, True, scale=scaling)[0]
    lower_right = num_queries > 1 and num_keys > num_queries
    by_parts = query.device.type == "cpu" and not _needs_grad(query, key, value)
    if mask is None and by_parts and (lower_right or num_queries == 1):
        return _part(query, key, value, lower_right, scaling)[0]
    if mask is None and lower_right:
        mask = lower_right_causal(num_queries, num_keys, query.device)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and num_queries > 1,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def has_flash(query: Tensor) -> bool:
    """Whether the flash operator takes a query: half precision, a supported head dimension, Ampere or newer."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16):
        return False
    return query.shape[3] % 8 == 0 and query.shape[3] <= 256 and _capability(query.device) >= (8, 0)


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def can_share_prefix(backend: str, keys: Tensor) -> bool:
    """Whether `attend_shared` has kernels for keys like these."""
    return backend == "sdpa" and (keys.device.type == "cpu" or has_flash(keys))


def attend_shared(
    query: Tensor, shared: tuple[Tensor, Tensor], key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Attention to a prefix that all rows share and to each row's own keys, which end with this step's.

    The prefix is read once for all rows and all heads of a group: their queries become further queries of one head.

    Args:
        query: [B, N, T, D]. shared: keys and values [1, G, M, D], seen by every query. key, value: [B, G, t + T, D].
        mask: [B or 1, 1, T, M + t + T], True where a query may see a key, or None for lower-right causal.

    Returns:
        [B, N, T, D].
    """
    rows, heads, steps, dim = query.shape
    grouped = query.unflatten(1, (shared[0].shape[1], -1)).transpose(0, 1)  # [G, B, N / G, T, D]
    output, lse = _part(grouped.reshape(1, len(grouped), -1, dim), *shared, False, scaling)
    output = output.view(grouped.shape).transpose(0, 1).reshape(query.shape)
    lse = lse.view(grouped.shape[:-1]).transpose(0, 1).reshape(rows, heads, steps)
    own_mask = None if mask is None else mask[..., -key.shape[2] :]
    return _merge(output, lse, *_part(query, key, value, steps > 1, scaling, own_mask))[0]


def _part(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scaling: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, [B, N, T, D], and the logarithm of its sum of exponentials, float32 [B, N, T].

    Args:
        causal: aligned to the lower right. mask: bool, used instead of `causal`.
    """
    if mask is None and has_flash(query):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scaling)[:2]
    past = key.shape[2] - query.shape[2]
    if mask is None and causal and past > 0:
        # No mask for the keys before the step, causal for its own: a T x K mask would cost memory and the fast kernel.
        stored = _part(query, key[:, :, :past], value[:, :, :past], False, scaling)
        return _merge(*stored, *_part(query, key[:, :, past:], value[:, :, past:], True, scaling))
    groups = query.shape[1] // key.shape[1]
    if query.device.type == "cpu" and mask is None and not causal and groups > 1:
        # Without a mask, the heads of a group can be further queries of one head, so no key is repeated.
        together = query.unflatten(1, (-1, groups)).flatten(2, 3)
        output, lse = _part(together, key, value, False, scaling)
        return output.reshape(query.shape), lse.reshape(query.shape[:-1])
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    if query.device.type == "cpu":
        if mask is not None:
            mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, float("-inf"))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, 0.0, causal and mask is None, attn_mask=mask, scale=scaling)
    return _part_in_float32(query, key, value, mask, scaling)


def _part_in_float32(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """`_part` step by step, for rows of unequal length on a GPU: no kernel there takes a mask and returns the sum.

    Their texts are short. Scores in 16 bits would be off by whole units where keys have large biases, as Qwen2's do.
    """
    scores = _exact(query) @ _exact(key).transpose(2, 3) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.softmax(-1) @ _exact(value)).to(value.dtype), scores.logsumexp(-1)


def _merge(output: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge attention to two sets of keys, each as `_part` returns it, into attention to both."""
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)  # weight of the other in the joint softmax
    return torch.lerp(_exact(output), _exact(other), share).to(output.dtype), torch.logaddexp(lse, other_lse)


def _exact(tensor: Tensor) -> Tensor:
    """In float32, or in float64 if it is that."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
