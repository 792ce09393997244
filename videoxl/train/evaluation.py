"""Evaluation during training: loss and exact-match answers at one fixed ratio, so that results are comparable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import Trainer

from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.session import VideoXL
from videoxl.train.config import shards_parameters
from videoxl.train.data.dataset import Sample, VideoXLDataset
from videoxl.train.data.labels import encode_conversation
from videoxl.train.lora import base_of


@contextmanager
def evaluating(model: LlavaQwenForCausalLM) -> Iterator[None]:
    """Put the model in evaluation mode, and restore its mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def evaluate_loss(trainer: Trainer, loader: DataLoader) -> dict[str, float]:
    """Mean cross entropy per labelled token over a data set; with class labels also the accuracy."""
    model = base_of(trainer.model)
    # Use the wrapper if it gathers parameters; else the model itself, which needs no synchronisation with other ranks.
    run = trainer.model_wrapped if shards_parameters(trainer.args) else trainer.model
    total = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)  # loss, labels, right classes
    with evaluating(model):
        for batch in tqdm(loader, desc="evaluation", disable=not trainer.is_world_process_zero(), leave=False):
            number = batch["targets"]
            inputs = trainer.model_inputs(trainer._prepare_inputs(batch))
            if "training_options" in inputs:
                inputs["training_options"].sync = None
                inputs["training_options"].position_gap_max = 0
                inputs["ratio"] = _ratio(trainer)
            with trainer.compute_loss_context_manager():
                output = run(**inputs, num_items_in_batch=1)
            total[0] += output.loss.double()
            total[1] += number
            if "classes" in batch:
                total[2] += output.correct.sum()
    if trainer.args.world_size > 1 and not shards_parameters(trainer.args):
        dist.all_reduce(total)
    loss, labels, right = total.tolist()
    if trainer.train_dataset.class_names:
        return {"loss": loss / max(labels, 1), "accuracy": right / max(labels, 1)}
    return {"loss": loss / max(labels, 1), "tokens": int(labels)}


@torch.no_grad()
def evaluate_answers(trainer: Trainer, dataset: VideoXLDataset) -> dict[str, float]:
    """Share of first questions whose greedy answer equals the record's, ignoring case and surrounding space."""
    args, model = trainer.args, base_of(trainer.model)
    sharded = shards_parameters(args)
    numbers = range(len(dataset)) if sharded else range(args.process_index, len(dataset), args.world_size)
    tally = torch.zeros(2, dtype=torch.float64, device=args.device)
    session = VideoXL(model, dataset.tokenizer, dataset.image_processor)
    with evaluating(model), trainer.compute_loss_context_manager():
        for number in tqdm(numbers, desc="answers", disable=not trainer.is_world_process_zero(), leave=False):
            sample = dataset[(0, number)]
            record = dataset.records[sample.index]
            for turns in record.conversations:
                answer = _answer(trainer, session, dataset, sample, turns[0]["value"])
                tally += torch.tensor([_same(answer, turns[1]["value"]), 1], device=args.device)
    if args.world_size > 1 and not sharded:
        dist.all_reduce(tally)
    return {"exact_match": float(tally[0] / tally[1].clamp(min=1)), "answers": int(tally[1])}


def _answer(trainer: Trainer, session: VideoXL, dataset: VideoXLDataset, sample: Sample, question: str) -> str:
    """The greedy answer to one question."""
    args = trainer.args
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": ""}]
    ids, _ = encode_conversation(
        turns, dataset.tokenizer, dataset.version, sample.kind != "text", control_tokens=dataset.control_tokens
    )
    ids = ids[: len(ids) - len(dataset.tokenizer("<|im_end|>\n").input_ids)]  # keep the assistant's turn open
    visual = [trainer.pixels(frames.to(args.device)) for frames in sample.visual]
    return session.respond_to_ids(
        ids, visual, [sample.kind] * len(visual), ratio=_ratio(trainer), max_new_tokens=args.eval_max_new_tokens
    )


def _ratio(trainer: Trainer) -> int | None:
    """The fixed ratio of evaluation; None where nothing is compressed at all (stage one)."""
    return trainer.args.eval_beacon_ratio if base_of(trainer.model).config.enable_beacon else None


def _same(answer: str, wanted: str) -> float:
    return float(answer.strip().lower() == wanted.strip().lower())
