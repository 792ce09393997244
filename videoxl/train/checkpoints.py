"""Atomic checkpoints, and the result of a run in the published layout.

A checkpoint is written into a hidden folder and renamed at the end, so a process that is killed while saving leaves
the earlier checkpoints intact. A result's files are moved one by one, those that mark it as complete last.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from videoxl.errors import ArgumentError
from videoxl.media.pixels import VideoXLImageProcessor
from videoxl.train.lora import base_of, is_adapted, save_other_weights
from videoxl.train.tasks import TaskModel
from videoxl.utils.files import publish_mode, sync

STAGING = ".saving"
_CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
PROJECTOR_FILE = "mm_projector.bin"
_STATE_FILE = "trainer_state.json"
_RESULT_FILES = ("config.json", PROJECTOR_FILE, "adapter_config.json")  # any of them marks a finished run


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _CHECKPOINT.match(path.name)]
    return sorted(found, key=lambda path: int(_CHECKPOINT.match(path.name).group(1)))


def holds_result(folder: Path) -> bool:
    """Whether this folder holds the result of a finished run."""
    return any((folder / name).is_file() for name in _RESULT_FILES)


class StagedCheckpoints:
    """Mixin for a `Trainer`: a checkpoint gets its name only when all its files are written."""

    _saving = False

    def _get_output_dir(self, trial=None) -> str:
        return os.path.join(self.args.output_dir, STAGING) if self._saving else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        folder = Path(self.args.output_dir)
        staging = folder / STAGING
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        _wait()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        _wait()
        if self.args.should_save:
            name = f"checkpoint-{self.state.global_step}"
            _flush(staging / name)
            if (folder / name).exists():
                shutil.rmtree(folder / name)
            (staging / name).rename(folder / name)
            shutil.rmtree(staging, ignore_errors=True)
            if self.args.save_total_limit:
                for old in list_checkpoints(folder)[: -self.args.save_total_limit]:
                    shutil.rmtree(old)
        _wait()


def save_result(trainer, tokenizer, image_processor: VideoXLImageProcessor) -> None:
    """Write the result of a run into its output folder; a collective call.

    - if only the projector was trained: `mm_projector.bin` and `config.json` (stage one);
    - with LoRA: the adapter, `non_lora_trainables.bin` and `config.json`;
    - otherwise a checkpoint for `load_pretrained_model`: weights (in 16 bits if the run used bf16 or fp16), tokenizer,
      preprocessing.
    """
    args, model = trainer.args, trainer.model
    folder = Path(args.output_dir)
    state = _whole_state(trainer)
    if args.should_save:
        staging = folder / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        base = base_of(model)
        base.config.use_cache = True
        state = _in_16_bits(state, args) if state is not None else None
        if is_adapted(model):
            base.config.save_pretrained(staging)
            model.save_pretrained(staging, state_dict=state)
            trainer_state = model.state_dict() if state is None else state
            save_other_weights(trainer_state, model, staging)
        elif only_projector_learns(model):
            base.config.save_pretrained(staging)
            projector = {name: value.cpu().clone() for name, value in state.items() if ".mm_projector." in name}
            torch.save(projector, staging / PROJECTOR_FILE)
        else:
            base.save_pretrained(staging, state_dict=state)
        tokenizer.save_pretrained(staging)
        image_processor.save_pretrained(staging)
        _publish(staging, folder)
    _wait()


def only_projector_learns(model: nn.Module) -> bool:
    learning = [name for name, p in model.named_parameters() if p.requires_grad]
    return bool(learning) and all(".mm_projector." in name for name in learning)


def _whole_state(trainer) -> dict[str, torch.Tensor] | None:
    """The model's full state dict, gathered from all processes if it is sharded."""
    if trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.deepspeed)
    elif trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)
    else:
        state = trainer.model.state_dict()
    if isinstance(trainer.model, TaskModel) and state is not None:
        return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    return state


def _in_16_bits(state: dict[str, torch.Tensor], args) -> dict[str, torch.Tensor]:
    if not (args.bf16 or args.fp16):
        return state
    half = torch.bfloat16 if args.bf16 else torch.float16
    return {name: value.to(half) if value.is_floating_point() else value for name, value in state.items()}


def _publish(staging: Path, folder: Path) -> None:
    """Move files to the output folder; last those that mark a finished run."""
    _flush(staging)
    files = sorted(staging.iterdir(), key=lambda path: path.name in _RESULT_FILES)
    for path in files:
        path.replace(folder / path.name)
    staging.rmdir()


def _flush(folder: Path) -> None:
    """Sync all files of a folder to disk before it gets its name, with the permissions of the user's other files."""
    for path in folder.rglob("*"):
        if path.is_file():
            publish_mode(path)
            sync(path)


def _wait() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def choose_checkpoint(folder: Path, named: str | None, overwrite: bool) -> Path | None:
    """The checkpoint to resume from in `folder`; None: start from the beginning.

    Args:
        named: `--resume_from_checkpoint`: a folder; None, `True` or `last` for the newest one.
        overwrite: ignore a finished run in `folder` instead of raising.

    Raises:
        ArgumentError: the folder holds a finished run, or `named` is not a checkpoint of a run.
    """
    if named not in (None, "True", "true", "last"):
        if not (Path(named) / _STATE_FILE).is_file():
            raise ArgumentError(f"--resume_from_checkpoint {named}: that is no checkpoint folder of a run")
        return Path(named)
    if holds_result(folder):
        if not overwrite:
            raise ArgumentError(
                f"{folder} holds a finished run; name another --output_dir, or allow it to be replaced with "
                "--overwrite_output_dir True"
            )
        return None
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def clear_run(folder: Path) -> None:
    """Remove an earlier run's checkpoints and the files that mark its result (with `--overwrite_output_dir`)."""
    for path in (*list_checkpoints(folder), folder / STAGING):
        shutil.rmtree(path, ignore_errors=True)
    for name in (*_RESULT_FILES, _STATE_FILE, "loss.png"):
        (folder / name).unlink(missing_ok=True)
