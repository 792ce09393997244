"""The training loss: gradients through the cache, checkpointing, gaps, truncation, shared videos, blank passes."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT, prompt_for, random_pixels, with_spans

from videoxl.cache.gradient import GradientCache
from videoxl.compression.plan import Window
from videoxl.compression.rows import WindowLayout
from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import BatchError
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.loss import AT_LEAST, TRAINED_AT_ONCE, PassCounts, TrainingOptions
from videoxl.model.runner import group_limit


@pytest.fixture
def sample(tiny):
    """(model in training mode, arguments of a 12-frame sample with two windows)."""
    tokenizer, model, _ = tiny
    _, ids = prompt_for(tokenizer)
    labels = ids.clone()
    labels[:, :-8] = IGNORE_INDEX
    model.config.beacon_ratio = [8]
    arguments = {"input_ids": ids, "labels": labels, "images": [random_pixels(12)], "modalities": ["video"]}
    return model.train(), arguments


def gradients(model, **arguments) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**arguments).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


def assert_same(left, right) -> None:
    """Losses and gradients agree; one that is absent is zero."""
    assert left[0] == pytest.approx(right[0], abs=1e-6)
    assert len(left[1].keys() & right[1].keys()) > 90
    for name in left[1].keys() | right[1].keys():
        other = next(found[name] for found in (left[1], right[1]) if name in found)
        pair = (found.get(name, torch.zeros_like(other)) for found in (left[1], right[1]))
        torch.testing.assert_close(*pair, atol=1e-6, rtol=1e-4, msg=name)


def test_gradients_flow_from_later_steps_into_earlier_ones():
    cache = GradientCache(1)
    beacons = torch.ones(1, 2, 1, 4, requires_grad=True)
    cache.layers[0].add((beacons * 2, beacons * 3))
    cache.close_windows([Window(0, 3, 3, 0)], [1])
    late = torch.ones(1, 2, 1, 4)
    keys, values = cache.update(late, late, 0)
    (keys.sum() + values.sum()).backward()
    assert beacons.grad.unique().tolist() == [5.0]
    assert (cache.get_query_offset(), cache.get_seq_length()) == (2, 4)


def test_gradient_checkpointing_gives_the_same_gradients_and_runs_every_layer_twice(sample):
    model, arguments = sample
    plain = gradients(model, **arguments)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert_same(gradients(model, **arguments), plain)
    hook.remove()
    assert len(calls) == 6  # prefix, both windows, suffix; each again on the backward pass


def test_checkpointing_keeps_less_for_the_way_back(sample):
    model, arguments = sample

    def bytes_kept() -> int:
        kept = {}
        model_storage = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in model_storage:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(**arguments)
        return sum(kept.values())

    model.model.vision_tower.requires_grad_(False)
    plain = bytes_kept()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert bytes_kept() < plain / 3


def test_blank_passes_change_neither_loss_nor_gradients(sample):
    model, arguments = sample
    plain = gradients(model, **arguments)
    seen = []

    def sync(counts: PassCounts) -> PassCounts:
        seen.append(counts)
        return PassCounts(counts.vision + 2, counts.decoder + 3, counts.head + 1)

    options = TrainingOptions(sync=sync)
    assert_same(gradients(model, **arguments, training_options=options), plain)
    assert seen == [PassCounts(vision=1, decoder=3, head=1)]


def test_every_parameter_has_a_gradient_on_text_alone_when_others_have_videos(sample):
    model, _ = sample
    ids = torch.tensor([[5, 6, 7, 8]])
    alone = model(input_ids=ids, labels=ids.clone(), training_options=TrainingOptions()).loss
    runs = []
    for name in ("vision_tower", "mm_projector", "layers.0", "norm"):
        module = model.model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
    options = TrainingOptions(sync=lambda counts: counts.maximum(PassCounts(2, 5, 1)))
    loss, found = gradients(model, input_ids=ids, labels=ids.clone(), training_options=options)
    assert loss == pytest.approx(alone.item(), abs=1e-6)
    assert [runs.count(name) for name in ("vision_tower", "layers.0")] == [2, 5]
    used = {n for n, _ in model.named_parameters() if not _unused(n, model)}
    assert used <= found.keys()


def _unused(name: str, model) -> bool:
    """Parameters after the tower's selected layer."""
    last = model.config.mm_vision_config["num_hidden_layers"] - 1
    return "post_layernorm" in name or f"encoder.layers.{last}." in name


