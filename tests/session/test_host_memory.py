"""Host memory does not grow with the number of frames: pixels and features are never all held."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT
from videos import write_video

SCRIPT = """
import resource, sys
sys.path.insert(0, {root!r})
import torch
from videoxl.model.builder import load_pretrained_model
from videoxl.video import FrameChoice, open_video
torch.set_num_threads(2)
tokenizer, model, processor, _ = load_pretrained_model({model!r}, device_map="cpu")
with open_video({video!r}, processor, FrameChoice(num_frames={frames})) as stream:
    memory = model.summarize(stream, prefix_ids=[1, 2, 3], ratio=64)
assert memory.num_frames == {frames}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_3000_frames_peak_within_300_mib_of_300_frames(tmp_path):
    video = write_video(tmp_path / "long.mp4", 3000, gop=50)
    peaks = []
    for frames in (300, 3000):
        script = SCRIPT.format(root=str(ROOT), model=str(ROOT / "assets/tiny-random"), video=str(video), frames=frames)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    print(f"peaks: {peaks[0]:.0f} MiB with 300 frames, {peaks[1]:.0f} MiB with 3000")
    assert peaks[1] - peaks[0] < 300  # all pixels would be 3.9 GiB, all 8-bit frames 0.95 GiB
