"""Training stages of the small model: data, trainable modules, number of steps.

Each is one run of the training program (`videoxl.train`) on `--data_path synth:SIZE/NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from videoxl.errors import DataError

SYNTHETIC = "synth:"
"""How `--data_path` names a stage: synth:SIZE/NAME."""

VISION, PROJECTOR, DECODER = "mm_vision_tower", "mm_mlp_adapter", "mm_language_model"
ALL = ",".join((VISION, PROJECTOR, DECODER))
STILL_TOWER = ",".join((PROJECTOR, DECODER))


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        kind: `patches` (pictures with classes of every patch), `words of pictures` (pictures with classes, towards the
            decoder's words), `text` (stories in words) or `video`.
        steps: optimizer steps; a step is one batch.
        frames: frames of a video, drawn uniformly from these for each batch. frames_a_step: total of a batch's videos.
        rows: samples per batch, for kinds other than `video`.
        questions: questions about each video.
        most_cards: most cards in a video.
        clip_frames: least and most frames of a scene.
        several: whether most videos have several cards: with only one, its colour is the answer to every question.
        relations: share of questions about order, number and absence (in words: of those that ask for no letter).
        lookalikes: share of videos whose scenes are all of one family that could be taken for a card.
        caption: whether some of the questions ask for a description.
        pictures: share of batches that are pictures (a visual span of 576 tokens) and not videos.
        words: share of batches that are stories in words, so that the decoder does not forget them.
        parts: entries of `PARTS` to train.
        flags: more flags of the training program.
    """

    name: str
    kind: str
    steps: int
    learning_rate: float
    frames: tuple[int, ...] = (1,)
    frames_a_step: int = 512
    rows: int = 512
    questions: int = 6
    most_cards: int = 4
    clip_frames: tuple[int, int] = (2, 24)
    several: bool = False
    relations: float = 0.25
    lookalikes: float = 0.0
    caption: bool = False
    pictures: float = 0.0
    words: float = 0.0
    parts: str = ALL
    flags: tuple[str, ...] = ()

    @property
    def compresses(self) -> bool:
        """Whether beacons run in it."""
        flags = " ".join(self.flags) + " "
        return self.kind == "video" and "--beacon_ratio 0 " not in flags

    def arguments(self) -> list[str]:
        """Flags of the training program that belong to this stage."""
        given = ["--learning_rate", str(self.learning_rate), *self.flags]
        if self.kind == "patches":
            return [*given, "--train_task", "vision_patches"]
        if self.kind == "words of pictures":
            return [*given, "--train_task", "vision_words"]
        return [*given, "--mm_tunable_parts", self.parts]