def test_passes_of_a_step_come_in_one_order(sample):
    """Vision, text, windows, text, head: whatever a process has to read, so that collective calls meet."""
    model, arguments = sample
    order = []
    model.model.vision_tower.register_forward_hook(lambda *_: order.append("vision"))
    model.lm_head.register_forward_hook(lambda *_: order.append("head"))
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: order.append("window" if isinstance(kwargs["window"], WindowLayout) else "text"),
        with_kwargs=True,
    )
    layer.self_attn.beacon_k_proj.register_forward_hook(lambda *_: order.append("beacons"))
    options = TrainingOptions(sync=lambda counts: counts.maximum(PassCounts(2, 4, 1)))
    model(**arguments, training_options=options)
    with_video, order[:] = list(order), []
    ids = arguments["input_ids"][:, -8:]
    model(input_ids=ids, labels=ids, training_options=options)
    assert order == with_video
    steps = [name for name in order if name != "beacons"]
    assert steps == ["vision", "vision", "text", "window", "window", "text", "head"]
    assert order.count("beacons") == 4  # text calls them too, on no rows


def test_whatever_a_prompt_looks_like_the_same_modules_are_called_in_the_same_order(tiny):
    """DeepSpeed compares the calls of all modules between processes, one by one."""
    _, model, _ = tiny
    model.train().config.beacon_ratio = [8]
    calls: list[str] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    picture, film = random_pixels(1), random_pixels(12)
    prompts = {
        "text": (torch.tensor([[5, 6, 7]]), [], []),
        "video": (with_spans([5, 6], [7]), [film], ["video"]),
        "pictures": (with_spans([5, 6], [], [7]), [picture] * 2, ["image"] * 2),
        "pictures apart": (with_spans([5, 6], [7, 8], [9]), [picture] * 2, ["image"] * 2),
        "picture first": (with_spans([], [7, 8]), [picture], ["image"]),
    }
    seen = {}
    for name, (ids, images, modalities) in prompts.items():
        calls.clear()
        options = TrainingOptions(sync=lambda counts: counts.maximum(PassCounts(3, 6, 2)))
        output = model(
            input_ids=ids, labels=ids.clone(), images=images, modalities=modalities, training_options=options
        )
        output.loss.backward()
        seen[name] = list(calls)
    assert len(seen["text"]) > 300
    for name in prompts:
        assert seen[name] == seen["text"], name


@pytest.mark.parametrize(
    ("ratios", "options", "backend"),
    [
        ([8], {}, "sdpa"),
        ([8], {}, "eager"),
        ([2, 4, 8, 0], {"position_gap_max": 500, "gap_seed": 3}, "sdpa"),
        ([7], {}, "sdpa"),
        ([8], {"bptt_windows": 3, "evidence": [[(0, 2)], []]}, "sdpa"),
        ([4], {"questions_per_video": 2}, "sdpa"),
    ],
)
@pytest.mark.filterwarnings("ignore::videoxl.errors.UnsummarisedTokensWarning")
def test_windows_read_together_give_what_they_give_one_by_one(tiny, monkeypatch, ratios, options, backend):
    _, model, _ = tiny
    model.train().set_attn_implementation(backend)
    model.config.beacon_ratio, model.config.beacon_window = ratios, 288
    ids = with_spans([5, 6], [7, 8], [9, 10, 11]).repeat(2, 1)
    videos = [random_pixels(number, seed) for seed, number in enumerate((7, 3, 7, 3))]
    videos = videos[: 4 // options.get("questions_per_video", 1)]
    arguments = {"input_ids": ids, "labels": ids.clone(), "images": videos, "modalities": ["video"]}
    arguments["training_options"] = TrainingOptions(**options)
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    found, numbers = [], []
    for at_once in (1, 2, 100) if backend == "sdpa" else (1, 100):
        monkeypatch.setattr("videoxl.model.loss.group_limit", lambda *_, at_once=at_once: at_once)
        calls.clear()
        found.append(gradients(model, **arguments))
        numbers.append(len(calls))
    for other in found[1:]:
        assert_same(other, found[0])
    # Three texts, four and two windows.
    assert numbers[0] == 3 + 4 + 2 > numbers[-1] and (0 in ratios or numbers[-1] <= 3 + 2 * 2)


def test_as_many_windows_are_read_together_as_memory_is_meant_for(tiny):
    _, model, _ = tiny
    config = VideoXLConfig.from_pretrained(ROOT / "configs" / "qwen2-7b.json")
    assert group_limit(config, 1, TRAINED_AT_ONCE) == 17 and group_limit(config, 100, TRAINED_AT_ONCE) == 1
    assert group_limit(config, 1) == 4 and group_limit(model.config, 8) > 10


def test_truncation_stops_gradients_at_the_windows_that_are_named(sample):
    model, arguments = sample
    arguments["images"] = [random_pixels(32)]  # four windows, the last of two frames
    touched = []

    def watch(module, args, kwargs):
        if kwargs["window"] is not None:
            touched.append(torch.is_grad_enabled())

    model.model.layers[0].register_forward_pre_hook(watch, with_kwargs=True)
    full = gradients(model, **arguments)
    assert touched == [True]  # all four at once
    touched.clear()
    cut = gradients(model, **arguments, training_options=TrainingOptions(bptt_windows=1))
    assert touched == [False, True]
    assert cut[0] == pytest.approx(full[0], abs=1e-6)  # the same reading
    touched.clear()
    evidence = [[(1500, 1502)]]
    gradients(model, **arguments, training_options=TrainingOptions(bptt_windows=1, evidence=evidence))
    assert touched == [False, True, False, True]


def test_gaps_move_later_positions_and_nothing_else(sample):
    model, arguments = sample
    positions = []
    rotary = model.model.rotary_emb
    rotary.register_forward_pre_hook(lambda _, args: positions.append(args[1].flatten().tolist()))
    plain = model(**arguments).loss.item()
    without = [step[0] for step in positions]
    positions.clear()
    model(**arguments, training_options=TrainingOptions(position_gap_max=0, gap_seed=3))
    assert [step[0] for step in positions] == without
    positions.clear()
    moved = model(**arguments, training_options=TrainingOptions(position_gap_max=1000, gap_seed=3)).loss.item()
    starts = [step[0] for step in positions]
    assert starts[0] == 0 and all(b > a for a, b in zip(without[1:], starts[1:]))
    lengths = [max(step) - min(step) for step in positions]
    assert lengths[-1] == len(positions[-1]) - 1  # inside a step nothing is left out
    assert moved != plain


def test_questions_about_one_video_share_its_windows_and_give_the_mean_of_their_losses(tiny):
    tokenizer, model, _ = tiny
    model.train().config.beacon_ratio = [8]
    questions = ["Which colour?", "How many of them are there in all?", "What comes last?"]
    rows = [prompt_for(tokenizer, question)[1][0] for question in questions]
    longest = max(map(len, rows))
    ids = torch.zeros(3, longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
        labels[index, len(row) - 4 : len(row)] = row[-4:]
    video = random_pixels(12)
    calls = []
    hook = model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    shared = model(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        images=[video],
        modalities=["video"],
        training_options=TrainingOptions(questions_per_video=3),
    ).loss
    hook.remove()
    assert len(calls) == 1  # twelve frames in one pass of so narrow a tower
    alone = [
        model(input_ids=row[None], labels=labels[i : i + 1, : len(row)], images=[video], modalities=["video"]).loss
        for i, row in enumerate(rows)
    ]
    torch.testing.assert_close(shared, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)


def test_questions_with_different_prefixes_cannot_share_a_video(tiny):
    _, model, _ = tiny
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 7], [6, IMAGE_TOKEN_INDEX, 7]])
    with pytest.raises(BatchError, match="same text before"):
        model(
            input_ids=ids,
            labels=ids,
            images=[random_pixels(1)],
            modalities=["video"],
            training_options=TrainingOptions(questions_per_video=2),
        )


