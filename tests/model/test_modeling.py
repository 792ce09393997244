"""The composition against the library: text alone, ratio 0, cached against uncached, losses."""

from __future__ import annotations

import pytest
import torch
from conftest import prompt_for, random_pixels, text_ids, with_spans
from transformers import Qwen2Config, Qwen2ForCausalLM

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import BatchError, ConfigError, PromptError, UnsummarisedTokensWarning
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modeling import LlavaQwenForCausalLM
from videoxl.model.visual import VisualSpan, iter_features


@pytest.fixture
def model(tiny):
    return tiny[1]


@pytest.fixture
def library(model):
    """transformers' Qwen2 with the same decoder weights."""
    keys = set(Qwen2Config().to_dict()) - {"model_type", "architectures"}
    config = Qwen2Config(**{key: value for key, value in model.config.to_dict().items() if key in keys})
    qwen = Qwen2ForCausalLM(config).eval()
    qwen.load_state_dict(
        {key: value for key, value in model.state_dict().items() if key in qwen.state_dict()}, strict=True
    )
    return qwen


def test_text_alone_equals_the_library(model, library):
    ids = torch.randint(0, 256, (2, 50))
    torch.testing.assert_close(model(ids).logits, library(ids).logits, atol=1e-4, rtol=1e-4)
    labels = ids.clone()
    labels[:, :20] = IGNORE_INDEX
    torch.testing.assert_close(model(ids, labels=labels).loss, library(ids, labels=labels).loss)
    arguments = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 256}
    assert model.generate(ids, **arguments).tolist() == library.generate(ids, **arguments).tolist()


@torch.no_grad()
def test_without_compression_the_decoder_equals_the_library_on_the_whole_sequence(tiny, library):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [0]
    _, ids = prompt_for(tokenizer)
    pixels = random_pixels(23)
    logits = model(ids, images=[pixels], modalities=["video"]).logits
    place = ids[0].tolist().index(IMAGE_TOKEN_INDEX)
    features = torch.cat(list(iter_features(model.model, VisualSpan([pixels], "video"))), dim=1)
    embed = model.model.embed_tokens
    whole = torch.cat([embed(ids[:, :place]), features, embed(ids[:, place + 1 :])], dim=1)
    expected = library(inputs_embeds=whole).logits[:, -logits.shape[1] :]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [8, 0])
def test_cached_decoding_equals_reading_the_answer_as_text(tiny, ratio):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [ratio]
    _, ids = prompt_for(tokenizer)
    pixels = random_pixels(12)
    output = model.generate(
        ids, images=[pixels], modalities=["video"], max_new_tokens=8, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    answer = output.sequences[:, -8:]
    whole = model(torch.cat([ids, answer], dim=1), images=[pixels], modalities=["video"]).logits
    torch.testing.assert_close(whole[0, -9:-1], torch.cat(output.logits), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eager_equals_sdpa_with_a_video(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    arguments = {"images": [random_pixels(12)], "modalities": ["video"]}
    sdpa = model(ids, **arguments).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(ids, **arguments).logits, sdpa, atol=1e-4, rtol=1e-4)


def test_loss_is_the_mean_over_labelled_tokens_of_the_logits(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[:, -6:] = ids[:, -6:]
    arguments = {"images": [random_pixels(12)], "modalities": ["video"]}
    loss = model(ids, labels=labels, **arguments).loss
    logits = model(ids, **arguments).logits[0, -7:-1]
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, ids[0, -6:]), atol=1e-5, rtol=1e-5)
    assert model(ids, labels=labels, num_items_in_batch=3, **arguments).loss.item() == pytest.approx(loss.item() * 2)


def test_the_last_visual_token_learns_the_first_answer_token(tiny):
    """A `plain` record has no text between picture and caption: its first token must be learnt too."""
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [0]
    caption = text_ids(tokenizer, "a cat")
    ids = with_spans([], caption)
    labels = torch.tensor([[IGNORE_INDEX, caption[0], *[IGNORE_INDEX] * (len(caption) - 1)]])
    loss = model(ids, labels=labels, images=[random_pixels(1)], modalities=["video"]).loss
    features = torch.cat(list(iter_features(model.model, VisualSpan([random_pixels(1)], "video"))), dim=1)
    hidden = model.model(inputs_embeds=features).last_hidden_state[0, -1]
    expected = torch.nn.functional.cross_entropy(model.lm_head(hidden), torch.tensor(caption[0]))
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)


