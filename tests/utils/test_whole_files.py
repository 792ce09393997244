"""Files and folders that appear whole or not at all, digests, and where the package's own files lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import ROOT

from videoxl.errors import DataError
from videoxl.utils.digest import digest, digest_all, digest_file, digest_json
from videoxl.utils.files import (
    claim_output,
    only_writer,
    read_json,
    umask,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)
from videoxl.utils.json_lines import append_row, read_rows
from videoxl.utils.resources import resource


def test_a_file_appears_whole_readable_and_replaces_another(tmp_path):
    path = tmp_path / "a.json"
    for content in ({"a": 1}, {"a": [2]}):
        write_json(path, content)
        assert read_json(path, "the file") == content and path.read_text().endswith("\n")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_on_the_way_leaves_the_file_of_before(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "before")

    def interrupted():
        with whole_file(path) as draft:
            draft.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "model"
    with whole_folder(path) as draft:
        (draft / "a").write_text("1")
        assert not path.exists()
    with pytest.raises(ValueError, match="on the way"), whole_folder(path, replaces=True) as draft:
        raise ValueError("on the way")
    assert (path / "a").read_text() == "1"
    with pytest.raises(OSError, match="not empty"), whole_folder(path) as draft:
        (draft / "b").write_text("2")
    with whole_folder(path, replaces=True) as draft:
        (draft / "b").write_text("2")
    assert [file.name for file in path.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [path]
    assert (path / "b").stat().st_mode & 0o777 == 0o666 & ~umask()


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "model"
    with whole_folder(path) as draft:
        (draft / "a").write_text("1")
    rename = Path.rename

    def fails(self, target):
        if self.suffix == ".tmp":
            raise OSError(39, "Directory not empty")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="not empty"), whole_folder(path, replaces=True) as draft:
        (draft / "a").write_text("2")
    assert (path / "a").read_text() == "1" and list(path.parent.iterdir()) == [path]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(DataError, match="is a file; name another folder"), whole_folder(file, replaces=True):
        pass
    assert file.read_text() == "mine"


def test_folders_that_cannot_be_written_and_files_that_are_no_json_are_named(tmp_path):
    claim_output(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("{half")
    with pytest.raises(DataError, match=r"cannot write to .*; name another folder"):
        claim_output(tmp_path / "file")
    with pytest.raises(DataError, match="is no JSON file"):
        read_json(tmp_path / "file", "the notes")
    with pytest.raises(DataError, match="cannot read the notes"):
        read_json(tmp_path / "none", "the notes")


def test_digests_are_those_of_sha256(tmp_path):
    whole = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", FIPS 180-2
    assert digest("abc") == digest(b"a", "bc") == whole[:16] and digest_all(iter(["a", "b", "c"]), 64) == whole
    (tmp_path / "abc").write_bytes(b"abcdef")
    assert digest_file(tmp_path / "abc", limit=3) == whole[:16] != digest_file(tmp_path / "abc")
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1}) != digest_json({"a": 1})


def test_resources_are_the_checkouts_own():
    assert resource("configs/eval") == ROOT / "configs" / "eval"
    assert os.path.samefile(resource("assets/sample.mp4"), ROOT / "assets" / "sample.mp4")
    with pytest.raises(DataError, match="nothing is neither in"):
        resource("nothing")


def test_two_writers_of_one_file_are_told_apart(tmp_path):
    path = tmp_path / "rows.jsonl"
    with only_writer(path):
        with pytest.raises(DataError, match="another process writes to"), only_writer(path):
            pass
        with only_writer(tmp_path / "other.jsonl"):
            pass
    with only_writer(path):
        pass
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="cannot write beside"), only_writer(tmp_path / "no" / "rows"):
        pass


def test_rows_with_half_a_character_and_full_disks(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, {"text": "a \ud800"})
    append_row(path, {"text": "b"})
    assert [row["text"] for row in read_rows(path)] == ["a \ud800", "b"]
    with pytest.raises(DataError, match="cannot write to"):
        append_row(tmp_path, {})
    if Path("/dev/full").exists():
        with pytest.raises(DataError, match="No space"):
            append_row(Path("/dev/full"), {})