def test_features_of_the_tower_serve_in_place_of_pixels(sample):
    model, arguments = sample
    plain = model(**arguments).loss
    with torch.no_grad():
        features = model.model.vision_tower(arguments["images"][0])
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(model(**arguments | {"images": [features]}).loss, plain)
    assert not calls


def test_a_span_count_that_differs_still_meets_the_agreed_number_of_passes(tiny):
    _, model, _ = tiny
    model.train().config.beacon_ratio = [8]
    ids = with_spans([5, 6], [7], [8, 9])
    counted = []
    model.model.layers[0].register_forward_hook(lambda *_: counted.append(1))
    options = TrainingOptions(sync=lambda counts: counts.maximum(PassCounts(9, 9, 1)))
    images = [random_pixels(1), random_pixels(2)]
    model(input_ids=ids, labels=ids.clone(), images=images, modalities=["image", "video"], training_options=options)
    assert len(counted) == 9
    assert AT_LEAST.decoder >= 3


def test_a_label_hook_sees_what_is_learnt_and_changes_the_choice(sample):
    """What it takes out of the choice is neither taught nor ruled out: its row of the head has no gradient."""
    model, arguments = sample
    plain = gradients(model, **arguments)
    learnt = [label for label in arguments["labels"][0, 1:].tolist() if label >= 0]
    unused = next(token for token in range(model.config.vocab_size) if token not in learnt)
    seen = []

    def hook(logits, labels):
        seen.extend((labels >> 32).tolist())
        logits = logits.clone()
        logits[labels >> 32 == 1, unused] = -torch.inf
        return logits, labels & 0xFFFFFFFF

    options = TrainingOptions(label_hook=hook)
    assert_same(gradients(model, **arguments, training_options=options), plain)
    assert len(seen) == len(learnt) and set(seen) == {0}
    labels = arguments["labels"].clone()
    labels[labels != IGNORE_INDEX] |= 1 << 32
    loss, found = gradients(model, **(arguments | {"labels": labels}), training_options=options)
    assert 0 < loss < plain[0]
    assert plain[1]["lm_head.weight"][unused].abs().sum() > 0
    assert found["lm_head.weight"][unused].abs().sum() == 0
