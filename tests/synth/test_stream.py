"""Streamed samples: seeded, of the training world, and the same to the model as frames that were drawn before."""

import pytest
import torch
from transformers import AutoTokenizer

from videoxl.chat import SELECT_MESSAGE
from videoxl.errors import DataError
from videoxl.model.loading import load_pretrained_model
from videoxl.synth import stream as streams
from videoxl.synth.cards import all_cards
from videoxl.synth.class_tasks import UNKNOWN
from videoxl.synth.drawing import DrawnFrames
from videoxl.synth.scenes import LOOKALIKES
from videoxl.synth.stages import GPU_STAGES, STAGES, Stage, find_stage
from videoxl.synth.stream import SyntheticStream
from videoxl.train.cli import main
from videoxl.train.config import TrainingArguments
from videoxl.train.trainer import OwnBatches, VideoXLTrainer


def stream(base, stage, seed=0):
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = load_pretrained_model(base, device_map="cpu")[1]
    tower = model.model.vision_tower
    return SyntheticStream(stage, tokenizer, model.config, tower.num_patches, tower.image_size, seed), model


def is_equal(first, second):
    tensors = zip((*first.visual, torch.as_tensor(first.classes)), (*second.visual, torch.as_tensor(second.classes)))
    return first.encoded == second.encoded and all(torch.equal(a, b) for a, b in tensors)


@pytest.mark.parametrize("stage", GPU_STAGES, ids=lambda stage: stage.name)
def test_samples_depend_on_seed_epoch_and_index_alone(small_base, stage):
    data, _ = stream(small_base, stage)
    again, other = stream(small_base, stage)[0], stream(small_base, stage, seed=1)[0]
    key = (0, data.batches[0][-1])
    first, second = data[key], again[key]
    assert is_equal(first, second)
    assert not is_equal(first, other[key]) and not is_equal(first, data[(1, key[1])])


@pytest.mark.parametrize("stage", GPU_STAGES, ids=lambda stage: stage.name)
def test_a_step_has_the_frames_that_the_stage_names_in_rows_of_one_shape(small_base, stage):
    data, _ = stream(small_base, stage)
    assert len(data.batches) == stage.steps
    for batch in data.batches[:20]:
        assert len({data.plans[index].key for index in batch}) == 1
        ((kind, frames, _),) = {data._shapes[index] for index in batch}  # one system message, too
        if stage.kind == "video" and kind == "video":
            assert frames in stage.frames and len(batch) * frames <= stage.frames_a_step
        elif stage.kind != "video":
            assert len(batch) == stage.rows


def test_texts_of_training_name_no_card_of_the_test_world(small_base):
    data, _ = stream(small_base, GPU_STAGES[1])
    held_out = [card.name for card in all_cards("test")]
    for index in range(300):
        ids, _ = data[(0, index)].encoded[0]
        text = data.tokenizer.tokenizer.decode(ids)
        assert not any(name in text for name in held_out)


