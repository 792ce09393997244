"""The world as files: records that the training program reads, written again only where something is missing."""

import json
import time

import numpy as np
import pytest

from videoxl.errors import DataError
from videoxl.synth.files import RECORDS, main, write_dataset, write_video
from videoxl.synth.story import tell
from videoxl.train.cli import main as train
from videoxl.train.data.records import read_records

pytest.importorskip("av")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, write_dataset(folder, videos=3, pictures=2, frames=12, seed=1, side=112)


def test_records_name_files_questions_and_evidence(written):
    folder, path = written
    records = json.loads(path.read_text())
    assert len(records) == 5 and sum("video" in record for record in records) == 3
    for record in records:
        assert (folder / record.get("video", record.get("image"))).is_file()
        assert len(record["conversations"]) == 4
        for start, stop in record.get("evidence", []):
            assert 0 <= start < stop <= 12
    assert len(read_records(str(path), None, None, "qwen_1_5", "conversation", 0)) == 5


def test_the_same_frames_give_the_same_file_at_any_time(tmp_path):
    numbers = tell(np.random.default_rng(0), 4, []).numbers
    write_video(tmp_path / "now.mp4", numbers, 56)
    time.sleep(1.1)  # a muxer's date counts seconds
    write_video(tmp_path / "later.mp4", numbers, 56)
    assert (tmp_path / "now.mp4").read_bytes() == (tmp_path / "later.mp4").read_bytes()


def test_an_interrupted_call_writes_only_what_is_missing(written):
    folder, path = written
    text = path.read_text()
    videos = sorted(folder.glob("*.mp4"))
    kept, lost = videos[0].stat().st_mtime_ns, videos[1].read_bytes()
    videos[1].unlink()
    path.unlink()
    assert write_dataset(folder, videos=3, pictures=2, frames=12, seed=1, side=112).read_text() == text
    assert videos[0].stat().st_mtime_ns == kept and videos[1].read_bytes() == lost


def test_another_data_set_in_the_folder_is_not_overwritten(written, capsys):
    folder, path = written
    before = path.read_text()
    with pytest.raises(DataError, match="name another folder"):
        write_dataset(folder, videos=4, pictures=2, frames=12, seed=1, side=112)
    assert main([str(folder), "--videos", "4"]) == 2 and "name another folder" in capsys.readouterr().err
    assert path.read_text() == before


def test_records_of_the_users_own_are_not_overwritten(tmp_path):
    (tmp_path / RECORDS).write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path, videos=1, pictures=0, frames=4, seed=0)
    assert (tmp_path / RECORDS).read_text() == "mine"


@pytest.mark.parametrize("name, number", [("frames", 0), ("questions", 0), ("videos", -1), ("videos", 0)])
def test_numbers_that_make_no_data_set_are_refused(tmp_path, name, number):
    numbers = {"videos": 1, "pictures": 0, "frames": 4, "questions": 1} | {name: number}
    with pytest.raises(DataError, match="at least"):
        write_dataset(tmp_path / "new", seed=0, **numbers)
    assert not (tmp_path / "new").exists()


def test_the_training_program_learns_from_the_files(written, small_base, tmp_path):
    folder, _ = written
    arguments = ["--model_name_or_path", str(small_base), "--data_path", str(folder / RECORDS), "--use_cpu", "True"]
    arguments += ["--output_dir", str(tmp_path / "out"), "--report_to", "none", "--max_steps", "2"]
    arguments += ["--image_aspect_ratio", "square", "--logging_steps", "1", "--per_device_train_batch_size", "1"]
    assert train(arguments) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in entry for entry in history) == 2
