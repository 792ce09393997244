"""Answers DeepSpeed's queries about the processor, made before it compiles an op, from `/proc/cpuinfo`.

DeepSpeed asks py-cpuinfo, which forks a process and polls it in a busy loop, for facts that the kernel has in a file.
On two busy cores such a wait took over ten minutes (docs/log/2026-11.md).
"""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def answer_from_the_kernel() -> bool:
    """Replace `cpuinfo.get_cpu_info` by one that forks no process. Returns whether it was replaced.

    It is not if py-cpuinfo is not installed or `/proc/cpuinfo` does not list x86-64 features.
    """
    found = read_processor()
    if found is None:
        return False
    try:
        import cpuinfo
    except ImportError:
        return False
    cpuinfo.get_cpu_info = lambda: found
    return True


def read_processor(path: Path = CPUINFO) -> dict | None:
    """The first processor of `path` under py-cpuinfo's keys, or None if the file does not tell."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        lines = path.read_text().split("\n\n")[0].splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "flags" not in fields:
        return None
    return {
        "arch": "X86_64",
        "bits": 64,
        "vendor_id_raw": fields.get("vendor_id", ""),
        "brand_raw": fields.get("model name", ""),
        "flags": sorted(fields["flags"].split()),
    }
