"""Command line of a training run; `pretrain.sh`, `finetune_i.sh` and `finetune_v.sh` call it.

    deepspeed videoxl/train/train.py --deepspeed configs/deepspeed/zero3.json --model_name_or_path ... --data_path ...
    torchrun --nproc_per_node 8 -m videoxl.train ...        plain PyTorch, on several GPUs
    python -m videoxl.train ...                             plain PyTorch, on one device

Flags, records, files, lengths and weights are checked before the first step.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import set_seed

from videoxl.errors import ArgumentError, DataError, VideoXLError
from videoxl.model.configuration import VideoXLConfig, check_config
from videoxl.model.towers import build_vision_tower
from videoxl.train.base_model import (
    build_model,
    check_vocabulary,
    configure,
    load_image_processor,
    load_tokenizer,
)
from videoxl.train.checkpoints import choose_checkpoint, clear_run, save_result
from videoxl.train.compat.cpu_info import answer_from_the_kernel
from videoxl.train.compat.legacy_flags import parse_command_line
from videoxl.train.config import DataArguments, ModelArguments, TrainingArguments, check_arguments
from videoxl.train.data.bad_samples import BadSamples
from videoxl.train.data.dataset import VideoXLDataset, encode_record
from videoxl.train.data.records import read_records
from videoxl.train.data.sample_index import build_index, frame_choice, text_rule
from videoxl.train.data.sources import DataSource, SourceContext, find_source
from videoxl.train.dry_run import describe_run
from videoxl.train.feature_cache import FeatureCache
from videoxl.train.lora import base_of
from videoxl.train.meter import draw_loss
from videoxl.train.tasks import CONVERSATION, TASKS
from videoxl.train.trainer import VideoXLTrainer


def train(arguments: Sequence[str]) -> None:
    """Run one training. Raises `VideoXLError` that says what is wrong and what to do."""
    answer_from_the_kernel()  # parsing the flags may start DeepSpeed
    model_args, data_args, args = parse_command_line(arguments)
    check_arguments(model_args, data_args, args)
    output = Path(args.output_dir)
    checkpoint = choose_checkpoint(output, args.resume_from_checkpoint, args.overwrite_output_dir or args.dry_run)
    task = None if args.train_task == CONVERSATION else TASKS.get(args.train_task)()
    if task is not None:
        model_args.mm_tunable_parts = "mm_vision_tower"
    set_seed(args.seed)
    leave_cores_to_workers(args)

    config = configure(model_args, data_args, args)
    check_config(config)
    tokenizer = load_tokenizer(model_args.model_name_or_path, model_args.version, args.model_max_length)
    sources = [source for source in (data_args.data_path, data_args.eval_data) if source]
    streamed = _streamed(sources)
    if streamed is not None:
        # Both need records: features are cached per file, and a dry run shows batches of the size in the flags.
        for flag, value in (("cache_features", data_args.cache_features), ("dry_run", args.dry_run)):
            if value:
                raise ArgumentError(f"--{flag} needs records; {data_args.data_path} is streamed, leave --{flag} out")
    elif task is not None and not task.takes_records:
        raise ArgumentError(f"--train_task {args.train_task} needs classes of every patch, which records do not have")
    records = [] if streamed else [_read(source, model_args, data_args, args) for source in sources]
    for source, part in zip(sources[1:], records[1:]):
        if part.malformed:  # a score of other questions would be none
            raise DataError(f"{len(part.malformed)} malformed record(s) in {source}: {part.malformed[0][1]}")
    with torch.device("meta"):
        tower = build_vision_tower(config)  # only for its geometry, without weights
    image_processor = load_image_processor(config, model_args.model_name_or_path, tower)

    datasets = []
    if streamed is not None:
        context = SourceContext(tokenizer, config, tower.num_patches, tower.image_size, args.seed)
        datasets.append(streamed.dataset(context))
    for source, part in zip(sources, records):
        choice = frame_choice(data_args.video_fps, data_args.frames_upbound)
        text = (model_args.version, data_args.control_tokens_in_records)
        with args.main_process_first(local=False, desc="index"):
            index = build_index(
                part,
                source,
                choice,
                lambda record, text=text: encode_record(record, tokenizer, *text),
                text_rule(tokenizer, *text),
                output,
                progress=args.process_index == 0,
            )
        datasets.append(
            VideoXLDataset(
                part,
                index,
                tokenizer,
                image_processor,
                config,
                choice,
                tower.num_patches,
                model_args.version,
                data_args.video_timeout,
                args.model_max_length,
                control_tokens=data_args.control_tokens_in_records,
            )
        )
        _report_left_out(datasets[-1], source, args)
    malformed = records[0].malformed if records else []
    total, first = len(datasets[0]) + len(datasets[0].unreadable) + len(malformed), args.process_index == 0
    writes = first and not args.dry_run
    bad_samples = BadSamples(output, total, data_args.max_bad_fraction, checkpoint is not None, writes)
    bad_samples.add([*malformed, *datasets[0].unreadable], writes, known_to_all=True)

    model = build_model(config, model_args, args)
    check_vocabulary(base_of(model), tokenizer)
    if task is not None:
        model = task.wrap(model, datasets[0].class_names, tokenizer)
        for dataset in datasets[1:]:
            dataset.use_classes(datasets[0].class_names)
    if data_args.cache_features and not args.dry_run:
        _use_features(datasets, base_of(model), data_args, args, config)

    trainer = VideoXLTrainer(
        model=model,
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1] if len(datasets) > 1 else None,
        image_processor=image_processor,
        bad_samples=bad_samples,
    )
    if args.dry_run:
        if trainer.is_world_process_zero():
            print(describe_run(trainer, tokenizer))
        return
    if checkpoint is not None and trainer.is_world_process_zero():
        print(f"resuming from {checkpoint}", file=sys.stderr)
    if checkpoint is None and args.overwrite_output_dir and first:
        clear_run(output)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    if len(datasets) > 1 and args.eval_strategy == "no":
        trainer.evaluate()
    save_result(trainer, tokenizer, image_processor)
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        draw_loss(output / "trainer_state.json", output / "loss.png")
        print(f"saved to {output}")


def leave_cores_to_workers(args: TrainingArguments) -> None:
    """Use one CPU thread in this process if it trains on a GPU with loader processes.

    Its CPU work is small. Split over all cores it waits for threads that the loaders keep from running: on 16 cores
    with 12 loaders, a sum over 90,000 numbers took 9 ms. `OMP_NUM_THREADS` in the environment overrides this.
    """
    if args.device.type == "cuda" and args.dataloader_num_workers and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _streamed(sources: list[str]) -> DataSource | None:
    """The streamed source that `--data_path` names; None if it names records. Raises `DataError`."""
    named = [(source, found) for source in sources if (found := find_source(source)) is not None]
    if len(named) > 1 or (named and len(sources) > 1):
        raise DataError(f"{named[0][0]} is streamed; it cannot be used with --eval_data")
    return named[0][1] if named else None


def _read(source: str, model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments):
    records = read_records(
        source, data_args.image_folder, data_args.video_folder, model_args.version, args.train_task, args.seed
    )
    for note in records.notes if args.process_index == 0 else ():
        print(f"note: {note}", file=sys.stderr)
    return records


def _report_left_out(dataset: VideoXLDataset, source: str, args: TrainingArguments) -> None:
    """Print how many samples are left out as too long. Raises `DataError` if no sample is left."""
    if dataset.too_long and args.process_index == 0:
        name, most = max(dataset.too_long, key=lambda entry: entry[1])
        number, total = len(dataset.too_long), len(dataset) + len(dataset.too_long)
        print(
            f"note: {number} of {total} samples of {source} need more decoder positions at the smallest ratio than "
            f"--model_max_length {args.model_max_length} and are left out; the longest, {name}, needs {most}",
            file=sys.stderr,
        )
    if not len(dataset):
        reasons = [f"{name}: {reason}" for name, reason in dataset.unreadable[:5]]
        reasons += [f"{name}: needs {length} positions" for name, length in dataset.too_long[:5]]
        raise DataError(f"no sample of {source} can be used:\n" + "\n".join(reasons))


def _use_features(
    datasets: list[VideoXLDataset], model, data_args: DataArguments, args: TrainingArguments, config: VideoXLConfig
) -> None:
    processor = datasets[0].image_processor
    rule = (
        f"{data_args.video_fps} {data_args.frames_upbound} {config.image_aspect_ratio} {config.image_grid_pinpoints} "
    )
    rule += f"{config.mm_vision_select_layer} {processor.side} {processor.image_mean} {processor.image_std}"
    cache = FeatureCache(Path(data_args.cache_features), model, rule)
    for dataset in datasets:
        cache.fill(dataset, model, args.device, args.process_index, args.world_size)
        dataset.features = cache
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: a `VideoXLError` becomes one message and status 2."""
    try:
        train(sys.argv[1:] if arguments is None else arguments)
    except VideoXLError as error:
        rank = os.environ.get("RANK", "0")
        # A data loader's error contains its whole traceback; only the last line says what is wrong.
        text = str(error)
        text = text.strip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text
        print(f"error{'' if rank == '0' else f' (process {rank})'}: {text}", file=sys.stderr)
        return 2
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return 0
