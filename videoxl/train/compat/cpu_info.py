"""What DeepSpeed asks about the processor before it builds an operation, answered from `/proc/cpuinfo`.

It asks py-cpuinfo, which forks a process for an answer that the kernel has in a file, and waits for that process by
asking again and again without a pause. On two busy cores such a wait took over ten minutes (docs/log/2026-11.md).
"""

from __future__ import annotations

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def answer_from_the_kernel() -> bool:
    """Have `cpuinfo.get_cpu_info` fork nothing; True where it does so from now on.

    It stays as it is where py-cpuinfo is not installed, or where `/proc/cpuinfo` does not name x86-64's features.
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
    """The first processor of `path` under py-cpuinfo's keys, or None where it cannot be told from there."""
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
