"""Many questions about many videos: each read once, few held, no question seen by another."""

import pytest
import torch
from conftest import SAMPLE, TINY
from PIL import Image
from videos import write_video

from videoxl.benchmarks.asking import Reading, load_asker
from videoxl.benchmarks.lmms_arguments import LmmsArguments
from videoxl.chat import PromptText, template_prompt, text_ids
from videoxl.errors import ConfigError, DataError, MemoryLimitError, VideoError
from videoxl.media.choice import FrameChoice
from videoxl.session import VideoXL
from videoxl.utils.json_lines import append_row, read_rows, write_rows

PROMPT = PromptText(("<|im_start|>user\n", "\nWhat?<|im_end|>\n<|im_start|>assistant\n"))


@pytest.fixture
def reads(monkeypatch):
    """Counts how often a video is read."""
    counted = []
    read = VideoXL.read

    def count(self, video, **kwargs):
        counted.append(str(video))
        return read(self, video, **kwargs)

    monkeypatch.setattr(VideoXL, "read", count)
    return counted


def make(memory_gb):
    return load_asker(TINY, Reading(FrameChoice(4), 8, timeout=None), memory_gb, "cpu")


def test_pictures_are_asked_without_a_choice_of_frames_and_records_name_the_method(tmp_path):
    picture = tmp_path / "red.png"
    Image.new("RGB", (40, 30), (200, 0, 0)).save(picture)
    reading = Reading(FrameChoice(4), 8, timeout=None, compressor="mean")
    assert reading.options_for([]) == {}
    assert reading.options_for([str(picture), SAMPLE.name]) == reading.options
    assert reading.options_for([str(picture)]) == {n: v for n, v in reading.options.items() if n != "choice"}
    asker = load_asker(TINY, reading, 0.0, "cpu")
    answer = asker.session.ask(str(picture), PROMPT, max_new_tokens=1, **reading.options_for([str(picture)]))
    assert answer.compressor == "mean" and answer.visual_tokens == 2 * 144  # the whole and one tile
    assert asker.identity()["compressor"] == "mean" and "compressor" not in make(0.0).identity()


def test_a_video_is_read_once_for_all_its_questions(reads, tmp_path):
    other = write_video(tmp_path / "other.mp4", 20)
    asker = make(1.0)
    first = [asker.ask(SAMPLE, PROMPT, max_new_tokens=4) for _ in range(3)]
    asker.ask(other, PROMPT, max_new_tokens=4)
    assert asker.ask(SAMPLE, PROMPT, max_new_tokens=4) == first[0] and len(set(first)) == 1
    assert reads == [str(SAMPLE), str(other)]
    asker.memory(SAMPLE, PromptText(("<|im_start|>other\n", "")))  # another text before it is another memory
    assert len(reads) == 3


def test_a_video_that_fits_only_without_the_held_memories_is_read_and_one_that_does_not_is_refused(
    monkeypatch, tmp_path
):
    asker = make(1.0)
    room = {"videos": 1}

    def check(model, frames, ratio, held, cache, compressor):
        assert (frames, ratio, held) == (4, 8, 0)
        if len(asker._memories) >= room["videos"]:
            raise MemoryLimitError("too large")

    monkeypatch.setattr("videoxl.model.memory.ensure_room", check)
    asker.memory(SAMPLE, PROMPT)
    asker.memory(write_video(tmp_path / "other.mp4", 20), PROMPT)
    assert len(asker._memories) == 1
    room["videos"] = 0
    with pytest.raises(MemoryLimitError, match="too large"):
        asker.memory(write_video(tmp_path / "third.mp4", 20), PROMPT)


def test_memories_keep_to_their_bound_and_the_oldest_goes_first(reads, tmp_path):
    videos = [write_video(tmp_path / f"{number}.mp4", 10) for number in range(3)]
    asker = make(1.0)
    one = asker.memory(videos[0], PROMPT).cache.allocated_bytes
    asker.memory_bytes = 2 * one
    for video in (videos[1], videos[0], videos[2]):  # the first one is used again before the third comes
        asker.memory(video, PROMPT)
    assert asker.held_bytes == 2 * one <= asker.memory_bytes
    reads.clear()
    asker.memory(videos[0], PROMPT)
    assert reads == []
    asker.memory(videos[1], PROMPT)
    assert reads == [str(videos[1])]
    asker.memory_bytes = 0
    asker.memory(videos[2], PROMPT)
    assert asker.held_bytes == one  # the newest stays, whatever it takes
    with pytest.raises(DataError, match="cannot hold"):
        make(-1)


def test_a_likelihood_is_that_of_the_whole_prompt():
    asker = make(1.0)
    memory = asker.memory(SAMPLE, PROMPT)
    session = asker.session
    answer = text_ids(session.tokenizer, "yes, a star")
    total, is_greedy = session.score(memory, PROMPT, "yes, a star")
    # One token at a time.
    cache, _ = memory.finalize_for_query()
    inner, summed, ids = session.model.model, 0.0, text_ids(session.tokenizer, PROMPT.suffix)
    greedy = True
    for token in answer:
        with torch.no_grad():
            hidden = inner.text_step(inner.embed_tokens(torch.tensor([ids])), cache)
            logits = session.model.lm_head(hidden[0, -1]).log_softmax(-1)
        summed, greedy, ids = summed + float(logits[token]), greedy and int(logits.argmax()) == token, [token]
    assert total == pytest.approx(summed, abs=1e-3) and is_greedy == greedy
    with pytest.raises(DataError, match="empty continuation"):
        session.score(memory, PROMPT, "")


def test_an_image_in_a_question_is_text_unless_the_task_placed_its_visuals():
    texts = template_prompt("qwen_1_5", "Is <image> text? <image>", 1).texts
    assert (
        len(texts) == 2 and texts[0].endswith("user\n") and texts[1].startswith("\nIs <image> text? <image><|im_end|>")
    )
    texts = template_prompt("qwen_1_5", "First <image> then <image>.", 2).texts
    assert [text.strip() for text in texts[1:]] == ["then", ".<|im_end|>\n<|im_start|>assistant"]
    assert len(template_prompt("qwen_1_5", "No picture, <image>", 0).texts) == 1


def test_half_a_line_at_the_end_is_mended_and_elsewhere_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"a": 1})
    append_row(path, {"a": 2})
    for tail in (b'{"a": 3', b'{"a": 3}', b"\xff"):
        whole = b'{"a": 1}\n{"a": 2}\n'
        path.write_bytes(whole + tail)
        assert read_rows(path, is_mended=True) == [{"a": 1}, {"a": 2}] and path.read_bytes() == whole
    path.write_bytes(b'{"a": 1}\nhalf\n{"a": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        read_rows(path, is_mended=True)
    write_rows(path, [{"b": 1}])
    assert read_rows(path) == [{"b": 1}]


def test_a_mistyped_decoder_is_refused_before_any_video_counts_as_unreadable():
    with pytest.raises(VideoError, match="'decrod' is not known; use"):
        Reading(FrameChoice(4), 8, "decrod")


def test_switches_are_what_they_say():
    given = {"pretrained": "x", "strict": "no", "stored_shape": "True", "use_cache": 0}
    arguments = LmmsArguments.parse(given)
    assert (arguments.strict, arguments.stored_shape, arguments.use_cache) == (False, True, False)
    with pytest.raises(ConfigError, match="strict=maybe"):
        LmmsArguments.parse({"pretrained": "x", "strict": "maybe"})
