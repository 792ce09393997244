"""Rows taken apart at their placeholders, together, as one by one."""

import numpy as np
import pytest
import torch

from videoxl.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from videoxl.errors import BatchError, PromptError
from videoxl.model.prompt import Rows, shifted_labels, split_prompt

V = IMAGE_TOKEN_INDEX
ROWS = [[1, 2, V, 3, V, 4, 5, 6], [7, 8, V, 9, V, 10], [11, 12, V, 13, V, 14, 15]]


def padded(rows, at, width):
    """Rows with all their padding (id 0, mask 0) before token `at`, or after a shorter row; and their mask."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        columns = [place + (width - len(row)) * (place >= at) for place in range(len(row))]
        ids[index, columns] = torch.tensor(row)
        mask[index, columns] = 1
    return ids, mask


@pytest.mark.parametrize("at", [0, 1, 4, 8])
def test_padding_is_dropped_wherever_it_stands(at):
    ids, mask = padded(ROWS, at, 10)
    labels = torch.where(mask.bool(), 100 + ids, 77)
    prompt = split_prompt(ids, mask, labels)
    assert [text.tolist() for text in prompt.texts] == [[[1, 2], [7, 8], [11, 12]], [[3], [9], [13]]]
    suffix, inside = prompt.suffixes.pad(-1, "right")
    assert suffix.tolist() == [[4, 5, 6], [10, -1, -1], [14, 15, -1]]
    assert inside.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    texts, suffixes = prompt.labels
    assert [text.tolist() for text in texts] == [[[101, 102], [107, 108], [111, 112]], [[103], [109], [113]]]
    assert suffixes.pad(-1, "left")[0].tolist() == [[104, 105, 106], [-1, -1, 110], [-1, 114, 115]]


def test_rows_of_one_length_need_no_mask():
    rows = Rows.of([[1, 2], [3, 4]])
    for side in ("left", "right"):
        values, mask = rows.pad(0, side)
        assert values.tolist() == [[1, 2], [3, 4]] and mask is None
    assert len(rows) == rows.longest == 2 and rows.is_even
    rows = Rows.of([[1], [2, 3, 4]])
    values, mask = rows.pad(9, "left")
    assert values.tolist() == [[9, 9, 1], [2, 3, 4]] and mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert not rows.is_even


def test_rows_that_differ_before_a_span_are_refused_with_their_lengths():
    for rows, lengths in (
        ([[1, V, 2], [1, 1, V, 2]], "[[1], [2]]"),
        ([[1, V, 2], [1, V, 2, V, 3], [4, 5]], "[[1], [1, 1], []]"),
    ):
        with pytest.raises(BatchError) as caught:
            split_prompt(*padded(rows, 5, 6))
        assert lengths in str(caught.value)


def test_text_must_follow_the_last_span_in_every_row():
    with pytest.raises(PromptError, match="ends with a visual span"):
        split_prompt(*padded([[1, V, 2], [1, V]], 3, 4))


def test_a_mask_or_labels_of_another_shape_are_refused():
    ids = torch.tensor([[1, V, 2], [3, V, 4]])
    for other in (ids[:, :2], ids[:1], ids[0]):
        with pytest.raises(PromptError, match=r"attention_mask has the shape .* and input_ids \[2, 3\]"):
            split_prompt(ids, other)
        with pytest.raises(PromptError, match="labels has the shape"):
            split_prompt(ids, torch.ones_like(ids), other)


@pytest.mark.parametrize("times", [1, 2])
def test_labels_move_left_over_the_whole_sequence(times):
    rng = np.random.default_rng(0)
    rows = [[1, 2, V, 3, V, *range(20, 20 + number)] for number in (1, 3, 2, 3)]
    ids, mask = padded(rows, 8, 8)
    labels = torch.from_numpy(rng.integers(30, 90, ids.shape))
    lengths, prompt = [4, 2], split_prompt(ids, mask, labels)
    found = shifted_labels(prompt, lengths, times)
    assert [part.shape[0] for part in found] == [4 // times] * 4 + [4]
    for index, row in enumerate(rows):
        whole, spans = [], iter(lengths)  # one label a place, the visual spans' expanded
        for token, label in zip(row, labels[index].tolist()):
            whole += [IGNORE_INDEX] * next(spans) if token == V else [label]
        moved = [*whole[1:], *[IGNORE_INDEX] * 3]
        if index % times == 0:
            assert torch.cat([part[index // times] for part in found[:-1]]).tolist() == moved[:9]
        assert found[-1][index].tolist() == moved[9:12]


def test_rows_of_text_alone_have_one_piece():
    ids, mask = padded([[1, 2, 3], [4, 5]], 3, 3)
    (suffix,) = shifted_labels(split_prompt(ids, mask, ids), [])
    assert suffix.tolist() == [[2, 3, IGNORE_INDEX], [5, IGNORE_INDEX, IGNORE_INDEX]]
