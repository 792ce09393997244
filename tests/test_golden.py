"""The published system's recorded outputs, reproduced through the public surface."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
from conftest import golden_names, load_golden_model
from PIL import Image

from videoxl.chat import tokenizer_image_token
from videoxl.media.pixels import VideoXLImageProcessor, resize_fixed_point
from videoxl.media.resize import shorter_side_to
from videoxl.media.views import process_images
from videoxl.model.visual import VisualSpan, iter_features
from videoxl.train.data.labels import encode_conversation

TRAIN = ("train_image_2x2_r4", "train_video_12f_r8", "train_pretrain_stage_video_4f")


@pytest.fixture(scope="module")
def checkpoint(golden):
    return load_golden_model(golden)


def read_case(golden, name):
    case = next(case for case in json.loads((golden / "cases.json").read_text()) if case["name"] == name)
    pixels = np.random.default_rng(case["seed"]).standard_normal(case["pixel_shape"]).astype(np.float32)
    return case, np.load(golden / "cases" / f"{name}.npz"), torch.from_numpy(pixels)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", golden_names("cases.json"))
@pytest.mark.filterwarnings("ignore::videoxl.errors.UnsummarisedTokensWarning")
def test_generation_equals_the_record(golden, checkpoint, name, attention):
    tokenizer, model, _, _ = checkpoint
    case, record, pixels = read_case(golden, name)
    model.set_attn_implementation(attention)
    model.config.beacon_ratio = case["ratio"]
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\n"
        f"{case['question']}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt").unsqueeze(0)
    assert ids.tolist() == record["input_ids"].tolist()
    output = model.generate(
        ids,
        images=[pixels],
        modalities=["video" if case["frames"] else "image"],
        do_sample=False,
        max_new_tokens=case["max_new_tokens"],
        return_dict_in_generate=True,
        output_logits=True,
    )
    recorded = torch.from_numpy(record["logits"])
    logits = torch.cat(output.logits)[: len(recorded)]
    assert (logits - recorded).abs().max() < 1e-3
    assert output.sequences[0, -len(output.logits) :].tolist() == record["generated"].tolist()
    prefix, beacons, _ = record["memory_sizes"][0]
    cache = output.past_key_values
    answered = len(output.logits) - 1
    assert cache.get_query_offset() == prefix + beacons + (ids.shape[1] - 1 - prefix) + answered


@pytest.mark.parametrize("name", golden_names("cases.json"))
@pytest.mark.filterwarnings("ignore::videoxl.errors.UnsummarisedTokensWarning")
def test_features_and_beacons_equal_the_record(golden, checkpoint, name):
    _, model, _, _ = checkpoint
    case, record, pixels = read_case(golden, name)
    model.config.beacon_ratio = case["ratio"]
    modality = "video" if case["frames"] else "image"
    with torch.no_grad():
        features = torch.cat(list(iter_features(model.model, VisualSpan([pixels], modality))), dim=1)[0]
        cache = model(torch.from_numpy(record["input_ids"]), images=[pixels], modalities=[modality]).past_key_values
    assert len(features) == record["num_visual_tokens"]
    np.testing.assert_allclose(features[:8], record["visual_features_head"], atol=1e-4)
    np.testing.assert_allclose(features[-8:], record["visual_features_tail"], atol=1e-4)
    prefix, beacons, _ = record["memory_sizes"][0]
    for layer, tag in ((cache.layers[0], "0"), (cache.layers[-1], "L")):
        positions = torch.arange(prefix, prefix + beacons)
        cos, signed_sin = model.model.rotary_emb(layer.keys, positions.unsqueeze(0))
        keys = layer.keys[:, :, prefix : prefix + beacons]
        half = keys.shape[-1] // 2
        # Undo the rotation: the same formula with the angle's sign turned.
        keys = keys * cos.unsqueeze(1) - keys.roll(half, -1) * signed_sin.unsqueeze(1)
        values = layer.values[:, :, prefix : prefix + beacons]
        for kind, found in (("k", keys), ("v", values)):
            ends = torch.cat([found[:, :, :8], found[:, :, -8:]], dim=2)
            np.testing.assert_allclose(ends, record[f"beacon_{kind}{tag}_ends"], atol=1e-3)
            assert found.shape[2] == record[f"beacon_{kind}{tag}_count"]
            assert abs(found.mean().item() - record[f"beacon_{kind}{tag}_mean"]) < 1e-4
            assert abs(found.abs().mean().item() - record[f"beacon_{kind}{tag}_absmean"]) < 1e-4


@pytest.mark.parametrize("name", TRAIN)
def test_losses_and_gradients_equal_the_record(golden, name):
    case = json.loads((golden / f"{name}.json").read_text())
    _, model, _, _ = load_golden_model(golden)
    model.train()
    model.config.beacon_ratio = case["ratio"]
    if case["naive"]:
        model.config.enable_beacon, model.config.mm_patch_merge_type = False, "flat"
    views = case["frames"] or case["image"][2]
    pixels = np.random.default_rng(case["seed"]).standard_normal((views, 3, 336, 336)).astype(np.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    for step, recorded in enumerate(case["losses"]):
        loss = model(
            input_ids=torch.tensor([case["input_ids"]]),
            labels=torch.tensor([case["labels"]]),
            images=[torch.from_numpy(pixels)],
            modalities=["video" if case["frames"] else "image"],
        ).loss
        optimizer.zero_grad()
        loss.backward()
        assert abs(loss.item() - recorded) < 2e-3
        if step == 0:
            check_gradients(model, case["grad_norms"])
        optimizer.step()


def check_gradients(model, recorded: dict[str, float | None]) -> None:
    parameters = dict(model.named_parameters())
    for name, norm in recorded.items():
        gradient = parameters[name].grad
        found = 0.0 if gradient is None else gradient.norm().item()
        assert abs(found - (norm or 0.0)) <= max(1e-6, 0.01 * (norm or 0.0)), name
    silent = {name for name in parameters if name not in recorded}
    assert all("beacon_" in name and parameters[name].grad is None for name in silent)


@pytest.mark.parametrize("number", range(7))
def test_conversations_equal_the_record(golden, checkpoint, number):
    cases = json.loads((golden / "text_cases.json").read_text())
    assert len(cases) == 7
    case = cases[number]
    ids, labels = encode_conversation(case["conversations"], checkpoint[0], case["version"], case["has_image"])
    assert ids == case["input_ids"]
    assert labels == case["labels"]


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """The records' test picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    channels = []
    for _ in range(3):
        fx, fy, phase = rng.uniform(1, 6), rng.uniform(1, 6), rng.uniform(0, 6.28)
        channels.append(127.5 + 120 * np.sin(2 * np.pi * (fx * x / width + fy * y / height) + phase))
    return np.stack(channels, -1).round().astype(np.uint8)