def test_a_batch_with_right_padding_has_the_loss_of_its_rows(tiny):
    tokenizer, model, _ = tiny
    rows = [prompt_for(tokenizer, question)[1][0] for question in ("Who?", "What is the colour of the sea?")]
    longest = max(map(len, rows))
    ids = torch.zeros(2, longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
        labels[index, len(row) - 5 : len(row)] = row[-5:]
    videos = [random_pixels(12, seed) for seed in (1, 2)]
    batch = model(ids, attention_mask=mask, labels=labels, images=videos, modalities=["video"]).loss
    single = [
        model(row[None], labels=labels[i : i + 1, : len(row)], images=[videos[i]], modalities=["video"]).loss
        for i, row in enumerate(rows)
    ]
    torch.testing.assert_close(batch, sum(single) / 2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("extra", ["o", "mlp"])
def test_beacons_may_have_projections_of_every_kind(tiny, extra):
    _, model, _ = tiny
    config = VideoXLConfig(**{**model.config.to_dict(), "beacon_param": ["q", "k", "v", extra]})
    torch.manual_seed(0)
    other = LlavaQwenForCausalLM(config).eval()
    missing = other.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing and all("beacon_" in name for name in missing)
    assert other.copy_missing_beacon_weights(set(missing)) == set(missing)
    ids, arguments = prompt_for(tiny[0])[1], {"images": [random_pixels(12)], "modalities": ["video"]}
    with torch.no_grad():
        plain = model(ids, **arguments).logits
        torch.testing.assert_close(other(ids, **arguments).logits, plain, atol=1e-4, rtol=1e-4)  # copies change nothing
        for name, parameter in other.named_parameters():
            if name in missing:
                parameter.mul_(3)
        assert (other(ids, **arguments).logits - plain).abs().max() > 1e-2  # and they are what beacons go through


def test_unsummarised_tokens_are_counted_in_a_warning(tiny):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [100]
    with pytest.warns(UnsummarisedTokensWarning, match="28 visual token"):
        model(prompt_for(tokenizer)[1], images=[random_pixels(12)], modalities=["video"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("beacon_attn", "segmentation", "'full-coverage'"),
        ("beacon_pos", "append", "'interleave'"),
        ("beacon_sink_size", 1, "values that work are 0"),
        ("beacon_parallel_window", 2, "values that work are 1"),
        ("beacon_stride", 720, "must be equal"),
        ("beacon_param", ["q", "z"], "'z'"),
        ("mm_projector_type", "resampler", "mlpNx_gelu"),
        ("mm_vision_select_feature", "cls_patch", "'patch'"),
        ("mm_spatial_pool_mode", "conv", "'average' or 'max'"),
        ("mm_vision_select_layer", -9, "3 layers"),
        ("use_sliding_window", True, "use_sliding_window"),
    ],
)
def test_a_configuration_for_another_method_is_refused(model, key, value, said):
    config = VideoXLConfig(**{**model.config.to_dict(), key: value})
    with pytest.raises(ConfigError, match=said):
        LlavaQwenForCausalLM(config)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, PromptError, "no `images` were given"),
        ({"images": []}, PromptError, "`images` holds 0"),
        ({"images": [0, 0]}, PromptError, "`images` holds 2"),
        ({"images": [0], "modalities": ["sound"]}, PromptError, "'sound'"),
        ({"images": [0], "modalities": ["video", "video"]}, PromptError, "2 entries for 1"),
        ({"images": [torch.zeros(2, 3, 224, 224)]}, PromptError, r"\[2, 3, 224, 224\]"),
        ({"images": [torch.zeros(0, 3, 336, 336)]}, PromptError, "no frames"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tiny, arguments, error, said):
    tokenizer, model, _ = tiny
    ids = prompt_for(tokenizer)[1]
    if "images" in arguments:
        arguments["images"] = [random_pixels(2) if isinstance(x, int) else x for x in arguments["images"]]
    with pytest.raises(error, match=said):
        model(ids, **arguments)


def test_rows_of_other_structure_are_refused_with_their_lengths(tiny):
    tokenizer, model, _ = tiny
    after = text_ids(tokenizer, "abc")
    longer = torch.cat([with_spans([5, 6], after), with_spans([5], [*after, 7])])
    with pytest.raises(BatchError, match=r"\[\[2\], \[1\]\]"):
        model(longer, images=[random_pixels(2)] * 2, modalities=["video"])
    equal = with_spans([5, 6], after).repeat(2, 1)
    with pytest.raises(BatchError, match=r"\[288, 432\]"):
        model(equal, images=[random_pixels(2), random_pixels(3)], modalities=["video"])


def test_a_prompt_must_go_on_after_its_last_span(tiny):
    _, model, _ = tiny
    with pytest.raises(PromptError, match="ends with a visual span"):
        model(with_spans([5, 6], []), images=[random_pixels(1)], modalities=["video"])
