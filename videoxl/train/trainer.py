"""transformers' Trainer with Video-XL's batches, loss, parameter groups, checkpoints and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from videoxl.errors import ArgumentError
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.loss import PassCounts, TrainingOptions
from videoxl.model.pooling import pooled_length
from videoxl.train.checkpoints import StagedCheckpoints
from videoxl.train.config import TrainingArguments, compute_dtype, shards_parameters
from videoxl.train.data.bad_samples import BadSamples
from videoxl.train.data.collator import collate
from videoxl.train.data.dataset import VideoXLDataset
from videoxl.train.data.samplers import Grouping, PlanBatchSampler
from videoxl.train.data.sources import LazyFrames
from videoxl.train.evaluation import evaluate_answers, evaluate_loss
from videoxl.train.lora import base_of, is_adapted, load_other_weights, save_other_weights
from videoxl.train.meter import Meter
from videoxl.train.module_lists import cached_module_lists
from videoxl.train.optim import MuonAndOther, is_for_muon
from videoxl.train.trainable import parameter_groups
from videoxl.utils.transfer import send

ON_THE_DEVICE = ("images", "classes", "never")  # keys of a collated batch
DRAWN_AT_ONCE = 1024  # streamed frames that are encoded together
_GAP_STREAM = 1  # gives the random gaps another seed than the ratios


class PlanDataLoader(DataLoader):
    """A data loader whose batches come from a `PlanBatchSampler`."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class OwnBatches:
    """Batches that the data set itself defines, in its order; each process takes its share."""

    def __init__(self, batches: Sequence[Sequence[int]], world_size: int, rank: int):
        whole = len(batches) - len(batches) % world_size
        self._batches = batches[rank:whole:world_size]
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self._batches:
            yield [(self.epoch, index) for index in batch]


