"""The synthetic world as a streamed data set: workers send frames as numbers, and the model's device draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modality import visual_length
from videoxl.synth.cards import Card, all_cards, overlay_card, show_card
from videoxl.synth.class_tasks import UNKNOWN, never_in_pictures
from videoxl.synth.drawing import DrawnFrames
from videoxl.synth.patch_classes import NO, PATCH_CLASSES, patch_classes
from videoxl.synth.questions import Question, ask, draw_system_message, sample_cards
from videoxl.synth.scenes import LOOKALIKES, families, make_clip
from videoxl.synth.stages import Stage
from videoxl.synth.story import Story, tell
from videoxl.synth.unseen import UnseenPairs
from videoxl.train.data.collator import collate
from videoxl.train.data.dataset import Sample
from videoxl.train.data.labels import encode_conversation
from videoxl.train.data.plans import SamplePlan
from videoxl.train.data.sources import StreamedDataset

WORDS_FRAMES = 10  # frames per story in words
WORDS_ROWS = 64  # stories per batch of words in a stage of videos
WORDS_QUESTIONS = 8  # questions about each story
WORDS_RELATIONS = 0.5  # share of those about order, number and absence, where the stage is one of videos
# Share of stories in words with a loss on every token, including questions and options. This teaches the letter before
# an option; with a loss only on answers, some seeds never learn to name it (a few do not even with this).
WORDS_WHOLE = 0.2
WORDS_LETTERS = 0.2  # share of their questions about the letter of an option, which not every seed learns to name
WITH_CARD = 0.9  # share of labelled pictures
OVERLAID = 0.9  # share of labelled cards laid over a scene: their shapes are small, and nearly all errors are there
NAMELESS = 0.75  # share of labelled cards whose colour has no name
PICTURE_CLASSES = {attribute: PATCH_CLASSES[attribute] for attribute in ("colour", "shape")}
OF_PICTURES = ("patches", "words of pictures")


class SyntheticStream(StreamedDataset):
    """Samples of one stage. Sample i depends only on (seed, epoch, stage, i).

    Attributes:
        batches: indices of the samples of each step.
        plans: the shape of each sample.
        label_hook: excludes from the loss the classes that the labels mark.
    """

    def __init__(self, stage: Stage, tokenizer, config: VideoXLConfig, num_patches: int, side: int, seed: int):
        self.stage = stage
        self.side = side
        self.patches_across = math.isqrt(num_patches)
        self.seed = seed
        self.tokenizer = _Remembering(tokenizer)
        self._unseen = UnseenPairs(self.tokenizer, config.vocab_size)
        self.label_hook = self._unseen.hide
        self.version = "qwen_1_5"
        self.too_long: list = []
        self.unreadable: list = []
        self.class_names = {}
        if stage.kind in OF_PICTURES:
            self.class_names = PATCH_CLASSES if stage.kind == "patches" else PICTURE_CLASSES
        self.batches: list[list[int]] = []
        self.plans: list[SamplePlan] = []
        self._shapes: list[tuple[str, int, str]] = []  # kind, frames and system message; one for a batch
        for number in range(stage.steps):
            kind, frames, rows = self._batch_shape(number)
            spans = () if kind == "text" else ((kind, visual_length(frames, num_patches, kind, config)),)
            self.batches.append(list(range(len(self.plans), len(self.plans) + rows)))
            questions = stage.questions if spans else 1
            self.plans += [SamplePlan((0,) * len(spans), spans, 0, questions)] * rows
            system = draw_system_message(np.random.default_rng([seed, number, 2]))
            self._shapes += [(kind, frames, system)] * rows
        self.records = range(len(self.plans))

    def _batch_shape(self, number: int) -> tuple[str, int, int]:
        """Kind, frames and rows of a batch."""
        stage = self.stage
        if stage.kind != "video":
            return ("image" if stage.kind in OF_PICTURES else "text"), 1, stage.rows
        rng = np.random.default_rng([self.seed, number, 1])
        kind = rng.random()
        if kind < stage.pictures:
            return "image", 1, max(1, stage.frames_a_step // 4)
        if kind < stage.pictures + stage.words:
            return "text", 1, min(WORDS_ROWS, stage.frames_a_step)
        frames = int(rng.choice(stage.frames))
        return "video", frames, max(1, stage.frames_a_step // frames)

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index, sum(self.stage.name.encode())])
        kind, frames, system = self._shapes[index]
        if self.stage.kind in OF_PICTURES:
            return self._labelled_picture(rng, index, epoch)
        if kind == "text":
            return self._in_words(rng, index, epoch, system)
        stage = self.stage
        cards = sample_cards(rng, min(stage.most_cards, max(1, frames // 2)), several=stage.several)
        scenes = None
        if stage.lookalikes and rng.random() < stage.lookalikes:
            scenes = [str(rng.choice(list(LOOKALIKES), p=list(LOOKALIKES.values())))]
        story = tell(rng, frames, cards, scenes, clip_frames=stage.clip_frames)
        questions = ask(rng, cards, stage.questions, relations=stage.relations)
        if stage.caption:
            _describe(rng, questions, story, "picture" if kind == "image" else "video")
        visual = torch.from_numpy(story.numbers)
        encoded = self._encode(questions, system)
        return Sample(index, epoch, str(index), kind, encoded, [visual], [story.shown])

    def _in_words(self, rng: np.random.Generator, index: int, epoch: int, system: str) -> Sample:
        """A story as text, with all questions in one conversation: many answers for little text."""
        cards = sample_cards(rng, self.stage.most_cards, several=True)
        story = tell(rng, WORDS_FRAMES, cards, clip_frames=(1, 3), drawn=False)
        relations = self.stage.relations if self.stage.kind == "text" else WORDS_RELATIONS
        questions = ask(rng, cards, WORDS_QUESTIONS, relations=relations, letters=WORDS_LETTERS)
        _describe(rng, questions, story, "video")
        turns = []
        for question in questions:
            turns += [{"from": "human", "value": question.text}, {"from": "gpt", "value": question.answer}]
        turns[0]["value"] = f"Scenes: {story.in_words()}.\n{turns[0]['value']}"
        ids, labels = encode_conversation(turns, self.tokenizer, self.version, False, system)
        if rng.random() < WORDS_WHOLE:
            labels = ids
        return Sample(index, epoch, str(index), "text", [(ids, self._unseen.mark(ids, labels))], [])

    def _encode(self, questions: Sequence[Question], system: str) -> list[tuple[list[int], list[int]]]:
        """Each question a conversation of its own after the same video."""
        turns = [
            [{"from": "human", "value": "<image>\n" + question.text}, {"from": "gpt", "value": question.answer}]
            for question in questions
        ]
        encoded = [encode_conversation(each, self.tokenizer, self.version, True, system) for each in turns]
        return [(ids, self._unseen.mark(ids, labels)) for ids, labels in encoded]

    def _labelled_picture(self, rng: np.random.Generator, index: int, epoch: int) -> Sample:
        """One frame and its classes; most show a card."""
        scenes = families(held_out=False)
        numbers = make_clip(rng, scenes[rng.integers(len(scenes))], 4)[rng.integers(4)][None]
        card = None
        if rng.random() < WITH_CARD:
            cards = all_cards("training")
            card = cards[rng.integers(len(cards))]
            if rng.random() < NAMELESS:
                card = Card(None, card.shape)
            is_overlaid = rng.random() < OVERLAID
            numbers = overlay_card(rng, numbers, card) if is_overlaid else show_card(rng, card, 1)
        of_patches, never = map(torch.from_numpy, patch_classes(numbers[0], self.patches_across, card))
        if self.stage.kind == "patches":
            classes = of_patches
        else:
            shown = (NO, NO) if card is None else (card.colour, card.shape)
            pairs = zip(self.class_names.values(), shown)
            classes = torch.tensor([UNKNOWN if value is None else names.index(value) for names, value in pairs])
            rows = [list(PATCH_CLASSES).index(attribute) for attribute in self.class_names]
            never = never_in_pictures(never[None, rows])[0]
        return Sample(index, epoch, str(index), "image", [], [torch.from_numpy(numbers)], [[]], classes, never)

    def collate(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Like `collate`, but with the frames of all samples in one tensor, sent to the trainer's process at once."""
        batch = collate(samples)
        if batch["images"]:
            counts = [len(numbers) for numbers in batch["images"]]
            batch["images"] = DrawnFrames(torch.cat(batch["images"]), counts, self.side)
        return batch


def _describe(rng: np.random.Generator, questions: list[Question], story: Story, what: str) -> None:
    """Let the first question ask for a description, in half of the cases."""
    if rng.random() < 0.5:
        questions[0] = Question("caption", f"Describe this {what}.", story.in_words() + ".")


class _Remembering:
    """A tokenizer with a cache: most texts here come from a few templates."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        encode = tokenizer.backend_tokenizer.encode  # skips the output object, slower than encoding
        self._ids = lru_cache(maxsize=1 << 16)(lambda text: encode(text).ids)

    def __reduce__(self):
        return _Remembering, (self.tokenizer,)

    def __call__(self, text: str, **_) -> _Encoded:
        return _Encoded(self._ids(text))  # the templates hold no control tokens, so how they are read does not matter

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return self.tokenizer.convert_tokens_to_ids(tokens)


@dataclass
class _Encoded:
    input_ids: list[int]
