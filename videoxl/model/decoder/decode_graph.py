"""Decoding one token as one CUDA graph: hundreds of kernels, launched at once.

A decoded token is 4 to 5 ms of GPU work at 7B; launching its kernels one by one takes the host twice as long. So the
whole step, from ids to logits, is captured once. The kernels of `videoxl/kernels/decode.py` read what changes
between tokens and sequences (address and length of the cache, positions) from device memory, so a graph belongs to a
model's weights and serves every sequence. Inputs and outputs are copied in and out under a lock.

Between two tokens transformers' loop inspects each one on the host, about a millisecond in which the GPU would be
idle. In a greedy answer the next token is already known: its step starts at once, on a separate stream (`speculate`).
The result is used if the loop asks for exactly that token, and discarded otherwise.

Shape letters: B batch, V vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videoxl.cache.summary import SummaryCache
from videoxl.compression.beacon.projections import is_plain_linear
from videoxl.kernels import KERNEL_HEAD_DIMS, can_run
from videoxl.model.decoder.fp8 import Fp8Linear
from videoxl.utils.transfer import send

_steps: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, bool], DecodeStep]] = weakref.WeakKeyDictionary()
_steps_lock = threading.Lock()
_speculation = threading.local()  # `misses`, inside `speculate`: tokens in this thread that were not the expected ones
MOST_MISSES = 3  # after these, stop: the answer is not greedy, something else chooses its tokens
_capture_device: list[int] = []  # torch keeps one capture stream per process, on the device that captured first


def decode_step(model, input_ids: Tensor, mask: Tensor | None, cache: SummaryCache) -> DecodeStep | None:
    """The step for one token per row, or None if it does not apply (then the caller uses `text_output`)."""
    weight = model.model.embed_tokens.weight
    applies = (
        mask is None
        and input_ids.shape[1] == 1
        and can_run(weight.detach())
        and _capture_device in ([], [weight.device.index])
        and not torch.is_grad_enabled()
        and not model.training
        and model.config._attn_implementation == "sdpa"
        and model.model.layers[0].self_attn.head_dim in KERNEL_HEAD_DIMS
        and model.config.hidden_act == "silu"
        and getattr(model, "hf_quantizer", None) is None  # its kernels may not be capturable
        and not hasattr(model.model.layers[0], "_hf_hook")  # accelerate moves tensors between devices
        and not (hasattr(weight, "ds_id") or hasattr(weight, "_local_tensor"))  # sharded by DeepSpeed or FSDP
        and all(layer.has_storage for layer in cache.layers)
    )
    if not applies:
        return None
    kind = len(input_ids), cache.shared_prefix(0) is not None
    with _steps_lock:
        steps = _steps.setdefault(model, {})
        step = steps.get(kind)
        if step is not None and step.serves(cache):  # its weights were checked when this sequence began
            return step
        if not is_capturable(model):
            return None
        if step is None or not step.is_current(model):
            _capture_device[:] = [weight.device.index]
            step = steps[kind] = DecodeStep(model, *kind, capture=True)
    return step


def is_capturable(model) -> bool:
    """Whether a replay does all that a call does: no adapter that can be switched off, no hook of a user's."""
    layers = model.model.layers
    parts = [model.model.norm, model.lm_head, *(part for layer in layers for part in layer.modules())]
    kinds = [kind for part in parts for kind in (part._forward_hooks, part._forward_pre_hooks)]
    # transformers leaves its own hooks on layers whose states were once asked for; they do nothing by themselves.
    hooked = any(
        not getattr(hook, "__module__", "").startswith("transformers.") for kind in kinds for hook in kind.values()
    )
    return not hooked and all(type(product) in (nn.Linear, Fp8Linear) for product in _products(model))


def _products(model) -> list[nn.Module]:
    """Projections of all decoder layers: every child of attention and MLP that has a weight."""
    parts = [part for layer in model.model.layers for part in (layer.self_attn, layer.mlp)]
    return [child for part in parts for child in part.children() if hasattr(child, "weight")]