def test_processes_share_batches_evenly():
    batches = [[2 * n, 2 * n + 1] for n in range(7)]
    parts = [list(OwnBatches(batches, 2, rank)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 3
    assert sorted(index for part in parts for batch in part for _, index in batch) == list(range(12))


def test_a_tower_that_stands_still_gives_the_loss_that_one_that_learns_gives(small_base, tmp_path):
    stage = Stage("few", "video", 2, 1e-3, frames=(12,), frames_a_step=24, questions=2)
    data, model = stream(small_base, stage)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    trainer = VideoXLTrainer(model=model, args=arguments, train_dataset=data, image_processor=processor_of(small_base))
    batch = data.collate([data[(0, index)] for index in data.batches[0]])
    assert isinstance(batch["images"], DrawnFrames)
    losses, shapes = [], []
    for learns in (True, False):
        model.model.vision_tower.requires_grad_(learns)
        inputs = trainer.model_inputs(batch)
        shapes.append(inputs["images"][0].dim())
        losses.append(float(model(**inputs).loss.detach()))
    assert shapes == [4, 3]  # pixels, features
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def processor_of(folder):
    return load_pretrained_model(folder, device_map="cpu")[2]


@pytest.mark.parametrize("name", ["gpu/nothing", "nothing", "huge/words"])
def test_an_unknown_stage_is_refused_with_those_there_are(name):
    with pytest.raises(DataError, match="cpu/words"):
        find_stage(name)


def test_the_training_program_refuses_a_stage_that_there_is_not(small_base, tmp_path, capsys):
    arguments = ["--model_name_or_path", str(small_base), "--data_path", "synth:cpu/none", "--use_cpu", "True"]
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 2
    assert "no stage 'cpu/none'" in capsys.readouterr().err


@pytest.mark.parametrize("flag, value", [("--cache_features", "features"), ("--dry_run", "True")])
def test_what_needs_records_is_refused_for_a_stream(small_base, tmp_path, capsys, flag, value):
    arguments = ["--model_name_or_path", str(small_base), "--data_path", "synth:cpu/words", "--use_cpu", "True"]
    assert main([*arguments, flag, value, "--output_dir", str(tmp_path / "out")]) == 2
    assert flag in capsys.readouterr().err


def test_some_videos_are_of_one_family_that_looks_like_cards(small_base, monkeypatch):
    """Stories in words have as many questions about relations as their stage says, where it is one of words, and they
    alone ask for letters."""
    told, shares = [], []
    tell, ask = streams.tell, streams.ask
    monkeypatch.setattr(streams, "tell", lambda *given, **more: told.append(given[3:]) or tell(*given, **more))
    monkeypatch.setattr(streams, "ask", lambda *given, **more: shares.append(more) or ask(*given, **more))
    stage = Stage("clips", "video", 1, 1e-3, frames=(2,), frames_a_step=120, lookalikes=0.5, relations=0.1)
    samples, _ = stream(small_base, stage)
    for index in samples.batches[0]:
        samples[0, index]
    chosen = [families[0] for families in told if families != (None,)]
    assert len(told) == 60 and 15 <= len(chosen) <= 45
    assert all(len(families) == 1 for families in chosen) and {name for (name,) in chosen} == set(LOOKALIKES)
    words = Stage("words", "text", 1, 1e-3, rows=1, relations=0.7)
    stream(small_base, words)[0][0, 0]
    mixed = Stage("clips", "video", 1, 1e-3, frames_a_step=1, words=1.0)
    stream(small_base, mixed)[0][0, 0]
    letters = {"letters": streams.WORDS_LETTERS}
    in_words = [{"relations": 0.7, **letters}, {"relations": streams.WORDS_RELATIONS, **letters}]
    assert shares == [{"relations": 0.1}] * 60 + in_words and streams.WORDS_LETTERS > 0


def test_the_small_size_has_only_stages_of_the_large_one():
    large = [stage.name for stage in STAGES["gpu"]]
    assert [name for name in large if name in {stage.name for stage in STAGES["cpu"]}] == [
        stage.name for stage in STAGES["cpu"]
    ]


@pytest.mark.parametrize("name", ["gpu/words", "gpu/summaries"])
def test_rows_of_a_batch_have_one_system_message_and_some_batches_vnbenchs(small_base, name):
    data, _ = stream(small_base, find_stage(name))
    ids = data.tokenizer(SELECT_MESSAGE).input_ids
    found = set()
    for batch in data.batches[:20]:
        begins = [data[(0, index)].encoded[0][0] for index in (batch[0], batch[-1])]
        has = {any(row[place : place + len(ids)] == ids for place in range(12)) for row in begins}
        assert len(has) == 1
        found |= has
    assert found == {True, False}


def test_labelled_cards_without_a_named_colour_have_their_shape_alone(small_base):
    data, _ = stream(small_base, find_stage("gpu/matching"))
    samples = [data[(0, index)] for index in range(400)]
    classes, never = (torch.stack([getattr(each, name) for each in samples]) for name in ("classes", "never"))
    known = classes != UNKNOWN
    assert not (never[known] >> classes[known] & 1).any() and (never[:, 1] > 0).sum() > 50
    unknown = classes[:, 0] == UNKNOWN
    assert 0.5 < unknown.float().mean() < 0.7  # three in four of the 0.8 that show a card
    none = list(data.class_names["shape"]).index("none")
    assert (classes[unknown, 1] != none).all() and (classes[:, 1] != UNKNOWN).all()


def test_patches_are_labelled_like_the_picture_that_they_are_of(small_base):
    patches, _ = stream(small_base, find_stage("gpu/vision"))
    for index in range(30):
        sample = patches[(0, index)]
        assert sample.classes.shape == (3, 64) and len(sample.visual[0]) == 1  # 112 pixels, patches of 14
    batch = patches.collate([patches[(0, index)] for index in range(3)])
    assert batch["classes"].shape == batch["never"].shape == (3, 3, 64)
    assert 0 < batch["targets"] == int((batch["classes"] != UNKNOWN).sum())


def test_some_batches_among_videos_are_stories_in_words_and_some_of_these_are_learnt_whole(small_base):
    stage = find_stage("gpu/clips")
    data, _ = stream(small_base, stage)
    words = [batch for batch in data.batches if not data.plans[batch[0]].spans]
    assert 0.2 < len(words) / stage.steps < 0.4
    assert all(len(batch) == 64 for batch in words)
    whole = 0
    for index in words[0] + words[1]:
        sample = data[(0, index)]
        assert sample.kind == "text" and not sample.visual
        ((ids, labels),) = sample.encoded
        whole += [label & 0xFFFFFFFF for label in labels] == ids  # above stands what the loss leaves out
    assert 0.08 < whole / 128 < 0.35


def test_texts_are_cut_into_tokens_as_by_the_tokenizer(small_base):
    data, _ = stream(small_base, GPU_STAGES[1])
    tokenizer = AutoTokenizer.from_pretrained(small_base)
    for text in ("Which card?\nA. red star\nB. blue ring", "<|im_start|>user\n", " (C) gr\u00fcn;  ", ""):
        assert data.tokenizer(text).input_ids == tokenizer(text).input_ids