@pytest.mark.parametrize("size", ["640x600_1", "800x380_2", "200x150_3", "336x336_4", "97x1203_5"])
@pytest.mark.parametrize("mode", ["anyres", "pad"])
def test_pictures_equal_the_record(golden, checkpoint, mode, size):
    stored = np.load(golden / "preprocess.npz")[f"{mode}_{size}"]
    shape, seed = size.split("_")
    image = Image.fromarray(picture(*map(int, shape.split("x")), int(seed)))
    config = types.SimpleNamespace(
        image_aspect_ratio=mode, image_grid_pinpoints=checkpoint[1].config.image_grid_pinpoints
    )
    pixels = process_images([image], VideoXLImageProcessor(), config)
    pixels = pixels[0] if mode == "anyres" else pixels
    np.testing.assert_allclose(pixels[..., ::16, ::16], stored, atol=1e-6)


def test_frames_equal_the_record_by_pillow_and_in_plain_torch(golden):
    stored = np.load(golden / "preprocess.npz")["frames_320x240_10_11_12"]
    frames = np.stack([picture(320, 240, seed) for seed in (10, 11, 12)])
    processor = VideoXLImageProcessor()
    by_pillow = processor.preprocess(frames, return_tensors="pt")["pixel_values"]
    height, width = shorter_side_to(240, 320, 336)
    left = (width - 336) // 2
    resized = resize_fixed_point(torch.from_numpy(frames), height, width, columns=slice(left, left + 336))
    for pixels in (by_pillow, processor.normalize(resized)):
        np.testing.assert_allclose(pixels[..., ::16, ::16], stored, atol=1e-6)