class VideoXLTrainer(StagedCheckpoints, Trainer):
    """Trains `LlavaQwenForCausalLM`, plain or wrapped by peft, on batches of `VideoXLDataset`."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_dataset: VideoXLDataset,
        image_processor: VideoXLImageProcessor,
        eval_dataset: VideoXLDataset | None = None,
        bad_samples: BadSamples | None = None,
        **kwargs,
    ):
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
            **kwargs,
        )
        self.image_processor = image_processor
        config = base_of(model).config
        self.meter = Meter(config.active_ratios)
        # By default no unreadable sample is tolerated.
        self.bad_samples = bad_samples or BadSamples(Path(args.output_dir), len(train_dataset), 0.0)

    def train(self, *args, **kwargs) -> TrainOutput:
        # DeepSpeed, FSDP and DistributedDataParallel wrap the model and manage its parameters themselves.
        plain = self.accelerator.distributed_type == DistributedType.NO
        with cached_module_lists(self.model) if plain else nullcontext():
            return super().train(*args, **kwargs)

    # -- batches -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        args = self.args
        own = getattr(self.train_dataset, "batches", None)
        if own is not None:
            return self._loader(self.train_dataset, OwnBatches(own, args.world_size, args.process_index))
        grouping = Grouping(
            by_stride=args.group_by_stride,
            sort=args.sort_by_stride,
            by_length=args.group_by_modality_length or args.group_by_varlen,
            apart=args.group_by_modality_length,
        )
        sampler = PlanBatchSampler(
            self.train_dataset.plans,
            base_of(self.model).config.beacon_window,
            args.per_device_train_batch_size,
            grouping,
            args.world_size,
            args.process_index,
            args.data_seed if args.data_seed is not None else args.seed,
        )
        return self._loader(self.train_dataset, sampler)

    def get_eval_dataloader(self, eval_dataset: VideoXLDataset | None = None) -> DataLoader:
        """Under ZeRO-3 and FSDP, whose passes are collective, every process reads all data; otherwise its share."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        shared = not shards_parameters(self.args)
        window = base_of(self.model).config.beacon_window
        sampler = PlanBatchSampler(dataset.plans, window, self.args.per_device_eval_batch_size, shuffle=False)
        if shared:
            batches = list(sampler)[self.args.process_index :: self.args.world_size]
            return self._loader(dataset, batches)
        return self._loader(dataset, sampler)

    def _loader(self, dataset: VideoXLDataset, batches) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return PlanDataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=getattr(dataset, "collate", collate),
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            persistent_workers=self.args.dataloader_persistent_workers and workers > 0,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor | None:
        """Number of labelled tokens (or classes) in the batches of one step, over all processes; at least 1."""
        if not batch_samples:
            return None
        count = send(torch.tensor(sum(batch["targets"] for batch in batch_samples)), device)
        if self.args.world_size > 1:
            dist.all_reduce(count)
        return count.clamp(min=1)

    # -- loss ----------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.bad_samples.add(inputs["bad"])
        outputs = model(**self.model_inputs(inputs), num_items_in_batch=num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * self.args.world_size  # gradients are averaged over processes; the count covers all
        self.meter.add(inputs, outputs, base_of(self.model))
        return (loss, outputs) if return_outputs else loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move only what the GPU works on.

        Ids and labels stay on the CPU, where prompts are split: reading them back would wait for the GPU.
        (DistributedDataParallel moves them anyway.)
        """
        moved = super()._prepare_inputs({name: inputs[name] for name in ON_THE_DEVICE if name in inputs})
        return {**inputs, **moved}

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, Tensor) and not data.is_floating_point():  # DeepSpeed casts floating-point inputs
            return send(data, self.args.device)
        return super()._prepare_input(data)

    def model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The model's arguments from a collated batch; 8-bit frames are normalised here, on the device."""
        inputs = {"images": self._visual(batch["images"]), "modalities": batch["modalities"]}
        if "classes" in batch:
            return inputs | {name: batch[name] for name in ("classes", "never") if name in batch}
        epoch, index = batch["draw"]
        seed = self.args.seed
        return inputs | {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "labels": batch["labels"],
            "ratio_seed": [seed, epoch, index],
            "training_options": TrainingOptions(
                questions_per_video=batch["questions"],
                position_gap_max=self.args.position_gap_max,
                gap_seed=[seed, epoch, index, _GAP_STREAM],
                bptt_windows=self.args.bptt_windows,
                evidence=self._evidence_tokens(batch),
                sync=largest_over_processes if self.args.world_size > 1 else None,
                label_hook=getattr(self.train_dataset, "label_hook", None),
            ),
        }

    def _visual(self, images: list[Tensor] | LazyFrames) -> list[Tensor]:
        """Pixel values or features of each visual input of a batch."""
        if isinstance(images, list):
            return [self.pixels(frames) for frames in images]
        tower = base_of(self.model).model.vision_tower
        learns = any(parameter.requires_grad for parameter in tower.parameters())
        if (learns and torch.is_grad_enabled()) or shards_parameters(self.args):
            return list(self.pixels(images.draw(self.args.device)).split(images.counts))
        # A frozen tower encodes a few frames at a time: the pixels of all would not fit in memory.
        with torch.no_grad(), self._half_precision():
            features = [tower(self.pixels(part.draw(self.args.device))) for part in images.chunks(DRAWN_AT_ONCE)]
        return list(torch.cat(features).split(images.counts))

    def _half_precision(self):
        """The autocast that accelerate applies to the model's own passes."""
        dtype = compute_dtype(self.args)
        return torch.autocast(self.args.device.type, dtype, enabled=dtype != torch.float32)

    def pixels(self, frames: Tensor) -> Tensor:
        """uint8 frames [F, S, S, 3] -> pixel values [F, 3, S, S]; features of the tower are returned unchanged."""
        if frames.dtype != torch.uint8:
            return frames
        return self.image_processor.normalize(frames, base_of(self.model).model.vision_tower.dtype)

    def _evidence_tokens(self, batch: dict[str, Any]) -> list[list[tuple[int, int]]]:
        inner = base_of(self.model).model
        each = pooled_length(inner.vision_tower.num_patches, inner.config.mm_spatial_pool_stride)
        return [[(start * each, stop * each) for start, stop in ranges] for ranges in batch["evidence"]]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # transformers' estimate ignores windows and pictures

    # -- optimizer -----------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            learning = self.model if model is None else model
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(self.args, learning)
            rates = {"mm_mlp_adapter": self.args.mm_projector_lr, "mm_vision_tower": self.args.mm_vision_tower_lr}
            groups = partial(
                parameter_groups,
                learning,
                set(self.get_decay_parameter_names(learning)),
                self.args.weight_decay,
            )
            if self.args.muon_lr:
                matrices = groups({"mm_vision_tower": self._muon_rate_of_tower()}, is_for_muon)
                if not matrices:
                    raise ArgumentError(
                        "--muon_lr is for the matrices of decoder and vision tower, and none is trained; leave it at 0"
                    )
                others = optimizer_class(groups(rates, lambda *each: not is_for_muon(*each)), **kwargs)
                self.optimizer = MuonAndOther(matrices, self.args.muon_lr, others)
            else:
                self.optimizer = optimizer_class(groups(rates), **kwargs)
        return self.optimizer

    def _muon_rate_of_tower(self) -> float | None:
        """Muon's rate for a tower with its own rate: --muon_lr times --mm_vision_tower_lr over --learning_rate."""
        own = self.args.mm_vision_tower_lr
        return None if own is None else self.args.muon_lr * own / self.args.learning_rate

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, KeyError) as error:
            raise ArgumentError(
                f"the optimizer in {checkpoint} is for other parameters than this run's ({error}). Resume with "
                "the flags it was created with (--muon_lr, --mm_tunable_parts, ...), or start in another folder"
            ) from error

    # -- checkpoints of adapters ---------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if is_adapted(self.model) and self.args.should_save:
            state = self.model.state_dict() if state_dict is None else state_dict
            save_other_weights(state, self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if is_adapted(self.model):
            load_other_weights(self.model, Path(resume_from_checkpoint))

    # -- figures -------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.meter.report(self.args.device, self.args.world_size)
            logs["bad_samples"] = self._count_bad_samples()
        super().log(logs, start_time)

    def _count_bad_samples(self) -> int:
        """Number of unreadable samples over all processes; a collective call. Raises `DataError` in all if too many."""
        bad = self.bad_samples
        if self.args.world_size == 1:
            return bad.number
        found = torch.tensor(bad.found_here, device=self.args.device)
        dist.all_reduce(found)
        number = bad.number - bad.found_here + int(found)
        bad.check(number)
        return number

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, and with `--eval_generation` exact-match answers, at the fixed ratio `--eval_beacon_ratio`."""
        metrics = evaluate_loss(self, self.get_eval_dataloader(eval_dataset))
        if self.args.eval_generation:
            metrics |= evaluate_answers(self, eval_dataset if eval_dataset is not None else self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def largest_over_processes(counts: PassCounts) -> PassCounts:
    """The largest counts over all processes; a collective call."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(counts.as_tuple(), device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return PassCounts(*largest.tolist())
