"""The decoding kernels find keys by their addresses, and give what attention to all of them gives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from interpreted import by_interpreter

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
from videoxl.kernels import decode
from videoxl.model.decoder.layers import rotate

pytestmark = by_interpreter


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(decode, "block_keys", lambda _: (16, 2))


@pytest.mark.parametrize(
    ("rows", "heads", "groups", "dim", "own", "prefix"),
    [
        (1, 4, 2, 32, 37, 0),
        (3, 6, 2, 16, 70, 0),
        (1, 4, 2, 32, 0, 20),  # the first token of a row's own
        (5, 14, 2, 32, 9, 100),  # seven heads a group, as in the 7B model
        (12, 7, 1, 16, 3, 65),  # more rows than go over the keys at once
    ],
)
def test_one_token_a_row(rows, heads, groups, dim, own, prefix):
    torch.manual_seed(0)
    query, key, value = (torch.randn(rows, 1, n * dim) for n in (heads, groups, groups))
    angles = torch.randn(rows, 1, dim // 2)
    rope = angles.cos().repeat(1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    stored = [torch.randn(rows, groups, own + 9, dim) for _ in range(2)]
    shared = [torch.randn(1, groups, prefix + 3, dim) for _ in range(2)]
    before = [kind.clone() for kind in stored]

    def by_head(x):
        return x.view(rows, 1, -1, dim).transpose(1, 2)

    new = rotate(by_head(key), *rope), by_head(value)
    seen = [
        torch.cat([a[:, :, :prefix].expand(rows, -1, -1, -1), b[:, :, :own], c], 2)
        for a, b, c in zip(shared, stored, new)
    ]
    turned = rotate(by_head(query), *rope)
    expected = F.scaled_dot_product_attention(turned, *seen, scale=0.2, enable_gqa=True).transpose(1, 2).flatten(2)

    addresses = [*(x.data_ptr() for x in stored), own + 9]
    addresses += [*(x.data_ptr() for x in shared), prefix + 3] if prefix else [0, 0, 0]
    attend = decode.DecodeAttention(rows, heads, groups, dim, prefix > 0, torch.device("cpu"))
    lengths = torch.tensor([own, prefix], dtype=torch.int32)
    found = attend(torch.cat([query, key, value], -1), rope, torch.tensor(addresses), lengths, 0.2)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    for kind, old, one in zip(stored, before, new):
        torch.testing.assert_close(kind[:, :, own : own + 1], one, atol=1e-6, rtol=1e-5)
        assert torch.equal(kind[:, :, :own], old[:, :, :own]) and torch.equal(
            kind[:, :, own + 1 :], old[:, :, own + 1 :]
        )
