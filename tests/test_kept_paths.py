"""Published paths and those that the README has shown: they stay importable and runnable, wherever the code lives."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib

import pytest
from conftest import ROOT, TINY

NAMES = {
    "videoxl": ("VideoXL", "Answer", "FrameChoice", "VideoMemory", "LlavaQwenForCausalLM", "VideoXLConfig"),
    "videoxl.constants": (
        "IGNORE_INDEX", "IMAGE_TOKEN_INDEX", "TOKEN_PERFRAME", "DEFAULT_IMAGE_TOKEN", "DEFAULT_IM_START_TOKEN",
        "DEFAULT_IM_END_TOKEN", "DEFAULT_IMAGE_PATCH_TOKEN",
    ),
    "videoxl.mm_utils": (
        "tokenizer_image_token", "process_images", "transform_input_id", "get_model_name_from_path",
        "KeywordsStoppingCriteria",
    ),
    "videoxl.conversation": (
        "conv_templates", "default_conversation", "Conversation", "video_prompt_ids", "join_prompt_ids",
        "SYSTEM_MESSAGE", "SELECT_MESSAGE",
    ),
    "videoxl.video": ("open_video", "FrameChoice", "probe_video", "FrameStream", "FrameChunk", "VideoWarning"),
    "videoxl.model.builder": ("load_pretrained_model",),
    "videoxl.train.merge": ("merge", "main"),
}  # fmt: skip
FILES = (
    "videoxl/train/train.py", "NIAH/run.py", "NIAH/plot.py", "NIAH/make_data.py", "NIAH/scripts/eval.sh",
    "NIAH/datas/qa/qa.json", "eval/videoxl.py", "eval/eval_vnbench.py", "eval/eval_vnbench.sh", "scripts/pretrain.sh",
    "scripts/finetune_i.sh", "scripts/finetune_v.sh", "configs/deepspeed/zero3.json", "configs/eval/videomme.yaml",
    "assets/sample.mp4", "assets/videoxl-tiny/config.json",
)  # fmt: skip


@pytest.mark.parametrize("module", NAMES)
def test_names_stay_importable(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []


@pytest.mark.parametrize("name", FILES)
def test_files_stay_where_commands_name_them(name):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "videoxl.train", "--help"),
        ("videoxl/train/train.py", "--help"),
        ("-m", "videoxl.train.merge", "--help"),
        ("-m", "NIAH.run", "--help"),
        ("-m", "NIAH.plot", "--help"),
        ("-m", "NIAH.make_data", "--help"),
        ("eval/eval_vnbench.py", "--help"),
        ("-m", "videoxl.cli", "--help"),
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_programs_start_under_their_published_paths(command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr[-2000:]


def test_entry_points_name_what_there_is():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    places = [*project["scripts"].values()]
    places += [place for group in project["entry-points"].values() for place in group.values()]
    assert {"videoxl", "videoxl-train", "videoxl-niah", "videoxl-vnbench"} == set(project["scripts"])
    for place in places:
        module, _, attribute = place.partition(":")
        if module == "videoxl.benchmarks.lmms_manifest":  # needs lmms-eval, and is tested with it
            continue
        assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize(
    "order",
    [
        "import videoxl\nfrom transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText",
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText\nimport videoxl",
        "import videoxl\nfrom transformers import Qwen2ForCausalLM, Trainer\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText",
        "import videoxl\nfrom importlib.util import find_spec\n"
        "find_spec('transformers.models.auto.configuration_auto')\n"
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText",
    ],
    ids=["before", "after", "in between", "looked up before"],
)
def test_the_auto_classes_know_the_model_in_whichever_order_packages_are_imported(order):
    script = order + (
        f"\nconfig = AutoConfig.from_pretrained({str(TINY)!r})"
        "\nassert type(config).__name__ == 'VideoXLConfig', config"
        "\nfor auto in (AutoModelForCausalLM, AutoModelForImageTextToText):"
        f"\n    assert type(auto.from_pretrained({str(TINY)!r})).__name__ == 'LlavaQwenForCausalLM'"
        "\nassert type(AutoConfig.for_model('qwen2')).__name__ == 'Qwen2Config'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_and_import_bring_nothing_heavy():
    """So `videoxl --help` takes a sixth of a second; half of one is allowed."""
    script = (
        "import sys, videoxl, videoxl.cli.app; print([n for n in ('torch', 'transformers', 'av') if n in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