def _flags(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_STEADY = "--lr_scheduler_type constant_with_warmup --warmup_steps 10"
_COSINE = "--lr_scheduler_type cosine --warmup_steps 20"
_RATIOS = "--beacon_ratio 2 4 8 16"

GPU_STAGES = (
    # First tower and decoder are trained separately, on classes and on stories in words. Then visual tokens are trained
    # to resemble words. If one of the three is missing, the joint loss stays flat for longer than all stages take.
    Stage("vision", "patches", 1150, 1e-3, rows=256, flags=_flags(f"--muon_lr 6e-3 {_COSINE}")),
    Stage(
        "words", "text", 1200, 1e-3, rows=128, relations=0.25, parts=DECODER, flags=_flags(
            "--muon_lr 4e-3 --lr_scheduler_type warmup_stable_decay --warmup_steps 50 "
            "--lr_scheduler_kwargs {\"num_decay_steps\":300,\"min_lr_ratio\":0.25}"
        ),
    ),
    # The stage before asks mostly about single cards; with more questions about several, it learnt neither.
    Stage(
        "orders", "text", 400, 7e-4, rows=128, relations=0.6, parts=DECODER,
        flags=_flags(f"--muon_lr 3e-3 {_COSINE}"),
    ),
    Stage("matching", "words of pictures", 250, 1e-3, rows=256, flags=_flags(_COSINE)),
    # From here on the tower is frozen: trained only on named cards, it would again infer shapes from colours.
    # At first all visual tokens are kept: beacons learn within seconds once the decoder can read visual tokens.
    Stage(
        "pictures", "video", 180, 1e-3, frames=(2, 4), frames_a_step=320, questions=4, clip_frames=(1, 3), caption=True,
        words=0.3, parts=STILL_TOWER, relations=0.0, flags=_flags(f"--muon_lr 1.5e-3 {_STEADY} --beacon_ratio 0"),
    ),
    Stage(
        "summaries", "video", 200, 1e-3, frames=(1, 2, 4, 8), frames_a_step=320, questions=6, clip_frames=(1, 3),
        caption=True, parts=STILL_TOWER, relations=0.15, pictures=0.1, words=0.3,
        flags=_flags(f"--muon_lr 1.5e-3 {_STEADY} {_RATIOS}"),
    ),
    # This stage teaches the order of cards, with videos long enough for three or four of them.
    Stage(
        "clips", "video", 500, 1e-3, frames=(6, 8, 12, 16), frames_a_step=512, questions=16, clip_frames=(1, 8),
        several=True, caption=True, parts=STILL_TOWER, relations=0.6, pictures=0.05, words=0.2,
        flags=_flags(
            "--muon_lr 1.5e-3 --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs {\"min_lr\":3e-4} "
            f"--warmup_steps 10 --position_gap_max 8000 {_RATIOS}"
        ),
    ),
    Stage(
        "minutes", "video", 160, 7e-4, frames=(16, 32, 64), frames_a_step=1024, questions=12, most_cards=6,
        several=True, relations=0.3, lookalikes=0.15, words=0.2, parts=STILL_TOWER,
        flags=_flags(
            f"--muon_lr 1e-3 {_STEADY} {_RATIOS} 0 --beacon_ratio_mix step-random --position_gap_max 12000"
        ),
    ),
    Stage(
        "long", "video", 140, 6e-4, frames=(64, 128, 256, 512), frames_a_step=2560, questions=20, most_cards=6,
        clip_frames=(1, 12), several=True, relations=0.2, lookalikes=0.6, words=0.15, parts=STILL_TOWER,
        flags=_flags(
            f"--muon_lr 9e-4 {_COSINE} --beacon_ratio_mix instance-random --position_gap_max 4000 {_RATIOS}"
        ),
    ),
)  # fmt: skip


def _small(stage: Stage, steps: int, frames: tuple[int, ...], frames_a_step: int, rows: int) -> Stage:
    return replace(stage, steps=steps, frames=frames, frames_a_step=frames_a_step, rows=rows)


CPU_STAGES = (
    _small(GPU_STAGES[0], 60, (1,), 0, 64),
    replace(_small(GPU_STAGES[1], 40, (1,), 0, 16), flags=_flags(f"--muon_lr 4e-3 {_STEADY}")),
    _small(GPU_STAGES[3], 30, (1,), 0, 64),
    _small(GPU_STAGES[4], 40, (1, 2), 32, 0),
    _small(GPU_STAGES[5], 40, (1, 2), 32, 0),
    _small(GPU_STAGES[7], 10, (16,), 64, 0),
    _small(GPU_STAGES[8], 4, (64,), 128, 0),
)
STAGES = {"gpu": GPU_STAGES, "cpu": CPU_STAGES}


def find_stage(name: str) -> Stage:
    """The stage SIZE/NAME. Raises `DataError` for an unknown stage."""
    size, _, stage = name.partition("/")
    found = next((each for each in STAGES.get(size, ()) if each.name == stage), None)
    if found is None:
        known = ", ".join(f"{size}/{each.name}" for size, stages in STAGES.items() for each in stages)
        raise DataError(f"no stage {name!r} in the synthetic world; there are {known}")
    return found
