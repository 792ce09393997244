"""Pictures: opening them safely, and the classic image processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from videoxl.chat import tokenizer_image_token
from videoxl.constants import IMAGE_TOKEN_INDEX
from videoxl.errors import CheckpointError, ConfigError, PictureError, PromptError
from videoxl.media.pictures import best_grid, is_picture_file, load_picture, parse_grids
from videoxl.media.pixels import VideoXLImageProcessor, resize_fixed_point
from videoxl.media.resize import resize_and_crop_frame, shorter_side_to
from videoxl.media.views import process_images
from videoxl.model.loading import get_model_name_from_path
from videoxl.model.prompt import transform_input_id
from videoxl.model.stopping import KeywordsStoppingCriteria


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_path_a_picture_and_an_array_give_the_same(tmp_path):
    array = noise(40, 60)
    Image.fromarray(array).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array), array):
        assert np.array_equal(np.asarray(load_picture(source)), array)


def test_pictures_in_a_row_are_a_video_and_a_cameras_pair_is_a_picture(tmp_path):
    Image.fromarray(noise(40, 60)).save(tmp_path / "one.jpg")
    whole = (tmp_path / "one.jpg").read_bytes()
    (tmp_path / "row.mjpeg").write_bytes(whole * 3)
    (tmp_path / "motion.jpg").write_bytes(whole + b"\0\0\0\x18ftypmp42")  # a phone's photo with its short film
    Image.fromarray(noise(40, 60)).save(
        tmp_path / "pair.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(noise(40, 60, 1))]
    )
    found = {path.name: is_picture_file(path) for path in tmp_path.iterdir()}
    assert found == {"one.jpg": True, "row.mjpeg": False, "motion.jpg": True, "pair.jpg": True}


def test_exif_orientation_is_honoured(tmp_path):
    array = noise(40, 60)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(load_picture(tmp_path / "a.png")), np.rot90(array, -1))


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(noise(40, 60)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    with pytest.raises(PictureError, match="no such picture"):
        load_picture(tmp_path / "none.png")
    for name in ("text.png", "cut.png"):
        with pytest.raises(PictureError, match="not a picture that can be opened"):
            load_picture(tmp_path / name)
    monkeypatch.setattr("videoxl.media.pictures.MAX_PIXELS", 1000)
    Image.fromarray(noise(40, 60)).save(tmp_path / "large.png")
    with pytest.raises(PictureError, match="60 x 40 pixels; at most 1000"):
        load_picture(tmp_path / "large.png")


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path)  # 110 kB on disk, 2.7 GB as RGB
    with pytest.raises(PictureError, match="bomb"):
        load_picture(path)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 500), st.integers(8, 500), st.integers(0, 9))
def test_the_torch_resize_equals_pillow_to_the_bit(height, width, seed):
    frame = noise(height, width, seed)
    scaled = shorter_side_to(height, width, 336)
    found = resize_fixed_point(torch.from_numpy(frame)[None], *scaled)[0].numpy()
    expected = np.asarray(Image.fromarray(frame).resize(scaled[::-1], Image.Resampling.BICUBIC))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("shape", [(240, 320), (480, 270), (336, 336), (1080, 1920)])
def test_preprocess_equals_the_librarys_classic_processor(shape):
    frames = np.stack([noise(*shape, seed) for seed in range(2)])
    library = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    expected = library.preprocess(list(frames), return_tensors="pt")["pixel_values"]
    processor = VideoXLImageProcessor()
    for images in (frames, list(frames), [Image.fromarray(frame) for frame in frames], torch.from_numpy(frames)):
        torch.testing.assert_close(processor.preprocess(images)["pixel_values"], expected, atol=1e-6, rtol=0)
    assert np.array_equal(
        processor.resize_and_crop(torch.from_numpy(frames)).numpy(),
        np.stack([resize_and_crop_frame(frame, 336) for frame in frames]),
    )


@pytest.mark.parametrize("images", [np.zeros((2, 3, 40, 40), np.uint8), np.zeros((2, 40, 40, 3)), []])
def test_images_of_another_form_are_refused(images):
    with pytest.raises(PictureError):
        VideoXLImageProcessor().preprocess(images)


def test_the_processor_is_stored_as_clips(tmp_path):
    VideoXLImageProcessor(224, (0.1, 0.2, 0.3)).save_pretrained(tmp_path)
    loaded = VideoXLImageProcessor.from_pretrained(tmp_path)
    assert (loaded.side, loaded.image_mean) == (224, [0.1, 0.2, 0.3])
    assert CLIPImageProcessorPil.from_pretrained(tmp_path).crop_size["height"] == 224
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a CLIP preprocessor"):
        VideoXLImageProcessor.from_pretrained(tmp_path)


def test_grids():
    grids = [(336, 672), (672, 336), (672, 672), (1008, 336)]
    assert best_grid(640, 600, grids) == (672, 672)
    assert best_grid(2000, 600, grids) == (1008, 336)
    assert parse_grids("(1x1),(2x2)", 336) == [(336, 336), (336, 672), (672, 336), (672, 672)]
    assert parse_grids("[(336, 672)]", 336) == [(336, 672)] == parse_grids([[336, 672]], 336)
    for wrong in ([[336, 500]], [], None):
        with pytest.raises(PictureError, match="image_grid_pinpoints"):
            parse_grids(wrong, 336)


def test_an_unknown_picture_mode_is_named():
    config = type("C", (), {"image_aspect_ratio": "highres"})
    with pytest.raises(ConfigError, match="'highres'"):
        process_images([Image.new("RGB", (9, 9))], VideoXLImageProcessor(), config)


def test_prompt_helpers(tiny):
    tokenizer = tiny[0]
    ids = tokenizer_image_token("a<image>b", tokenizer)
    assert ids == [*tokenizer("a").input_ids, IMAGE_TOKEN_INDEX, *tokenizer("b").input_ids]
    tensor = tokenizer_image_token("a<image>b", tokenizer, return_tensors="pt")
    assert tensor.tolist() == ids
    assert transform_input_id(tensor[None], 3, 319).tolist() == [[ids[0], 319, 319, 319, ids[2]]]
    with pytest.raises(PromptError, match="no <image>"):
        transform_input_id(tensor[None, :1], 3, 319)
    assert get_model_name_from_path("a/b/checkpoint-5/") == "b_checkpoint-5"
    stop = KeywordsStoppingCriteria(["bc"], tokenizer, tensor[None, :1])
    prompt = "bc bc "  # the keyword in the (expanded) prompt does not count
    for text, expected in (("a", False), ("ab", False), ("abc", True)):
        assert stop(torch.tensor([tokenizer(prompt + text).input_ids]), None).tolist() == [expected]


def test_pictures_are_opened_safely_on_the_way_to_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(40, 60)).save(tmp_path / "a.png", exif=exif)
    config = type("C", (), {"image_aspect_ratio": "pad"})
    upright = process_images([load_picture(tmp_path / "a.png")], VideoXLImageProcessor(), config)
    for source in (str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), np.rot90(noise(40, 60), -1).copy()):
        assert torch.equal(process_images([source], VideoXLImageProcessor(), config), upright)
    turned = VideoXLImageProcessor().preprocess(tmp_path / "a.png")["pixel_values"]
    assert torch.equal(turned, VideoXLImageProcessor().preprocess(load_picture(tmp_path / "a.png"))["pixel_values"])
