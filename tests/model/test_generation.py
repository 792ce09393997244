"""`generate`: batches, several visual spans, sampling, streaming, beams; no call sees another."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
import torch
from conftest import prompt_for, random_pixels, text_ids, with_spans
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from videoxl.errors import NonFiniteError, PromptError

NEW = 8


def answer(model, ids, images, modalities=("video",), **kwargs):
    output = model.generate(
        ids, images=images, modalities=list(modalities), **{"max_new_tokens": NEW, "do_sample": False, **kwargs}
    )
    return output[:, -NEW:].tolist()


def test_the_output_begins_with_the_expanded_prompt(tiny):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    output = model.generate(ids, images=[random_pixels(3)], modalities=["video"], max_new_tokens=NEW, do_sample=False)
    after = ids[0, len(before) + 1 :].tolist()
    expected = [*before, *[model.config.vocab_size - 1] * (3 * 144), *after]
    assert output[0, : len(expected)].tolist() == expected
    assert output.shape[1] == len(expected) + NEW


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_batch_gives_what_single_runs_give(tiny, padding):
    tokenizer, model, _ = tiny
    rows = [prompt_for(tokenizer, question)[1][0] for question in ("Who is there?", "Why?", "What colour is it now?")]
    videos = [random_pixels(12, seed) for seed in range(3)]
    single = [answer(model, row[None], [video])[0] for row, video in zip(rows, videos)]
    longest = max(map(len, rows))
    ids, mask = torch.full((3, longest), 256), torch.zeros(3, longest, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if padding == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    assert answer(model, ids, videos, attention_mask=mask) == single
    model.set_attn_implementation("eager")
    assert answer(model, ids, videos, attention_mask=mask) == single


def test_two_videos_in_a_row_do_not_see_each_other(tiny):
    tokenizer, model, _ = tiny
    model.config.beacon_ratio = [2, 4, 8]  # random ratios start anew with every sequence
    _, ids = prompt_for(tokenizer)
    first = answer(model, ids, [random_pixels(24, 1)])
    second = answer(model, ids, [random_pixels(24, 2)])
    assert answer(model, ids, [random_pixels(24, 1)]) == first
    assert answer(model, ids, [random_pixels(24, 2)]) == second
    assert not [value for value in vars(model.model).values() if isinstance(value, torch.Tensor)]


def test_a_video_and_pictures_in_one_prompt_are_read_in_order(tiny):
    tokenizer, model, _ = tiny
    pieces = [text_ids(tokenizer, text) for text in ("first ", " then ", " and ", " tell me")]
    ids = with_spans(*pieces)
    video, tiles, single = random_pixels(12, 1), random_pixels(3, 2), random_pixels(1, 3)
    with torch.no_grad():
        output = model(ids, images=[tiles, video, single], modalities=["image", "video", "image"])
    cache = output.past_key_values
    texts = sum(map(len, pieces))
    assert cache.get_seq_length() == texts + 2 * 144 + 12 * 144 + 576
    assert cache.get_query_offset() == texts + (2 * 144 + 12 * 144 + 576) // 8
    assert cache.window_ratios == [8] * 4  # one window a picture, two for the video
    arguments = {"modalities": ["image", "video", "image"]}
    right = answer(model, ids, [tiles, video, single], **arguments)
    assert answer(model, ids, [tiles, video, single], **arguments) == right
    with torch.no_grad():
        swapped = model(ids, images=[tiles, random_pixels(12, 9), single], **arguments).logits
    assert (swapped - output.logits).abs().max() > 1e-3  # the middle visual span is seen


def test_several_pictures_and_adjacent_spans_work(tiny):
    tokenizer, model, _ = tiny
    ids = with_spans(text_ids(tokenizer, "compare "), [], text_ids(tokenizer, " now"))
    assert len(answer(model, ids, [random_pixels(1, 1), random_pixels(1, 2)], ["image"])[0]) == NEW


def test_a_video_in_the_middle_of_a_conversation(tiny):
    tokenizer, model, _ = tiny
    before = "<|im_start|>user\nHello.<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\n"
    after = "\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA film.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
    ids = with_spans(text_ids(tokenizer, before), text_ids(tokenizer, after))
    model.set_attn_implementation("eager")
    eager = answer(model, ids, [random_pixels(11)])
    model.set_attn_implementation("sdpa")
    assert answer(model, ids, [random_pixels(11)]) == eager


def test_pixels_of_any_float_type_are_taken(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    pixels = random_pixels(3).half()
    assert answer(model, ids, [pixels]) == answer(model, ids, [pixels.double()])


def test_streaming_gives_the_answer_as_it_is_made(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    arguments = {"images": [random_pixels(3)], "modalities": ["video"], "max_new_tokens": NEW, "do_sample": False}
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs={**arguments, "streamer": streamer})
    thread.start()
    try:
        streamed = "".join(streamer)
    except queue.Empty:
        pytest.fail("nothing was streamed")
    thread.join()
    assert streamed == tokenizer.decode(model.generate(ids, **arguments)[0, -NEW:])


def test_beams_and_several_answers(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    video = [random_pixels(12)]
    output = model.generate(
        ids, images=video, modalities=["video"], num_beams=2, num_return_sequences=2, do_sample=False,
        max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    assert len(output.sequences) == 2
    assert output.sequences_scores[0] >= output.sequences_scores[1]
    # Beam search scores what teacher forcing gives the same tokens.
    new = output.sequences[:1, -NEW:]
    with torch.no_grad():
        logits = model(torch.cat([ids, new], 1), images=video, modalities=["video"]).logits[0, -NEW - 1 : -1]
    scored = logits.log_softmax(-1).gather(1, new[0, :, None]).sum() / NEW
    assert scored.item() == pytest.approx(output.sequences_scores[0].item(), abs=1e-4)
    torch.manual_seed(0)
    sampled = answer(model, ids, video, do_sample=True, temperature=1.0, top_p=None, num_return_sequences=3)
    assert len(sampled) == 3 and len({tuple(row) for row in sampled}) > 1


def test_stopping_criteria_and_sampling_seeds(tiny):
    tokenizer, model, _ = tiny

    class After3(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= start + 3])

    _, ids = prompt_for(tokenizer)
    start = ids.shape[1] - 1 + 144
    output = model.generate(
        ids, images=[random_pixels(1)], modalities=["video"], max_new_tokens=50,
        stopping_criteria=StoppingCriteriaList([After3()]),
    )  # fmt: skip
    assert output.shape[1] == start + 3


def test_hidden_states_and_attentions_are_recorded_on_request(tiny):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    model.set_attn_implementation("eager")
    output = model.generate(
        ids, images=[random_pixels(10)], modalities=["video"], max_new_tokens=2, do_sample=False,
        return_dict_in_generate=True, output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    after = ids.shape[1] - 1 - len(before)
    stored = len(before) + 180 + after
    assert [tuple(states[-1].shape) for states in output.hidden_states] == [(1, after, 96), (1, 1, 96)]
    assert tuple(output.attentions[1][0].shape) == (1, 6, 1, stored + 1)
    torch.testing.assert_close(output.attentions[1][0].sum(-1), torch.ones(1, 6, 1))


def test_skips_are_found_and_wrong_ones_refused(tiny):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    video, first = [random_pixels(2)], len(before)
    right = answer(model, ids, video, beacon_skip_first=first, beacon_skip_last=first + 288)
    assert right == answer(model, ids, video)
    with pytest.raises(PromptError, match="beacon_skip_first is 3"):
        answer(model, ids, video, beacon_skip_first=3)
    with pytest.raises(PromptError, match="beacon_skip_last is 999"):
        answer(model, ids, video, beacon_skip_last=999)


def test_two_placeholders_for_one_video_are_refused(tiny):
    tokenizer, model, _ = tiny
    pieces = [text_ids(tokenizer, text) for text in ("a", "b", "c")]
    with pytest.raises(PromptError, match=r"2 <image> placeholder.*holds 1"):
        answer(model, with_spans(*pieces), [random_pixels(1)])
    with pytest.raises(PromptError, match="neither"):
        model.generate(with_spans(*pieces), max_new_tokens=1)
    with pytest.raises(PromptError, match="no <image> placeholder"):
        answer(model, torch.tensor([pieces[0]]), [random_pixels(1)])


def test_nan_is_reported_with_its_layer(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="input of decoder layer 2"):
        answer(model, ids, [random_pixels(3)])


def test_threads_may_ask_one_memory_at_once(tiny):
    tokenizer, model, _ = tiny
    before, _ = prompt_for(tokenizer)
    memory = model.summarize(random_pixels(12), prefix_ids=before)
    prompts = [prompt_for(tokenizer, question)[1] for question in ("Who?", "Where is it?", "Why so?", "When was that?")]
    arguments = {"memory": memory, "max_new_tokens": NEW, "do_sample": False}
    alone = [model.generate(ids, **arguments).tolist() for ids in prompts]
    together = [None] * len(prompts)

    def ask(index):
        together[index] = model.generate(prompts[index], **arguments).tolist()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prompt_lookup_num_tokens", 3),
        ("assistant_early_exit", 1),
        ("penalty_alpha", 0.6),
        ("cache_implementation", "static"),
        ("custom_generate", "somebody/code"),
        ("inputs_embeds", torch.zeros(1, 5, 96)),
    ],
)
@pytest.mark.parametrize("with_memory", [False, True])
def test_ways_of_decoding_that_work_for_text_alone_are_refused(tiny, option, value, with_memory):
    tokenizer, model, _ = tiny
    before, ids = prompt_for(tokenizer)
    pixels = random_pixels(2)
    visual = {"images": [pixels], "modalities": "video"}
    if with_memory:
        visual = {"memory": model.summarize(pixels, prefix_ids=before, ratio=8)}
    with pytest.raises(PromptError, match=option) as caught:
        model.generate(ids, **visual, **{option: value}, max_new_tokens=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(PromptError, match="assistant_model"):
        model.generate(ids, **visual, assistant_model=model, max_new_tokens=2)


def test_arrays_lists_and_one_modality_as_text_are_taken(tiny):
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    pixels, options = random_pixels(11), {"max_new_tokens": 6, "do_sample": False, "ratio": 8}
    expected = model.generate(ids, images=[pixels], modalities=["video"], **options).tolist()
    assert model.generate(ids.tolist(), images=[pixels.numpy()], modalities="video", **options).tolist() == expected
    double = model.double()
    assert double.generate(ids.numpy(), images=[pixels], modalities=["video"], **options).tolist() == expected


@pytest.mark.parametrize(
    ("ids", "images", "said"),
    [
        (None, None, "no prompt"),
        ([[1.5, -200]], None, "whole numbers"),
        ([[1], [2, 3]], None, "input_ids must be"),
        (None, ["film.mp4"], "no prompt"),
        ([[1, -200, 2]], ["film.mp4"], "is a str, not pixel values"),
        ([[1, -200, 2]], [np.zeros((2, 336, 336, 3), np.uint8)], "not been normalised"),
        ([[1, -200, 2]], [torch.zeros(2, 3, 336, 336, dtype=torch.uint8)], "not been normalised"),
    ],
)
def test_what_is_no_prompt_and_no_pixels_is_named(tiny, ids, images, said):
    _, model, _ = tiny
    with pytest.raises(PromptError, match=said):
        model.generate(ids, images=[random_pixels(1)] if images is None else images, modalities="video")
