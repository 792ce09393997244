"""One object to ask: every kind of source, the same answer by every way, and one line for every mistake."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from conftest import SAMPLE, TINY
from PIL import Image

import videoxl
from videoxl import Answer, FrameChoice, VideoMemory, VideoXL
from videoxl.chat import PromptText, join_prompt_ids, question_prompt, text_ids, video_prompt_ids
from videoxl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MemoryFileError,
    PictureError,
    PlanError,
    PromptError,
    VideoError,
    VideoWarning,
    VideoXLError,
)
from videoxl.media.stream import FrameStream, open_video

FEW = {"frames": 12, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def session(small_base) -> VideoXL:
    return VideoXL.from_pretrained(small_base, device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.fromarray(np.full((90, 120, 3), (200, 30, 30), np.uint8)).save(path)
    return path


def test_an_answer_is_what_generate_gives_and_says_what_it_rests_on(session):
    answer = session.ask(SAMPLE, "What is shown?", ratio=4, **FEW)
    prefix, suffix = video_prompt_ids(session.tokenizer, "What is shown?")
    with open_video(SAMPLE, session.image_processor, FrameChoice(12)) as stream:
        frames = np.concatenate([chunk.frames for chunk in stream])
        times = stream.info.timestamps[stream.indices].tolist()
    pixels = session.image_processor.preprocess(frames)["pixel_values"]
    prompt = torch.tensor([join_prompt_ids(prefix, suffix)])
    output = session.model.generate(
        prompt, images=[pixels], modalities=["video"], ratio=4, max_new_tokens=6, do_sample=False
    )
    new = output[0, prompt.shape[1] - 1 + 12 * 16 :]
    assert answer.text == str(answer) == session.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert (answer.new_tokens, answer.visual_tokens, answer.ratios) == (len(new), 12 * 16, (4,))
    assert answer.prompt_tokens == len(prefix) + len(suffix) and answer.compressor == "beacon"
    assert answer.cached_positions == len(prefix) + 12 * 16 // 4
    assert [frame.second for frame in answer.frames] == times
    assert [frame.index for frame in answer.frames] == stream.indices.tolist()
    assert list(answer.seconds) == ["decode", "encode", "summarise", "first token", "answer"]
    assert all(seconds > 0 for seconds in answer.seconds.values()) and answer.peak_memory_bytes > 1 << 20


def test_asking_changes_nothing_of_the_model(session):
    before = session.model.config.to_dict()
    for ratio in (2, 8):
        session.ask(SAMPLE, "What?", ratio=ratio, **FEW)
    assert session.model.config.to_dict() == before


def test_a_memory_held_or_in_a_file_answers_like_its_video(session, tmp_path):
    memory = session.read(SAMPLE, frames=12)
    memory.save(tmp_path / "film.videomemory.safetensors")
    wanted = session.ask(SAMPLE, "Who?", **FEW)
    for source in (memory, tmp_path / "film.videomemory.safetensors", str(tmp_path / "film.videomemory.safetensors")):
        found = session.ask(source, "Who?", max_new_tokens=6)
        assert (found.text, found.frames, found.cached_positions) == (
            wanted.text, wanted.frames, wanted.cached_positions,
        )  # fmt: skip
    assert isinstance(session.load_memory(tmp_path / "film.videomemory.safetensors"), VideoMemory)


def test_frames_are_chosen_in_every_way(session):
    def seconds(**choice):
        return [frame.second for frame in session.ask(SAMPLE, "What?", max_new_tokens=1, **choice).frames]

    assert seconds(fps=1, start=2, end=6) == [2.0, 3.0, 4.0, 5.0]
    assert seconds(fps=4, max_frames=3, end=5) == seconds(choice=FrameChoice(fps=4, max_frames=3, end=5))
    assert len(seconds(start=50)) == 40 and len(seconds()) == 128
    memory = session.read(SAMPLE)
    assert memory.num_frames == 128 and memory.ratios == [8]


@pytest.mark.parametrize("kind", ["path", "picture", "array", "several"])
def test_pictures_are_asked(session, picture, kind):
    opened = Image.open(picture)
    source = {"path": picture, "picture": opened, "array": np.asarray(opened), "several": [picture, opened]}[kind]
    found = session.ask(source, "Which colour?", max_new_tokens=4)
    number = 2 if kind == "several" else 1
    assert found.visual_tokens == number * 64 and found.frames == () and found.ratios == (8,)
    assert found.text == session.ask([picture] * number, "Which colour?", max_new_tokens=4).text


def test_videos_and_pictures_are_asked_together_and_text_alone(session, picture):
    memory = session.read(SAMPLE, frames=3)
    assert session.ask([SAMPLE, picture], "Same?", frames=3, max_new_tokens=3).visual_tokens == 3 * 16 + 64
    assert session.ask([memory, picture], "Same?", max_new_tokens=3).visual_tokens == 3 * 16 + 64
    alone = session.ask(None, "Hello?", max_new_tokens=3)
    assert alone.visual_tokens == 0 and alone.ratios == ()


def test_several_videos_say_what_the_answer_rests_on(session, picture):
    read, asked = [], {"frames": 50, "end": 10, "ratio": 4, "max_new_tokens": 1}
    with pytest.warns(VideoWarning):
        answer = session.ask([SAMPLE, SAMPLE], "What?", progress=read.append, **asked)
    one = session.read(SAMPLE, frames=40, end=10, ratio=4)
    number = one.num_frames
    assert number == 40 and sum(read) == 2 * number == len(answer.frames)
    assert [frame.second for frame in answer.frames] == one.timestamps * 2
    assert len(answer.notes) >= 2 and "were asked for" in answer.notes[0]
    # What stands before the question: the texts before and between the two, and the summary of each.
    between = answer.cached_positions - one.summary_length - number * 16 // 4
    assert 0 <= between < 4
    mixed = session.ask([one, picture], "What?", max_new_tokens=1)
    assert mixed.frames == answer.frames[:number] and mixed.cached_positions > one.summary_length


def test_a_frame_that_cannot_be_decoded_is_not_named(session, picture, monkeypatch):
    with open_video(SAMPLE, session.image_processor, FrameChoice(3)) as whole:
        (chunk,) = whole
    kept = ((number, frame) for number, frame in zip(chunk.indices, chunk.frames) if number != chunk.indices[1])
    stream = FrameStream(whole.info, whole.indices, kept, session.image_processor, 40, [])
    monkeypatch.setattr(session, "open", lambda *_: stream)
    with pytest.warns(VideoWarning, match="1 of 3 frames"):
        answer = session.ask([picture, SAMPLE], "What?", max_new_tokens=1)
    assert [frame.second for frame in answer.frames] == [chunk.timestamps[0], chunk.timestamps[2]]
    assert "1 of 3 frames" in answer.notes[0]


def test_numbers_of_numpy_choose_frames(session):
    assert session.read(SAMPLE, frames=np.int64(3), end=np.float64(9)).num_frames == 3


def test_a_question_that_names_the_placeholder_is_text(session):
    found = session.ask(SAMPLE, "Is `<image>` text?", **FEW)
    prompt = question_prompt("Is `<image>` text?")
    assert found.prompt_tokens == sum(len(text_ids(session.tokenizer, text)) for text in prompt.texts)


def test_a_prompt_of_ones_own(session):
    prompt = PromptText(("<|im_start|>user\n", "\nOne?<|im_end|>\n<|im_start|>assistant\nIt is"))
    memory = session.read(SAMPLE, frames=4, prompt=prompt)
    assert session.ask(memory, prompt, max_new_tokens=4).text == session.ask(SAMPLE, prompt, frames=4,
                                                                             max_new_tokens=4).text  # fmt: skip
    with pytest.raises(PromptError, match="places for 1 visual inputs; 2 were given"):
        session.ask([SAMPLE, SAMPLE], prompt)


def test_draws_follow_the_seed_and_leave_the_callers_alone(session):
    memory = session.read(SAMPLE, frames=4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = [session.ask(memory, "What?", temperature=1.5, seed=seed, max_new_tokens=8).text for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and torch.equal(torch.get_rng_state(), state)


def test_a_stream_gives_the_same_text_in_pieces(session):
    memory = session.read(SAMPLE, frames=4)
    pieces = session.stream(memory, "What?", max_new_tokens=8)
    text = "".join(pieces)
    assert isinstance(pieces.answer, Answer) and text.strip() == pieces.answer.text
    assert pieces.answer.text == session.ask(memory, "What?", max_new_tokens=8).text


def test_a_stream_that_is_closed_ends_its_answer(session):
    before = threading.active_count()
    pieces = session.stream(session.read(SAMPLE, frames=4), "What?", max_new_tokens=2000, min_new_tokens=2000)
    next(iter(pieces))
    pieces.close()
    assert pieces.answer.new_tokens < 2000 and threading.active_count() == before


def test_a_stream_takes_what_ask_takes(session):
    memory = session.read(SAMPLE, frames=3)
    for options in ({"num_beams": 2}, {"stopping_criteria": [lambda ids, scores, **_: torch.tensor([True])]}):
        pieces = session.stream(memory, "What?", max_new_tokens=5, **options)
        text = "".join(pieces)
        assert text.strip() == pieces.answer.text == session.ask(memory, "What?", max_new_tokens=5, **options).text
    assert pieces.answer.new_tokens == 1
    with pytest.raises(PromptError, match="leave streamer out"):
        session.stream(memory, "What?", streamer=object())
    whole = session.ask(memory, "What?", max_new_tokens=5)
    stopped = session.ask(memory, "What?", max_new_tokens=5, stop_strings=[whole.text[:1]])
    assert stopped.new_tokens < whole.new_tokens


def test_an_error_while_streaming_reaches_the_reader(session, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("no room")

    memory = session.read(SAMPLE, frames=2)
    monkeypatch.setattr(session.model, "generate", fail)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        list(session.stream(memory, "What?"))


def test_a_likelihood_is_the_same_by_memory_and_by_pictures(session, picture):
    prompt = question_prompt("Which?")
    total, _ = session.score(picture, prompt, "red")
    again, _ = session.score([picture], prompt, "red")
    assert total == again < 0 and math.isfinite(session.score(None, question_prompt("Hi", 0), "red")[0])
    with pytest.raises(DataError, match="empty continuation"):
        session.score(picture, prompt, "")


def test_without_a_path_the_bundled_model_is_loaded():
    loaded = VideoXL.from_pretrained(device="cpu", dtype="float32")
    assert loaded.name.endswith("videoxl-tiny") and "synthetic world" in loaded.notes()[0]


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "question", "options", "kind", "said"),
    [
        ("nowhere.mp4", "What?", {}, VideoError, "no such video: nowhere.mp4"),
        (TINY, "What?", {}, VideoError, "is a folder"),
        (TINY / "config.json", "What?", {}, VideoError, "cannot be opened as a video"),
        (SAMPLE, " \n", {}, PromptError, "the question is empty"),
        (SAMPLE, "What?", {"ratio": 161}, PlanError, "larger than the window of 160"),
        (SAMPLE, "What?", {"ratio": -1}, PlanError, "-1 is not a whole number"),
        (SAMPLE, "What?", {"ratio": 2.5}, PlanError, "2.5 is not a whole number"),
        (SAMPLE, "What?", {"frames": 0}, VideoError, "the number of frames is 0"),
        (SAMPLE, "What?", {"frames": 3, "fps": 1}, VideoError, "either a number of frames or fps; both"),
        (SAMPLE, "What?", {"start": 99}, VideoError, "no frame from 99 s on"),
        (SAMPLE, "What?", {"backend": "vlc"}, VideoError, "'vlc' is not known; use pyav"),
        (SAMPLE, "What?", {"timeout": 0}, VideoError, "timeout is 0"),
        (SAMPLE, "What?", {"compressor": "zip"}, ConfigError, "compressor 'zip' is not known; use beacon, none"),
        (SAMPLE, "What?", {"compressor": "none", "ratio": 4}, PlanError, "works at ratio 0 alone, not at 4"),
        (SAMPLE, "What?", {"compressor": ["drop"]}, ConfigError, r"compressor is \['drop'\]"),
        (SAMPLE, "What?", {"frames": "8"}, VideoError, "the number of frames is '8'; it must be a whole number"),
        (SAMPLE, "What?", {"frames": 8.5}, VideoError, "the number of frames is 8.5; it must be a whole number"),
        (SAMPLE, "What?", {"fps": float("nan")}, VideoError, "fps is nan"),
        (SAMPLE, "What?", {"start": "1:30"}, VideoError, "start is '1:30'; it must be a number of seconds"),
        (SAMPLE, "What?", {"timeout": "x"}, VideoError, "timeout is 'x'"),
        (SAMPLE, "What?", {"frames": 3, "choice": FrameChoice(3)}, PromptError, "choice says which frames"),
        (SAMPLE, "What?", {"temperature": -1}, PromptError, "temperature is -1"),
        (SAMPLE, "What?", {"temperature": float("nan")}, PromptError, "temperature is nan; it must be a number from 0"),
        (SAMPLE, "What?", {"temperature": "hot"}, PromptError, "temperature is 'hot'"),
        (SAMPLE, "What?", {"max_new_tokens": 0}, PromptError, "max_new_tokens is 0; it must be a whole number from 1"),
        (SAMPLE, "What?", {"max_new_tokens": None}, PromptError, "max_new_tokens is None; leave it out"),
        (SAMPLE, "What?", {"seed": 1 << 70}, PromptError, "seed is 1180591620717411303424"),
        (SAMPLE, "What?", {"return_dict_in_generate": True}, PromptError, "'return_dict_in_generate' is not known"),
        (SAMPLE, "What?", {"inputs": None}, PromptError, "option 'inputs' is not known"),
        (SAMPLE, None, {}, PromptError, "a question is a text or a PromptText; got a NoneType"),
        (Image.new("RGB", (9, 9)), "What?", {"frames": 3, "start": 1}, PromptError, "is none; leave frames, start out"),
        (None, "What?", {"ratio": 8}, PromptError, "nothing to compress; leave ratio out"),
        (SAMPLE, "What?", {"framse": 3}, PromptError, "option 'framse' is not known; did you mean frames"),
        (3.5, "What?", {}, PromptError, "a float cannot be asked"),
        (np.zeros((4, 4), np.float32), "What?", {}, PromptError, "must be uint8"),
    ],
)
def test_what_cannot_be_asked_is_named_in_one_line(session, source, question, options, kind, said):
    with pytest.raises(kind, match=said) as raised:
        session.ask(source, question, **options)
    assert isinstance(raised.value, VideoXLError) and "\n" not in str(raised.value)


def test_a_picture_is_no_video_to_read(session, picture):
    for source in (picture, [SAMPLE, SAMPLE], []):
        with pytest.raises(VideoError, match="is not one video to read"):
            session.read(source)
    broken = picture.with_name("broken.png")
    broken.write_bytes(picture.read_bytes()[:60])
    with pytest.raises((PictureError, VideoError)):
        session.ask(broken, "What?")


def test_a_memory_keeps_its_frames_and_stands_first(session, picture):
    memory = session.read(SAMPLE, frames=3)
    with pytest.raises(PromptError, match="has its frames and its ratio already; leave frames, ratio out"):
        session.ask(memory, "What?", frames=4, ratio=2)
    for several in ([picture, memory], [memory, memory]):
        with pytest.raises(PromptError, match="must come first, and there can be one"):
            session.ask(several, "What?")
    with pytest.raises(PromptError, match="they must be equal"):
        session.ask(memory, "What?", system="Another one.")
    with pytest.raises(PromptError, match="they must be equal"):
        session.score(memory, question_prompt("What?", system="Another one."), "A star.")
    empty = VideoMemory.start(session.model, memory.prefix_ids, 8)
    for use in (session.score, lambda *given: session.ask(*given[:2])):
        with pytest.raises(PromptError, match="holds no frames yet"):
            use(empty, question_prompt("What?"), "A star.")
    stream = open_video(SAMPLE, session.image_processor, FrameChoice(3))
    with stream, pytest.raises(VideoError, match="were chosen when it was opened"):
        session.read(stream, frames=2)


def test_a_memory_is_asked_behind_the_text_that_its_video_was_read_after(session):
    told = session.read(SAMPLE, frames=3, system="You are a pirate.")
    plain = session.ask(told, "What?", max_new_tokens=4)
    assert plain.text == session.ask(told, "What?", system="You are a pirate.", max_new_tokens=4).text
    assert plain.text == session.ask(SAMPLE, "What?", frames=3, system="You are a pirate.", max_new_tokens=4).text


def test_a_memory_that_is_closed_or_of_another_model_is_refused(session):
    with session.read(SAMPLE, frames=3) as memory:
        fork = memory.fork()
    uses = (
        lambda: session.ask(memory, "What?"), lambda: memory.fork(), lambda: memory.extend([]), memory.info,
        lambda: memory.summary_length,
    )  # fmt: skip
    for use in uses:
        with pytest.raises(MemoryFileError, match="is closed"):
            use()
    assert session.ask(fork, "What?", max_new_tokens=1).frames
    other = VideoXL.from_pretrained(TINY, device="cpu")
    with pytest.raises(MemoryFileError, match="made by another model"):
        other.ask(fork, "What?")


@pytest.mark.parametrize(
    ("path", "options", "kind", "said"),
    [
        ("nowhere", {}, CheckpointError, "no such checkpoint folder: nowhere"),
        (SAMPLE, {}, CheckpointError, "is a file; give the folder"),
        (SAMPLE.parent, {}, CheckpointError, "it has no config.json"),
        (3, {}, CheckpointError, "3 is no checkpoint"),
        (TINY, {"device": "toaster"}, ConfigError, "'toaster' is not known"),
        (TINY, {"device_map": "cpu"}, ConfigError, "device_map is called device here"),
        (TINY, {"device": "cpu", "foo": 1}, ConfigError, "foo"),
        (TINY, {"device": "cuda:77"}, ConfigError, "'cuda:77' is not here"),
        (TINY, {"device": "cpu", "dtype": "float99"}, ConfigError, "'float99'"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named(path, options, kind, said):
    with pytest.raises(kind, match=said):
        VideoXL.from_pretrained(path, **options)


def test_the_packages_names_are_imported_when_they_are_used():
    assert set(videoxl.__all__) <= set(dir(videoxl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = videoxl.nothing
