"""Decoding one token with few launches: CUDA graphs between the layers' attentions.

A decoded token is 5 ms of GPU work at 7B but hundreds of kernels; launching them one by one takes twice as long.
All the work whose shapes never change, from one layer's attention to the next one's, is captured once as a graph; only
writing the cache and attention, whose length grows, are launched as usual. The kernels stay the same, and so do the
results.

Graphs belong to a model's weights, not to a sequence: inputs and outputs are copied in and out under a lock.

Shape letters: B batch, N heads, D head dimension, V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videoxl.model.attention_backends import attend
from videoxl.model.cache import SummaryCache

_steps: weakref.WeakKeyDictionary[nn.Module, dict[int, DecodeStep]] = weakref.WeakKeyDictionary()
_steps_lock = threading.Lock()
_capture_device: list[int] = []  # torch keeps one capture stream a process, on the device that captured first


def decode_step(model, input_ids: Tensor, mask: Tensor | None) -> DecodeStep | None:
    """The captured step for one token a row, or None where it does not apply (then `text_step` does the work)."""
    weight = model.model.embed_tokens.weight
    applies = (
        mask is None
        and input_ids.shape[1] == 1
        and weight.is_cuda
        and weight.device.index == torch.cuda.current_device()
        and _capture_device in ([], [weight.device.index])
        and weight.dtype in (torch.float16, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not model.training
        and model.config._attn_implementation == "sdpa"
        and getattr(model, "hf_quantizer", None) is None  # its kernels may not be capturable
        and not hasattr(model.model.layers[0], "_hf_hook")  # accelerate moves tensors between devices
        and not (hasattr(weight, "ds_id") or hasattr(weight, "_local_tensor"))  # spread by DeepSpeed or FSDP
    )
    if not applies:
        return None
    with _steps_lock:
        steps = _steps.setdefault(model, {})
        step = steps.get(len(input_ids))
        if step is None or not step.is_current(model):
            _capture_device[:] = [weight.device.index]
            step = steps[len(input_ids)] = DecodeStep(model, len(input_ids), capture=True)
    return step


class DecodeStep:
    """One token of every row through the decoder, as segments with attention between them.

    Args:
        batch: rows B.
        capture: make CUDA graphs of the segments; False runs them as they are (the tests' way, on any device).
    """

    def __init__(self, model, batch: int, capture: bool):
        decoder = model.model
        weight = decoder.embed_tokens.weight
        attention = decoder.layers[0].self_attn
        # Plain tensors also inside inference mode, since they outlive it.
        with torch.inference_mode(False), torch.no_grad():
            self._ids = torch.zeros(batch, 1, dtype=torch.long, device=weight.device)
            self._positions = torch.zeros_like(self._ids)
            width = attention.o_proj.in_features
            self._attended = torch.zeros(batch, 1, width, dtype=weight.dtype, device=weight.device)
            self._lock = threading.Lock()
            self._attentions = [layer.self_attn for layer in decoder.layers]
            self._linears = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
            self._weights = self._addresses()
            self._segments: list[Callable[[], tuple]] = []
            self._outputs: list[tuple] = []
            # One side stream for all warm-ups: cuBLAS keeps a workspace of 32 MiB for every stream it ever saw.
            capturing = (torch.cuda.graph_pool_handle(), torch.cuda.Stream()) if capture else None
            for index in range(len(decoder.layers) + 1):
                self._add(self._segment(model, index), capturing)

    def __call__(self, input_ids: Tensor, position_ids: Tensor, cache: SummaryCache) -> Tensor:
        """input_ids, position_ids [B, 1] -> logits [B, 1, V]; the cache grows by one position."""
        with self._lock:
            self._ids.copy_(input_ids)
            self._positions.copy_(position_ids.expand_as(self._ids))
            for index, attention in enumerate(self._attentions):
                query, key, value = self._run(index)[:3]
                key, value = cache.update(key, value, index)
                output, _ = attend(attention, query, key, value, None, 0.0, cache.shared_prefix(index))
                self._attended.copy_(output.reshape(self._attended.shape))
            return self._run(len(self._attentions))[0].clone()

    def is_current(self, model) -> bool:
        """Whether the weights still lie where they lay when the graphs were made."""
        return model.model.layers[-1].self_attn is self._attentions[-1] and self._addresses() == self._weights

    def _addresses(self) -> list[int]:
        return [module.weight.data_ptr() for module in self._linears]

    def _segment(self, model, index: int) -> Callable[[], tuple]:
        """From the attention of layer `index - 1` (or the ids) to that of layer `index` (or the logits).

        Returns (query, key, value, hidden, cosine, sine), and (logits,) at the end.
        """
        decoder = model.model
        layers, norm, embed, rotary = decoder.layers, decoder.norm, decoder.embed_tokens, decoder.rotary_emb
        head = model.lm_head

        def run() -> tuple:
            if index == 0:
                hidden = embed(self._ids)
                rope = rotary(hidden, self._positions)
            else:
                layer, (*_, hidden, cos, sin) = layers[index - 1], self._outputs[index - 1]
                rope = cos, sin
                hidden = hidden + layer.self_attn.o_proj(self._attended)
                hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            if index == len(layers):
                return (head(norm(hidden)),)
            query, key, value, _ = layers[index].self_attn.rotated_heads(layers[index].input_layernorm(hidden), rope)
            return query, key, value, hidden, *rope

        return run

    def _add(self, segment: Callable[[], tuple], capturing: tuple | None) -> None:
        if capturing is None:
            self._segments.append(segment)
            self._outputs.append(segment())
            return
        pool, side = capturing
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            segment()  # libraries allocate their workspaces on first use, which must not be captured
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = segment()
        graph.replay()  # a capture computes nothing, and the next segment's first run reads these outputs
        self._segments.append(lambda: graph.replay() or outputs)
        self._outputs.append(outputs)

    def _run(self, index: int) -> tuple:
        outputs = self._segments[index]()
        self._outputs[index] = outputs
        return outputs
