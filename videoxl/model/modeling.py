"""Video-XL, composed: encode, project, pool, summarise, decode.

The class carries the published architecture's name, so that published checkpoints load as they are and saved ones read
like published ones.

Shape letters: B batch, L tokens of a prompt with one placeholder a visual span, t tokens of a step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from videoxl.cache.gradient import GradientCache
from videoxl.cache.summary import SummaryCache
from videoxl.compression.base import get_compressor
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.errors import ConfigError, PromptError
from videoxl.model.checkpoint import CheckpointLoadingMixin
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.decoder.decode_graph import decode_step
from videoxl.model.decoder.decoder import VideoXLModel
from videoxl.model.generation import VideoXLGenerationMixin
from videoxl.model.loss import TrainingOptions, training_loss
from videoxl.model.prompt import split_prompt
from videoxl.model.runner import make_chooser, read_context
from videoxl.model.visual import arrange_spans
from videoxl.model.weight_checksums import set_aside_stale, single_file_stamp, write_checksums
from videoxl.utils.compat import CACHE, one_cache


@dataclass
class VideoXLOutput(CausalLMOutputWithPast):
    """transformers' output, and the compression ratio of every window that was read."""

    window_ratios: tuple[int, ...] | None = None


class LlavaQwenForCausalLM(CheckpointLoadingMixin, VideoXLGenerationMixin, Qwen2ForCausalLM):
    """Video-XL: a Qwen2 decoder that reads video through visual summary tokens ("beacons")."""

    config: VideoXLConfig
    config_class = VideoXLConfig
    model: VideoXLModel
    accepts_loss_kwargs = True  # `num_items_in_batch`

    def __init__(self, config: VideoXLConfig):
        super(Qwen2ForCausalLM, self).__init__(config)  # Qwen2ForCausalLM would build a plain Qwen2Model first
        self.model = VideoXLModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def enable_input_require_grads(self) -> None:
        """Do nothing. peft calls it for a kind of checkpointing that is not used here.

        It would make a frozen tower keep its activations for a backward pass that is not needed.
        """

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """As in transformers, and checksums of the weights beside them.

        Raises `ConfigError` for a model in FP8, whose weights no checkpoint holds.
        """
        if getattr(self, "weights_format", None) == "fp8":
            raise ConfigError("weights in FP8 are for one run and are not saved; load without load_fp8 to save a model")
        before = single_file_stamp(Path(save_directory))
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            set_aside_stale(Path(save_directory), before)
            write_checksums(Path(save_directory))

    def get_vision_tower(self) -> nn.Module | None:
        return self.model.vision_tower

    def forward(  # noqa: PLR0913  # transformers' signature and the published one
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Sequence[Tensor] | Tensor | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        modalities: Sequence[str] | None = None,
        ratio: int | None = None,
        ratio_seed: int | Sequence[int] = 42,
        training_options: TrainingOptions | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Loss or logits of a batch of prompts.

        Args:
            input_ids: [B, L] int64, `IMAGE_TOKEN_INDEX` once for each visual span.
            attention_mask: [B, L], zero for padding, which may be anywhere.
            labels: [B, L] int64 (the value at a placeholder is ignored), `IGNORE_INDEX` where nothing is learnt.
            images: flat list, row by row, of pixel values [frames or views, 3, S, S].
            image_sizes: accepted for compatibility; `unires` and `flat` do not need them.
            modalities: `video` or `image` for each of `images`.
            ratio: compression ratio of this call; None: `config.beacon_ratio`.
            ratio_seed: seed of the draws where `config.beacon_ratio` holds several ratios.
            training_options: what a training step does differently from plain reading.
            logits_to_keep: as in transformers; with `images` it counts within the text after the last visual span.

        Returns:
            `loss` with labels: the sum over labelled tokens divided by their number (or by `num_items_in_batch`).
            `logits` without labels: [B, t, V], of the text after the last visual span where there are images (rows
            shorter than the longest are padded on the right); then the output's cache holds the summarised sequence.
            `window_ratios` with images: the ratio of every window.

        Raises:
            PromptError, BatchError, PlanError: see `split_prompt`, `arrange_spans` and `RatioChooser`.
        """
        if images is None and training_options is None:
            if input_ids is not None and input_ids.shape[1] > 1 and (input_ids == IMAGE_TOKEN_INDEX).any():
                raise PromptError("the prompt holds an <image> placeholder, but no `images` were given")
            return self._forward_text(
                input_ids,
                attention_mask,
                position_ids,
                one_cache(cache, past_key_values),
                inputs_embeds,
                labels,
                use_cache,
                logits_to_keep,
                kwargs,
            )
        if one_cache(cache, past_key_values) is not None or inputs_embeds is not None:
            raise PromptError("images need input_ids and a fresh cache; leave out the cache and inputs_embeds")

        if input_ids is None:
            raise PromptError("images need input_ids, but none were given")
        model = self.model
        prompt = split_prompt(input_ids, attention_mask, labels)
        options = training_options or TrainingOptions()
        num_videos = len(input_ids) // options.questions_per_video
        spans = arrange_spans(images if images is not None else [], modalities, num_videos, prompt.num_spans, model)
        total = sum(text.shape[1] for text in prompt.texts) + sum(span.length(model) for span in spans)
        total += prompt.suffixes.longest
        method = get_compressor(options.compressor)
        chooser = make_chooser(self.config, total, ratio, ratio_seed, method)
        if labels is not None:
            loss, count, cache = training_loss(self, prompt, spans, chooser, options)
            given = kwargs.get("num_items_in_batch")
            loss = loss / (count.clamp(min=1) if given is None else given)
            return VideoXLOutput(loss=loss, window_ratios=tuple(cache.window_ratios))

        cache = (GradientCache if torch.is_grad_enabled() else SummaryCache)(len(model.layers))
        for _ in read_context(model, prompt, spans, cache, chooser, compressor=method):
            pass
        suffix, _ = prompt.suffixes.pad(0, "right")
        hidden = model.text_step(model.embed_tokens(suffix.to(model.input_device)), cache)
        return VideoXLOutput(
            logits=self.lm_head(_keep(hidden, logits_to_keep)),
            window_ratios=tuple(cache.window_ratios),
            **_past(cache),
        )

    def _forward_text(
        self,
        input_ids,
        attention_mask,
        position_ids,
        cache,
        inputs_embeds,
        labels,
        use_cache,
        logits_to_keep,
        kwargs,
    ) -> CausalLMOutputWithPast:
        """Text only: plain Qwen2 on any cache, or text after a summarised sequence on a `SummaryCache`."""
        if not isinstance(cache, SummaryCache):
            return super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **kwargs,
                **{CACHE: cache},
            )
        wanted = {name: True for name in ("output_hidden_states", "output_attentions") if kwargs.get(name)}
        if input_ids is not None and position_ids is not None and not wanted:
            step = decode_step(self, input_ids, attention_mask, cache)
            if step is not None:
                logits = step(input_ids, position_ids, cache)
                return CausalLMOutputWithPast(logits=logits, **_past(cache))
        embeds = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        output = self.model.text_output(embeds, cache, position_ids, attention_mask, **wanted)
        assert output.last_hidden_state is not None  # Optional in transformers' type only
        return CausalLMOutputWithPast(
            logits=self.lm_head(_keep(output.last_hidden_state, logits_to_keep)),
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            **_past(cache),
        )


def _past(cache: SummaryCache) -> dict[str, Any]:
    """The cache under the name that the installed transformers gives it."""
    return {CACHE: cache}


def _keep(hidden: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    return hidden[:, rows]
