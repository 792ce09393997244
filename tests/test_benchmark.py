"""The benchmark at toy size: every part measures, results are merged and not mixed, the scaling model is found."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT, SAMPLE, TINY
from programs import call, main_of

sys.path.insert(0, str(ROOT / "scripts"))
from benchmark_scaling import Scaling, draw, fit

main = main_of(ROOT / "scripts" / "benchmark.py")


@pytest.fixture
def config(tmp_path):
    (tmp_path / "small.json").write_text((TINY / "config.json").read_text())
    return tmp_path / "small.json"


def run(config, output, *more):
    few = ("--frames", "4,12", "--new-tokens", "6", "--rounds", "1", "--video", SAMPLE, "--output", output)
    return call(main, "--config", config, *few, *more)


def test_every_part_measures_and_is_merged_into_one_file(config, tmp_path):
    output = tmp_path / "out.json"
    done = run(config, output, "--part", "summarise", "memory", "decode")
    assert done.returncode == 0, done.stderr
    first = json.loads(output.read_text())["parts"]
    assert [row["frames"] for row in first["summarise"]["rows"]] == [4, 12]
    assert all(row["total_s"] > 0 and row["share_of_product"] > 0 for row in first["summarise"]["rows"])
    assert [row["cached_positions"] for row in first["memory"]["rows"]] == [14, 14 + 1440 // 8]
    assert [row["questions"] for row in first["decode"]["rows"]] == [1, 8, 1, 8]
    done = run(config, output, "--part", "fp8", "question", "pipeline", "scaling", "--peers")
    assert done.returncode == 0, done.stderr
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == ["summarise", "memory", "decode", "question", "pipeline", "scaling", "peers", "fp8"]
    assert parts["summarise"] == first["summarise"] and "uncompressed to ours" in done.stdout
    for part in parts.values():
        assert part["date"] and part["command"].startswith("python scripts/benchmark.py --config ") and part["rows"]
    assert [(row["frames"], row["ratio"]) for row in parts["scaling"]["rows"]][:2] == [(4, 8), (12, 8)]
    assert all(row["file_to_first_token_s"] > 0 for row in parts["pipeline"]["rows"])
    assert [row["tokens"] for row in parts["peers"]["rows"]] == [4 * 144 + 56, 12 * 144 + 56]
    assert all(row["prefill_s"] > 0 and row["tokens_per_s"] > 0 for row in parts["peers"]["rows"])
    assert all(row["tokens_per_s"] > 0 for row in parts["decode"]["rows"])
    assert all(0 < row["logits_error"] < 0.5 and row["fp8_read_s"] > 0 for row in parts["fp8"]["rows"])


def test_weights_of_four_bits_are_loaded_and_measured(tmp_path):
    pytest.importorskip("bitsandbytes")
    shape = json.loads((TINY / "config.json").read_text())
    # bitsandbytes' blocks on the CPU need widths that are multiples of 64.
    shape |= {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "wide.json").write_text(json.dumps(shape))
    done = run(tmp_path / "wide.json", tmp_path / "out.json", "--part", "four_bit", "summarise")
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    rows = parts["four_bit"]["rows"]
    assert [row["frames"] for row in rows] == [4, 12] and all(row["tokens_per_s"] > 0 for row in rows)
    assert all(0.001 < row["logits_error"] < 0.9 for row in rows)  # another model, but not any other
    assert len(parts["summarise"]["rows"]) == 2  # the model itself is as it was


def test_results_of_another_configuration_and_other_files_are_left_alone(config, tmp_path):
    output = tmp_path / "out.json"
    for content in ('{"config": "other.json", "parts": {}}', "[]", "{half"):
        output.write_text(content)
        done = run(config, output)
        assert done.returncode == 2 and "name another --output" in done.stderr
        assert output.read_text() == content
    done = run(tmp_path / "none.json", tmp_path / "new.json")
    assert done.returncode == 2 and "no such configuration" in done.stderr
    assert call(main, "--config", config, "--rounds", "0").returncode == 2


def test_the_scaling_model_is_found_and_drawn(tmp_path):
    true = Scaling(2e-3, 3e-6)
    rows = [
        {"frames": frames, "ratio": ratio, "read_s": true.seconds(frames, ratio)}
        for frames in (128, 512, 2048)
        for ratio in (4, 8)
    ]
    found = draw(rows, tmp_path / "scaling.png")
    assert (found.a, found.b) == pytest.approx((true.a, true.b))
    assert found.crossing(8) == pytest.approx(8 * 2e-3 / 3e-6)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert "from 5,333 frames on" in found.describe(8)
    parts = {"scaling": {"device": "some GPU", "rows": rows[:3]}, "memory": {"rows": rows[3:]}}
    (tmp_path / "parts.json").write_text(json.dumps({"parts": parts}))
    done = call(main_of(ROOT / "scripts" / "benchmark_scaling.py"), tmp_path / "parts.json", tmp_path / "all.png")
    assert done.returncode == 0 and found.describe(4) in done.stdout  # what `memory` read is a part of it
    linear = fit([(100, 8, 1.0), (1000, 8, 9.0)])  # grows by less than a line: no negative part
    assert linear.b == 0 and linear.a > 0 and "nowhere that was measured" in linear.describe(8)
