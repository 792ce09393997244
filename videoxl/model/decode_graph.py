"""Decoding one token as one CUDA graph: hundreds of kernels, launched at once.

A decoded token is 4 to 5 ms of GPU work at 7B; launching its kernels one by one takes the host twice as long. So the
whole step, from ids to logits, is captured once. What differs from token to token and from sequence to sequence (where
the cache lies, how long it is, positions) is read from device memory by the kernels of `videoxl/kernels/decode.py`: a
graph belongs to a model's weights and serves every sequence. Inputs and outputs are copied in and out under a lock.

Shape letters: B batch, V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from videoxl.kernels import KERNEL_HEAD_DIMS, can_run
from videoxl.model.cache import SummaryCache
from videoxl.model.transfer import send

_steps: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, bool], DecodeStep]] = weakref.WeakKeyDictionary()
_steps_lock = threading.Lock()
_capture_device: list[int] = []  # torch keeps one capture stream a process, on the device that captured first


def decode_step(model, input_ids: Tensor, mask: Tensor | None, cache: SummaryCache) -> DecodeStep | None:
    """The step for one token a row, or None where it does not apply (then `text_step` does the work)."""
    weight = model.model.embed_tokens.weight
    applies = (
        mask is None
        and input_ids.shape[1] == 1
        and can_run(weight.detach())
        and weight.device.index == torch.cuda.current_device()
        and _capture_device in ([], [weight.device.index])
        and not torch.is_grad_enabled()
        and not model.training
        and model.config._attn_implementation == "sdpa"
        and model.model.layers[0].self_attn.head_dim in KERNEL_HEAD_DIMS
        and getattr(model, "hf_quantizer", None) is None  # its kernels may not be capturable
        and not hasattr(model.model.layers[0], "_hf_hook")  # accelerate moves tensors between devices
        and not (hasattr(weight, "ds_id") or hasattr(weight, "_local_tensor"))  # spread by DeepSpeed or FSDP
        and all(layer.is_initialized for layer in cache.layers)
    )
    if not applies:
        return None
    kind = len(input_ids), cache.shared_prefix(0) is not None
    with _steps_lock:
        steps = _steps.setdefault(model, {})
        step = steps.get(kind)
        if step is None or not step.is_current(model):
            _capture_device[:] = [weight.device.index]
            step = steps[kind] = DecodeStep(model, *kind, capture=True)
    return step


class DecodeStep:
    """One token of every row through the decoder.

    Args:
        batch: rows B.
        shared: whether they share a prefix (`shared_prefix.py`).
        capture: make a CUDA graph at the first call; False runs the kernels one by one (the tests' way).
    """

    def __init__(self, model, batch: int, shared: bool, capture: bool):
        from videoxl.kernels.decode import ADDRESSES, DecodeAttention

        decoder = model.model
        weight = decoder.embed_tokens.weight
        attention = decoder.layers[0].self_attn
        config = model.config
        device = weight.device
        # Plain tensors also inside inference mode, since they outlive it.
        with torch.inference_mode(False), torch.no_grad():
            self._ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
            self._positions = torch.zeros_like(self._ids)
            self._lengths = torch.zeros(2, dtype=torch.int32, device=device)
            self._addresses = torch.zeros(len(decoder.layers), ADDRESSES, dtype=torch.long, device=device)
            self._attend = DecodeAttention(
                batch, config.num_attention_heads, config.num_key_value_heads, attention.head_dim, shared, device
            )
        self._model = weakref.ref(model)
        self._lock = threading.Lock()
        self._known_addresses: list[list[int]] = []
        self._linears = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
        self._last_attention = decoder.layers[-1].self_attn
        self._weights = self._weight_addresses()
        self._capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    def __call__(self, input_ids: Tensor, position_ids: Tensor, cache: SummaryCache) -> Tensor:
        """input_ids, position_ids [B, 1] -> logits [B, 1, V]; the cache grows by one position."""
        with self._lock:
            self._bind(cache)
            self._ids.copy_(input_ids)
            self._positions.copy_(position_ids.expand_as(self._ids))
            if not self._capture:
                return self._run()
            if self._graph is None:
                with torch.inference_mode(False), torch.no_grad():
                    self._make_graph()
            self._graph.replay()
            return self._logits.clone()

    def is_current(self, model) -> bool:
        """Whether the weights still lie where they lay when the graph was made."""
        return model.model.layers[-1].self_attn is self._last_attention and self._weight_addresses() == self._weights

    def _weight_addresses(self) -> list[int]:
        return [module.weight.data_ptr() for module in self._linears]

    def _bind(self, cache: SummaryCache) -> None:
        """Make room for one more position, and tell the kernels where the cache lies and how long it is."""
        lengths, addresses = [0, 0], []
        for index, layer in enumerate(cache.layers):
            keys, values, lengths[0] = layer.advance(1)
            row = _where(keys, values)
            prefix = cache.shared_prefix(index)
            if prefix is not None:
                lengths[1] = prefix[0].shape[2]
                row += _where(*prefix)
            addresses.append(row + [0] * (self._addresses.shape[1] - len(row)))
        self._lengths.copy_(send(torch.tensor(lengths, dtype=torch.int32), self._lengths.device))
        if addresses != self._known_addresses:
            self._addresses.copy_(send(torch.tensor(addresses), self._addresses.device))
            self._known_addresses = addresses

    def _run(self) -> Tensor:
        model = self._model()
        decoder = model.model
        hidden = decoder.embed_tokens(self._ids)
        rope = decoder.rotary_emb(hidden, self._positions)
        for layer, addresses in zip(decoder.layers, self._addresses):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (proj(normed) for proj in (attention.q_proj, attention.k_proj, attention.v_proj))
            attended = self._attend(query, key, value, rope, addresses, self._lengths, attention.scaling)
            hidden = hidden + attention.o_proj(attended)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return model.lm_head(decoder.norm(hidden))

    def _make_graph(self) -> None:
        """Run once on the side, where kernels are compiled and libraries allocate, then capture."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self._run()
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = self._run()
        self._graph = graph


def _where(keys: Tensor, values: Tensor) -> Sequence[int]:
    """Addresses of [B, N, M, D] tensors, and how many positions lie between two heads."""
    return [keys.data_ptr(), values.data_ptr(), keys.stride(1) // keys.stride(2)]
