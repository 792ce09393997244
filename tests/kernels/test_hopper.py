"""The kernel for Hopper: without a GPU it compiles; on one it gives what plain attention gives."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from interpreted import by_interpreter, on_gpu

pytest.importorskip("triton", reason="Triton is not installed here; the second environment has it")
pytest.importorskip("triton.experimental.gluon.nvidia.hopper", reason="this Triton has no Gluon for Hopper")

from videoxl.kernels import windows

on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)

COMPILE = """
import re, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from videoxl.kernels import hopper

def describe(name, dim):
    rows = hopper.QUERIES if name == "q_desc" else hopper.KEYS
    return f"tensordesc<bf16[{rows}, {dim}],{gl.NVMMASharedLayout.get_default_for([rows, dim], gl.bfloat16)!r}>"

kinds = {"OUT": "*bf16", "SUM": "*fp32", "scale": "fp32"}
for dim in hopper.HEAD_DIMS:
    names = hopper._stored_kernel.arg_names
    fixed = {"QUERIES": hopper.QUERIES, "KEYS": hopper.KEYS, "D": dim, "STAGES": hopper._STAGES, "num_warps": 4}
    signature = {
        name: "constexpr" if name in fixed else describe(name, dim) if "_desc" in name else kinds.get(name, "i32")
        for name in names
    }
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = GluonASTSource(fn=hopper._stored_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": 4, "maxnreg": hopper._REGISTERS}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = made.asm["ptx"]
    # The softmax stands between the two waits, after the beginning of the product with values.
    between = re.search(r"wgmma.wait_group\\S*\\s+1;(.*?)wgmma.wait_group\\S*\\s+0;", ptx, re.DOTALL)
    softmax = between.group(1).count("ex2.approx") if between else 0
    print(dim, made.metadata.shared, softmax)
"""


@by_interpreter
def test_it_compiles_and_a_product_is_begun_before_the_softmax():
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = [list(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [dim for dim, *_ in made] == [64, 128]
    assert all(shared <= 227 * 1024 and softmax >= 64 for _, shared, softmax in made), made


@by_interpreter
def test_its_check_knows_a_right_kernel_from_a_wrong_one(monkeypatch):
    from videoxl.kernels import hopper

    def attend(query, cache, stored, scale, wrong=0):
        heads = query.view(70, 2, -1).transpose(0, 1).float()
        key, value = (kind[0, 0, : stored - wrong].float() for kind in cache)
        weights = torch.exp2(heads @ key.T * scale)
        return (weights @ value / weights.sum(-1, keepdim=True)).transpose(0, 1).reshape(query.shape), None

    for wrong in (0, hopper.KEYS):
        monkeypatch.setattr(hopper, "attend_stored", lambda *given, wrong=wrong: attend(*given, wrong=wrong))
        if wrong:
            with pytest.raises(RuntimeError, match="off plain attention"):
                hopper.check(torch.device("cpu"), torch.bfloat16, 128)
        else:
            hopper.check(torch.device("cpu"), torch.bfloat16, 128)


@by_interpreter
def test_where_it_cannot_run_one_warning_says_so_and_reading_goes_on(monkeypatch, recwarn):
    from videoxl.kernels import hopper

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    windows._fast_for.cache_clear()
    device = torch.device("cuda", 0)
    for reason in (AttributeError("no async_load"), RuntimeError("it is 0.3 off plain attention")):
        windows._fast_for.cache_clear()

        def check(*_, reason=reason):
            raise reason

        monkeypatch.setattr(hopper, "check", check)
        assert windows._fast_for(device, torch.bfloat16, 128) is None
        assert windows._fast_for(device, torch.bfloat16, 128) is None
    assert [str(reason) in str(each.message) for each, reason in zip(recwarn, ("no async_load", "0.3 off"))] == [
        True
    ] * 2
    assert len(recwarn) == 2
    assert windows._fast_for(device, torch.bfloat16, 32) is None and len(recwarn) == 2  # never made for these
    windows._fast_for.cache_clear()


@on_gpu
@on_hopper
@pytest.mark.parametrize(("batch", "rows", "stored"), [(1, 1, 128), (1, 300, 256), (2, 130, 1280), (1, 1620, 4096)])
@pytest.mark.parametrize(("dim", "dtype"), [(64, torch.bfloat16), (128, torch.bfloat16), (128, torch.float16)])
def test_it_gives_what_plain_attention_gives(batch, rows, stored, dim, dtype):
    torch.manual_seed(0)
    heads, groups = 6, 2
    query = torch.randn(batch, rows, heads * dim, device="cuda", dtype=dtype)
    cache = [torch.randn(batch, groups, stored + 70, dim, device="cuda", dtype=dtype) for _ in range(2)]
    cache[1][:, :, stored:] = float("nan")  # what stands after is not read
    fast = windows._fast_for(query.device, dtype, dim)
    output, sums = fast.attend_stored(query, cache, stored, 0.1 * windows.LOG2_E)
    by_head = query.view(batch, rows, heads, dim).transpose(1, 2).float()
    key, value = (kind[:, :, :stored].float().repeat_interleave(heads // groups, 1) for kind in cache)
    scores = by_head @ key.transpose(2, 3) * 0.1
    expected = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output.float(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(sums, scores.logsumexp(-1) * windows.LOG2_E, atol=2e-2, rtol=1e-3)
