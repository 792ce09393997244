"""Describes a run without training: plan, memory, and the first batch as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.model.loss import TRAINED_AT_ONCE
from videoxl.model.runner import group_limit
from videoxl.train.config import TrainingArguments, compute_dtype
from videoxl.train.data.dataset import VideoXLDataset
from videoxl.train.lora import base_of
from videoxl.train.trainable import part_of
from videoxl.train.trainer import VideoXLTrainer

_GIB = 1 << 30
_ADAM = 12  # bytes per trainable parameter: float32 weight and two moments


@dataclass(frozen=True)
class TrainingMemory:
    """Estimated bytes on one device; `activations` are those of a batch of the longest sample."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(model: nn.Module, dataset: VideoXLDataset, training: TrainingArguments) -> TrainingMemory:
    """Estimate weights, gradients, optimizer states and activations kept for the backward pass.

    The first three follow from the parameter counts, ZeRO stage and offload. Activations are, for the longest sample,
    the inputs of every decoder layer (all intermediate values without checkpointing), the cache's keys and values, the
    features, the intermediate values of one layer, and the logits.
    """
    stage, offload = _zero(training)
    world = max(1, training.world_size)
    all_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    learning_bytes = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    size = compute_dtype(training).itemsize
    config = base_of(model).config
    longest = max((plan.length for plan in dataset.plans), default=0)
    visual = max((plan.num_visual for plan in dataset.plans), default=0)
    smallest = min(config.active_ratios)
    rows = longest + (visual // smallest if smallest else 0)
    batch = training.per_device_train_batch_size
    window = config.beacon_window + (config.beacon_window // smallest if smallest else 0)
    at_once = group_limit(config, batch, TRAINED_AT_ONCE) if any(config.active_ratios) else 1
    at_once = min(at_once, -(-visual // config.beacon_window))
    window_rows = min(rows, max(1, at_once) * window)
    kv = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    per_row = config.num_hidden_layers * config.hidden_size
    work = window_rows * (6 * config.hidden_size + 4 * config.intermediate_size)
    work += at_once * (longest - visual + (visual // smallest if smallest else visual) + window) * kv  # keys, joined
    if not training.checkpoint_windows:
        per_row += config.num_hidden_layers * (5 * config.hidden_size + 3 * config.intermediate_size)
    logits = 3 * 4 * config.vocab_size * min(1024, max((plan.suffix for plan in dataset.plans), default=0))
    kept = config.num_hidden_layers * kv * (longest - visual + (visual // smallest if smallest else visual))
    activations = batch * (rows * per_row + kept + 2 * visual * config.hidden_size + work) * size + batch * logits
    # Without DeepSpeed, trainable weights are mostly float32, and autocast also keeps a 16-bit copy during a pass;
    # gradients and AdamW's two states have the dtype of the weights.
    casts = learning * size if not stage and learning_bytes > learning * size else 0
    sharded = world if stage >= 3 else 1
    return TrainingMemory(
        weights=all_bytes // sharded + casts if not (offload and stage >= 3) else 0,
        gradients=(learning * size if stage else learning_bytes) // (world if stage >= 2 else 1),
        optimizer=0 if offload else (learning * _ADAM if stage else 2 * learning_bytes) // (world if stage else 1),
        activations=activations,
    )


def _zero(training: TrainingArguments) -> tuple[int, bool]:
    if not training.deepspeed:
        return 0, False
    zero = training.hf_deepspeed_config.config.get("zero_optimization", {})
    return zero.get("stage", 0), (zero.get("offload_optimizer") or {}).get("device", "none") != "none"


def describe_run(trainer: VideoXLTrainer, tokenizer) -> str:
    """Plan, memory estimate and first batch, as text to print."""
    args, dataset = trainer.args, trainer.train_dataset
    model, config = trainer.model, base_of(trainer.model).config
    learning = Counter()
    for name, parameter in model.named_parameters():
        learning[part_of(name)] += parameter.numel() if parameter.requires_grad else 0
    loader = trainer.get_train_dataloader()
    steps = -(-len(loader) // args.gradient_accumulation_steps)
    total = args.max_steps if args.max_steps > 0 else int(steps * args.num_train_epochs)
    windows = Counter(plan.num_windows(config.beacon_window) for plan in dataset.plans)
    memory = estimate_memory(model, dataset, args)
    effective = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    lines = [
        f"samples      {len(dataset)} ({_kinds(dataset)}); unreadable {len(dataset.unreadable)}, too long "
        f"{len(dataset.too_long)}, left out by grouping {loader.batch_sampler.num_left_out}",
        f"steps        {total} of up to {effective} samples ({args.per_device_train_batch_size} a device x "
        f"{args.gradient_accumulation_steps} accumulated x {args.world_size} process(es)), "
        f"{args.num_train_epochs:g} epoch(s)",
        f"compression  {_compression(config)}",
        f"windows      {', '.join(f'{n}: {windows[n]} samples' for n in sorted(windows)[:12])}",
        f"learning     {', '.join(f'{part} {number / 1e6:.2f} M' for part, number in learning.items() if number)}",
        f"memory       about {memory.total / _GIB:.2f} GiB a device: weights {memory.weights / _GIB:.2f}, "
        f"gradients {memory.gradients / _GIB:.2f}, optimizer {memory.optimizer / _GIB:.2f}, "
        f"longest sample {memory.activations / _GIB:.2f}",
    ]
    if "classes" not in (batch := next(iter(loader))):
        lines += ["", f"first batch: {', '.join(batch['ids'])} (learnt tokens are in [[ ]])"]
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            kept = mask.bool()
            lines.append(mark_labels(ids[kept].tolist(), labels[kept].tolist(), tokenizer))
    return "\n".join(lines)


def mark_labels(ids: Sequence[int], labels: Sequence[int], tokenizer) -> str:
    """Ids as text, with `<image>` for each placeholder and [[ ]] around tokens that have labels."""
    text, learnt, run = "", False, []

    def flush() -> str:
        decoded = tokenizer.decode(run)
        return f"[[{decoded}]]" if learnt and run else decoded

    for token, label in zip(ids, labels):
        if token == IMAGE_TOKEN_INDEX:
            text += flush() + "<image>"
            run, learnt = [], False
            continue
        if (label != IGNORE_INDEX) != learnt:
            text += flush()
            run, learnt = [], label != IGNORE_INDEX
        run.append(token)
    return text + flush()


def _kinds(dataset: VideoXLDataset) -> str:
    kinds = Counter(record.kind for record in dataset.records)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))


def _compression(config) -> str:
    if not config.enable_beacon:
        return "none"
    return f"windows of {config.beacon_window}, ratios {list(config.beacon_ratio)} ({config.beacon_ratio_mix})"
