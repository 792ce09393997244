"""`generate`, `summarize` and the hooks that connect a summarised sequence to transformers' generation loop.

The runner reads the prompt up to the text after its last visual span; the rest, and every new token, is ordinary
Qwen2 decoding on the `SummaryCache`, driven by transformers.

Shape letters: B batch, L tokens of the expanded prompt, t tokens of a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.utils import GenerateOutput

from videoxl.cache.shared_prefix import repeat_rows
from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import Compressor, get_compressor
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.errors import PromptError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.decode_graph import speculate
from videoxl.model.decoder.decoder import VideoXLModel
from videoxl.model.generation_checks import check_decoding, prompt_ids
from videoxl.model.memory import VideoMemory
from videoxl.model.prompt import Prompt, split_prompt
from videoxl.model.room import ensure_room
from videoxl.model.runner import check_finite, last_hidden, make_chooser, read_context
from videoxl.model.visual import Progress, arrange_spans
from videoxl.utils.compat import CACHE, take_cache
from videoxl.utils.timing import StageTimer

ROOM_FOR_TEXT = 2048  # positions reserved after a summary for the question and its answer


class VideoXLGenerationMixin(GenerationMixin):
    """Adds visual inputs and video memories to `GenerationMixin`."""

    model: VideoXLModel
    config: VideoXLConfig

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args,
        images: Sequence[Tensor] | Tensor | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        modalities: Sequence[str] | None = None,
        beacon_skip_first: int | None = None,
        beacon_skip_last: int | None = None,
        memory: VideoMemory | None = None,
        ratio: int | None = None,
        compressor: str | Compressor | None = None,
        progress: Progress | None = None,
        **kwargs,
    ) -> GenerateOutput | Tensor:
        """Answer prompts that hold visual spans.

        Args:
            inputs: [B, L'] int64 with `IMAGE_TOKEN_INDEX` once for each visual span (or as `input_ids=`).
            images, modalities: as in `forward`.
            beacon_skip_first, beacon_skip_last: first visual token and first token after the span. Found from the
                placeholder; if given, they are only checked against it.
            memory: a `VideoMemory` that replaces the first visual span; `images` then holds only the later ones,
                which are read with the memory's ratio.
            ratio: compression ratio of this call; None: `config.beacon_ratio`. A memory has its own.
            compressor: how visual tokens become positions, by name; None: by beacons. A memory has its own.
            progress: called with numbers of frames as they are read.
            **kwargs: every argument of transformers' `generate`.

        Returns:
            What transformers returns; `sequences` begin with the expanded prompt, each visual token written as id
            `vocab_size - 1`. Rows with shorter text after the last visual span are padded at that text's start.

        Raises:
            PromptError, BatchError, PlanError: see `split_prompt`, `arrange_spans` and `RatioChooser`.
            MemoryLimitError: videos that do not fit on the GPU.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        attention_mask = kwargs.pop("attention_mask", None)
        if images is None and memory is None:
            if input_ids is not None and (input_ids == IMAGE_TOKEN_INDEX).any():
                raise PromptError(
                    "the prompt holds an <image> placeholder, but neither `images` nor `memory` was given"
                )
            if kwargs.get("inputs_embeds") is not None:
                raise PromptError("generate reads input_ids; leave inputs_embeds out")
            return super().generate(input_ids, *args, attention_mask=attention_mask, **kwargs)
        input_ids = prompt_ids(input_ids, kwargs)
        given_config = kwargs.get("generation_config") or (args[0] if args else None)
        check_decoding(kwargs, [config for config in (given_config, self.generation_config) if config is not None])
        if kwargs.pop("use_cache", True) is False:
            warnings.warn("use_cache=False is ignored: a summarised video exists only as a cache", stacklevel=2)

        prompt = split_prompt(input_ids, attention_mask)
        if prompt.num_spans == 0:
            raise PromptError("`images` or `memory` was given, but the prompt holds no <image> placeholder")
        if memory is not None:
            if ratio is not None or compressor is not None:
                raise PromptError("a memory has its ratio and its compressor already; leave ratio and compressor out")
            memory = memory.snapshot()  # whatever other threads do to it meanwhile
            memory.check_prompt(self, prompt)
        spans = arrange_spans(
            [] if images is None else images,
            modalities,
            len(input_ids),
            prompt.num_spans - (memory is not None),
            self.model,
        )
        lengths = [span.length(self.model) for span in spans]
        if memory is not None:
            lengths.insert(0, memory.num_visual_tokens)
        _check_skip(prompt, lengths, beacon_skip_first, beacon_skip_last)

        total = sum(text.shape[1] for text in prompt.texts) + sum(lengths) + prompt.suffixes.longest
        method = get_compressor(compressor) if memory is None else memory.reader.compressor
        chooser = make_chooser(self.config, total, ratio, compressor=method)
        frames = sum(len(span.pixels[0]) for span in spans if span.modality == "video")
        if frames:
            drawn = chooser if memory is None else memory.reader.planner.chooser
            ensure_room(self, frames, drawn.least(), rows=len(input_ids), may_choose=memory is None, compressor=method)
        if memory is not None:
            cache, chooser = memory.finalize_for_query(len(input_ids))  # later visual spans continue its draws
            rest = Prompt(prompt.texts[1:], prompt.suffixes)
        else:
            cache, rest = SummaryCache(len(self.model.layers)), prompt
            if len(chooser.ratios) == 1:
                ratio = chooser.ratios[0]
                kept = sum(lengths) // ratio if ratio else sum(lengths)
                cache.reserve(total - sum(lengths) + kept + 2 * self.config.beacon_window + ROOM_FOR_TEXT)
        hidden = last_hidden(read_context(self.model, rest, spans, cache, chooser, progress, method))
        if hidden is not None:
            check_finite(hidden, cache)

        expanded, mask = self._expand_prompt(prompt, lengths)
        cache.has_padding = not prompt.suffixes.is_even
        kwargs.setdefault("pad_token_id", self.generation_config.pad_token_id)
        if kwargs["pad_token_id"] is None:
            kwargs["pad_token_id"] = _first(self.generation_config.eos_token_id)
        kwargs |= {"attention_mask": mask, CACHE: cache, "use_cache": True}
        with speculate(self) if self._is_greedy(args, kwargs) else nullcontext():
            return super().generate(expanded, *args, **kwargs)

    def _is_greedy(self, args: tuple, given: dict) -> bool:
        """Whether `generate` will decode greedily, as far as its arguments say."""
        config = given.get("generation_config") or (args[0] if args else None)

        def said(name: str):
            values = given.get(name), getattr(config, name, None), getattr(self.generation_config, name, None)
            return next((value for value in values if value is not None), None)

        others = ("prompt_lookup_num_tokens", "assistant_early_exit", "penalty_alpha", "custom_generate")
        plain = not given.get("assistant_model") and not any(map(said, others))
        return plain and not said("do_sample") and said("num_beams") in (None, 1)

    def summarize(
        self,
        frames: Tensor | Iterable,
        prefix_ids: Tensor | Sequence[int],
        ratio: int | None = None,
        progress: Progress | None = None,
        timer: StageTimer | None = None,
        compressor: str | Compressor | None = None,
    ) -> VideoMemory:
        """Read a video once, so that any number of questions can be asked about it.

        Args:
            frames: pixel values [F, 3, S, S], an iterable of such chunks, or a stream of `FrameChunk`s
                (`videoxl.media.stream.open_video`), which is preprocessed on the model's device and gives timestamps.
            prefix_ids: [P] or [1, P] ids of the text before the video, without the placeholder.
            ratio: compression ratio; None: `config.beacon_ratio`.
            progress: called with numbers of frames as they are read.
            timer: collects the seconds of decoding, encoding and summarising.
            compressor: how visual tokens become positions, by name; None: by beacons.

        Returns:
            A `VideoMemory` that grows with `extend`, answers through `generate(..., memory=...)` and can be saved.

        Raises:
            MemoryLimitError: the number of frames is known beforehand and does not fit on the GPU.
        """
        memory = VideoMemory.start(self, prefix_ids, ratio, compressor)
        memory.extend(frames, progress, timer)
        return memory

    def _expand_prompt(self, prompt: Prompt, lengths: list[int]) -> tuple[Tensor, Tensor]:
        """Expanded ids [B, L] with `vocab_size - 1` for visual tokens, and their mask [B, L]."""
        visual_id = self.config.vocab_size - 1
        suffix, suffix_mask = prompt.suffixes.pad(visual_id, "left")
        segments = []
        for text, length in zip(prompt.texts, lengths):
            segments += [text, text.new_full((len(text), length), visual_id)]
        expanded = torch.cat([*segments, suffix], dim=1)
        mask = torch.ones_like(expanded)
        if suffix_mask is not None:
            mask[:, -suffix.shape[1] :] = suffix_mask
        device = self.model.input_device
        return expanded.to(device), mask.to(device)

    # -- hooks of transformers' generation loop ------------------------------------------------------------------

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict) -> Tensor:
        """Positions count what is stored, not the expanded prompt; returns those of the text that is still unread."""
        cache = model_kwargs.get(CACHE)
        if not isinstance(cache, SummaryCache):
            return super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        mask = model_kwargs["attention_mask"]
        positions = (mask.long().cumsum(-1) - 1 - cache.dropped).clamp(min=0)
        return positions[:, cache.get_seq_length() :]

    def prepare_inputs_for_generation(self, input_ids: Tensor, attention_mask=None, **kwargs):
        """The mask handed to `forward` covers the stored positions: its newest columns, since only visual tokens,
        which are never padding, were dropped."""
        cache = take_cache(kwargs)
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs, **{CACHE: cache}
        )
        if isinstance(cache, SummaryCache) and model_inputs.get("attention_mask") is not None:
            stored = cache.get_query_offset() + model_inputs["input_ids"].shape[1]
            mask = model_inputs["attention_mask"][:, -stored:]
            # transformers drops a mask of ones itself from 5.18 on; before, it would prevent the unmasked fast path.
            model_inputs["attention_mask"] = mask if cache.has_padding else None
        return model_inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ):
        """Beams and several answers a prompt need rows of the cache like those of the prompt."""
        cache = model_kwargs.get(CACHE)
        if isinstance(cache, SummaryCache) and expand_size > 1:
            repeat_rows(cache, expand_size, self.config._attn_implementation)
        return super()._expand_inputs_for_generation(  # type: ignore[misc]  # the mixin is only used in a model
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )


def _check_skip(prompt: Prompt, lengths: list[int], first: int | None, last: int | None) -> None:
    found = prompt.texts[0].shape[1]
    if first is not None and first != found:
        raise PromptError(f"beacon_skip_first is {first}, but the placeholder is at {found}; leave it out")
    if last is not None and prompt.num_spans == 1 and last != found + lengths[0]:
        raise PromptError(
            f"beacon_skip_last is {last}, but the visual tokens end at {found + lengths[0]} ({found} before them, "
            f"{lengths[0]} of them); leave it out"
        )


def _first(value: int | list[int] | None) -> int | None:
    return value[0] if isinstance(value, list) else value