@contextmanager
def speculate(model) -> Iterator[None]:
    """In this thread, steps of `model` start to compute the next token of an answer that should be greedy.

    Inside, ask only for tokens of one sequence, and do not touch its cache otherwise.
    """
    before, _speculation.misses = getattr(_speculation, "misses", None), 0
    try:
        yield
    finally:
        if before is None:
            del _speculation.misses
        else:  # one answer inside another's loop
            _speculation.misses = before
        for step in list(_steps.get(model, {}).values()):
            step.settle()


class DecodeStep:
    """One token of every row through the decoder.

    Args:
        batch: rows B.
        shared: whether they share a prefix (`shared_prefix.py`).
        capture: capture a CUDA graph at the first call; False runs the kernels one by one (for tests).
    """

    def __init__(self, model, batch: int, shared: bool, capture: bool):
        from videoxl.kernels.decode import ADDRESSES, DecodeAttention
        from videoxl.kernels.thin_products import MOST_ROWS, thin_product

        decoder = model.model
        weight = decoder.embed_tokens.weight
        attention = decoder.layers[0].self_attn
        config = model.config
        device = weight.device
        # No inference tensors, even in inference mode, since they outlive it.
        with torch.inference_mode(False), torch.no_grad():
            self._ids = torch.zeros(batch, 1, dtype=torch.long, device=device)
            self._positions = torch.zeros_like(self._ids)
            self._lengths = torch.zeros(2, dtype=torch.int32, device=device)
            self._addresses = torch.zeros(len(decoder.layers), ADDRESSES, dtype=torch.long, device=device)
            self._attend = DecodeAttention(
                batch, config.num_attention_heads, config.num_key_value_heads, attention.head_dim, shared, device
            )
        is_thin = batch <= MOST_ROWS and all(map(is_plain_linear, _products(model)))
        self._product = thin_product if is_thin else plain_product
        self._model = weakref.ref(model)
        self._lock = threading.Lock()
        self._cache: Callable[[], SummaryCache | None] = lambda: None
        self._known_addresses: list[list[int]] = []
        self._weights = _addresses_of_weights(model)
        self._capture = capture
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)
        self._side = torch.cuda.Stream() if capture else None
        self._finished: torch.cuda.Event | None = None
        self._begun: tuple[Callable[[], SummaryCache | None], int, Tensor] | None = None

    def __call__(self, input_ids: Tensor, position_ids: Tensor, cache: SummaryCache) -> Tensor:
        """input_ids, position_ids [B, 1] -> logits [B, 1, V]; the cache grows by one position."""
        with self._lock:
            if self._finished is not None:  # perhaps by another thread, on another stream
                torch.cuda.current_stream().wait_event(self._finished)
            logits = self._take_speculated(input_ids, cache)
            if logits is None:
                self._bind(cache)
                self._advance(cache)
                self._ids.copy_(input_ids)
                self._positions.copy_(position_ids.expand_as(self._ids))
                self._compute()
                logits = self._logits.clone()
            if getattr(_speculation, "misses", MOST_MISSES) < MOST_MISSES:
                self._begin_next(cache, logits)
            if self._side is not None:
                self._finished = torch.cuda.current_stream().record_event()
            return logits

    def settle(self) -> None:
        """Discard the speculated step; later work waits until it has finished."""
        with self._lock:
            self._wait_for_side()
            if self._begun is not None:
                self._forget(self._begun[0]())
            self._begun = None

    def _begin_next(self, cache: SummaryCache, logits: Tensor) -> None:
        if not all(layer.has_room_for(1) for layer in cache.layers):
            return  # a speculated token is not worth a copy of the cache
        best = logits[:, -1].argmax(dim=-1, keepdim=True)
        self._bind(cache)
        self._ids.copy_(best)
        self._positions.add_(1)
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side) if self._side is not None else nullcontext():
            self._compute()
        self._begun = weakref.ref(cache), cache.get_query_offset(), best

    def _take_speculated(self, input_ids: Tensor, cache: SummaryCache) -> Tensor | None:
        """The logits after `input_ids` if the speculated step was for it; else None."""
        if self._begun is None:
            return None
        (begun_for, length, best), self._begun = self._begun, None
        is_it = begun_for() is cache and cache.get_query_offset() == length
        is_it = is_it and self._known_addresses == [layer.addresses() for layer in cache.layers]
        is_it = is_it and torch.equal(best, input_ids)  # compares on the host while the step runs
        self._wait_for_side()
        if not is_it:
            self._forget(begun_for())
            if hasattr(_speculation, "misses"):
                _speculation.misses += 1
            return None
        self._advance(cache)
        return self._logits.clone()

    def _wait_for_side(self) -> None:
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)

    @staticmethod
    def _advance(cache: SummaryCache) -> None:
        for layer in cache.layers:
            layer.advance(1)

    @staticmethod
    def _forget(cache: SummaryCache | None) -> None:
        for layer in [] if cache is None else cache.layers:
            layer.forget_scratch()

    def _compute(self) -> None:
        if not self._capture:
            self._logits = self._run()
            return
        if self._graph is None:
            with torch.inference_mode(False), torch.no_grad():
                self._make_graph()
        assert self._graph is not None
        self._graph.replay()

    def is_current(self, model) -> bool:
        """Whether the weights still have the addresses they had when this step was created."""
        return _addresses_of_weights(model) == self._weights

    def serves(self, cache: SummaryCache) -> bool:
        """Whether the last step used this cache: then the model's weights were checked when its sequence began."""
        return self._cache() is cache

    def _bind(self, cache: SummaryCache) -> None:
        """Make room for one more position, and give the kernels the addresses and lengths of the cache."""
        for layer in cache.layers:
            layer.room_for(1)
        prefix = cache.shared_prefix(0)
        in_prefix = 0 if prefix is None else prefix[0].shape[2]
        lengths = torch.tensor([cache.get_query_offset() - in_prefix, in_prefix], dtype=torch.int32)
        self._lengths.copy_(send(lengths, self._lengths.device))
        addresses = [layer.addresses() for layer in cache.layers]
        if addresses != self._known_addresses:
            self._addresses.copy_(send(torch.tensor(addresses), self._addresses.device))
            self._known_addresses = addresses
        self._cache = weakref.ref(cache)

    def _run(self) -> Tensor:
        model = self._model()
        assert model is not None  # it is called by the model
        decoder, product = model.model, self._product
        hidden = decoder.embed_tokens(self._ids)
        rope = decoder.rotary_emb(hidden, self._positions)
        for layer, addresses in zip(decoder.layers, self._addresses):
            attention, mlp = layer.self_attn, layer.mlp
            projections = attention.q_proj, attention.k_proj, attention.v_proj
            qkv = product(layer.input_layernorm(hidden), projections)
            attended = self._attend(qkv, rope, addresses, self._lengths, attention.scaling)
            hidden = product(attended, (attention.o_proj,), residual=hidden)
            middle = product(layer.post_attention_layernorm(hidden), (mlp.gate_proj, mlp.up_proj), gated=True)
            hidden = product(middle, (mlp.down_proj,), residual=hidden)
        return model.lm_head(decoder.norm(hidden))

    def _make_graph(self) -> None:
        """Run once on the side stream, so that kernels are compiled and libraries allocate, then capture."""
        assert self._side is not None
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._run()
        self._wait_for_side()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = self._run()
        self._graph = graph


def plain_product(
    x: Tensor,
    linears: Sequence[nn.Module],
    residual: Tensor | None = None,
    gated: bool = False,
) -> Tensor:
    """`thin_product` with PyTorch's operations: for more rows, and for layers in FP8."""
    made = [linear(x) for linear in linears]
    output = F.silu(made[0]) * made[1] if gated else torch.cat(made, dim=-1) if len(made) > 1 else made[0]
    return output if residual is None else residual + output


def _addresses_of_weights(model) -> list[int]:
    parts = (*model.model.layers, model.model.embed_tokens, model.model.norm, model.lm_head)
    return [x.data_ptr() for part in parts for x in (*part.parameters(), *part.buffers())]
