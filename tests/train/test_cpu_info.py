"""DeepSpeed's questions about the processor are answered without a process."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from videoxl.train.compat.cpu_info import answer_from_the_kernel, read_processor

TEXT = (
    "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: sse avx2 avx512f\n\nprocessor\t: 1\n"
)


def test_the_first_processor_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(TEXT)
    assert read_processor(tmp_path / "cpuinfo") == {
        "arch": "X86_64",
        "bits": 64,
        "vendor_id_raw": "AuthenticAMD",
        "brand_raw": "AMD EPYC",
        "flags": ["avx2", "avx512f", "sse"],
    }


def test_what_cannot_be_told_is_left_to_the_library(tmp_path, monkeypatch):
    assert read_processor(tmp_path / "nothing") is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert read_processor(tmp_path / "cpuinfo") is None
    (tmp_path / "cpuinfo").write_text(TEXT)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert read_processor(tmp_path / "cpuinfo") is None


def test_deepspeed_is_told_the_same_as_by_the_library(monkeypatch):
    cpuinfo = pytest.importorskip("cpuinfo", reason="needs the extra train")
    builder = pytest.importorskip("deepspeed.ops.op_builder.cpu", reason="needs the extra train").CPUAdamBuilder
    if read_processor() is None:
        pytest.skip("no x86-64 with a /proc/cpuinfo")
    command = [sys.executable, "-m", "cpuinfo", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except subprocess.TimeoutExpired:
        pytest.skip("py-cpuinfo gives no answer within a minute")
    by_library = json.loads(done.stdout)
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: by_library)
    expected = builder().simd_width(), builder().cpu_arch()
    assert answer_from_the_kernel()
    assert cpuinfo.get_cpu_info() is not by_library
    assert (builder().simd_width(), builder().cpu_arch()) == expected
    assert cpuinfo.get_cpu_info()["vendor_id_raw"] == by_library["vendor_id_raw"]
