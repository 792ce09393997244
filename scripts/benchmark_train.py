"""Time and memory of finetuning steps on one video, with random weights of a given shape.

    python scripts/benchmark_train.py --config configs/qwen2-1.5b.json --frames 128
    python scripts/benchmark_train.py --config configs/qwen2-7b.json --frames 128 --lora

Every step goes through `VideoXLTrainer`, from 8-bit frames in host memory to the optimizer: with the vision tower (but
--lora trains only adapters and the projector), gradient checkpointing, bf16. Prints a table and writes the
numbers as JSON. Needs no checkpoint.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers

from videoxl import LlavaQwenForCausalLM, VideoXLConfig
from videoxl.cost.estimate import GIB, estimate
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.model.shape import model_shape
from videoxl.train.config import ModelArguments, TrainingArguments
from videoxl.train.data.dataset import Sample
from videoxl.train.data.plans import SamplePlan
from videoxl.train.dry_run import estimate_memory
from videoxl.train.lora import add_adapters, base_of
from videoxl.train.trainable import freeze_others, learning_parts
from videoxl.train.trainer import VideoXLTrainer
from videoxl.utils.compat import enable_checkpointing

PREFIX, SUFFIX, ANSWER = 16, 64, 20  # tokens of an ordinary question, the last ones learnt
# Passes through a weight: forward, again for checkpointing, two on the backward pass (one where the weight is frozen).
PASSES_FULL, PASSES_LORA = 4, 3


class OneVideo(torch.utils.data.Dataset):
    """A data set that repeats one video of random frames."""

    class_names: dict = {}
    unreadable: list = []

    def __init__(self, frames: int, side: int, patches: int, steps: int):
        generator = torch.Generator().manual_seed(0)
        self.frames = torch.randint(0, 256, (frames, side, side, 3), dtype=torch.uint8, generator=generator)
        ids = torch.randint(0, 200, (PREFIX + 1 + SUFFIX,), generator=generator).tolist()
        ids[PREFIX] = -200
        self.encoded = [(ids, [-100] * (len(ids) - ANSWER) + ids[-ANSWER:])]
        self.plans = [SamplePlan((PREFIX,), (("video", frames * patches // 4),), SUFFIX)] * steps
        self.records = [None] * steps

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        return Sample(key[1], key[0], str(key[1]), "video", self.encoded, [self.frames], [[]])


class StepClock(transformers.TrainerCallback):
    """Records the seconds of every optimizer step, including the device's work."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *_, **__):
        _synchronize()
        self._start = time.perf_counter()

    def on_step_end(self, *_, **__):
        _synchronize()
        self.seconds.append(time.perf_counter() - self._start)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore")
    on_gpu = torch.cuda.is_available()
    config = VideoXLConfig.from_pretrained(arguments.config)
    config._attn_implementation = "sdpa"
    config.beacon_ratio = arguments.ratio
    with tempfile.TemporaryDirectory() as folder:
        training = TrainingArguments(
            output_dir=folder,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            per_device_train_batch_size=1,
            num_train_epochs=1,
            learning_rate=1e-5,
            weight_decay=0.0,
            lora_enable=arguments.lora,
            lora_dropout=0.0,
            logging_steps=arguments.steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        report = measure(arguments, config, training)
    report |= {
        "config": str(arguments.config),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    columns = ("frames", "step_s", "tokens_per_s", "tflops", "peak_gib", "estimated_gib", "weights", "mode")
    shown = [f"{report[name]:.4g}" if isinstance(report[name], float) else str(report[name]) for name in columns]
    print(" | ".join(columns), " | ".join(shown), sep="\n")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="a model size from configs/, or any config.json")
    parser.add_argument("--frames", type=int, default=128, help="frames of the video (default 128)")
    parser.add_argument("--ratio", type=int, nargs="+", default=[8], help="compression ratios (default 8)")
    parser.add_argument(
        "--steps", type=int, default=6, help="optimizer steps; the first two are not counted (default 6)"
    )
    parser.add_argument("--lora", action="store_true", help="train adapters and projector instead of everything")
    parser.add_argument(
        "--half-weights", action="store_true", help="weights and AdamW's state in bf16, instead of float32 weights"
    )
    parser.add_argument("--output", type=Path, help="write the numbers as JSON to this file")
    return parser.parse_args()


def measure(arguments: argparse.Namespace, config: VideoXLConfig, training: TrainingArguments) -> dict:
    model = make_model(config, training, arguments.lora, arguments.half_weights)
    tower = base_of(model).model.vision_tower
    dataset = OneVideo(arguments.frames, tower.image_size, tower.num_patches, arguments.steps)
    clock = StepClock()
    processor = VideoXLImageProcessor(tower.image_size)
    trainer = VideoXLTrainer(model, training, dataset, processor, callbacks=[clock])
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    result = trainer.train()
    seconds = statistics.median(clock.seconds[2:] or clock.seconds)
    cost = estimate(model_shape(config), arguments.frames, arguments.ratio[0])
    passes = PASSES_LORA if arguments.lora else PASSES_FULL
    tokens = dataset.plans[0].length
    return {
        "mode": "LoRA and projector" if arguments.lora else "all parameters",
        "weights": "bf16" if arguments.half_weights or arguments.lora else "fp32",
        "frames": arguments.frames,
        "ratio": arguments.ratio,
        "tokens": tokens,
        "step_s": seconds,
        "steps_s": clock.seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": passes * cost.flop / seconds / 1e12,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else float("nan"),
        "estimated_gib": estimate_memory(model, dataset, training).total / GIB,
        "loss": result.training_loss,
    }


def make_model(config: VideoXLConfig, training: TrainingArguments, lora: bool, half: bool = False) -> torch.nn.Module:
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if (lora or half) and training.bf16 else torch.float32)
    try:
        with torch.device("cuda" if training.bf16 else "cpu"):
            model = LlavaQwenForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    wanted = learning_parts(ModelArguments(unfreeze_mm_vision_tower=not lora))
    freeze_others(model, wanted)
    enable_checkpointing(model)
    return add_adapters(model, training, wanted) if lora else model


if __name__ == "__main__":
    main()
