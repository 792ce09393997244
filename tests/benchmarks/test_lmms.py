"""The plugin under the real lmms-eval, offline: `python -m lmms_eval` with generated videos."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from lmms_world import VIDEOS, shuffled, write_records, write_world
from tiny_runs import BUNDLE
from videos import cut

from videoxl.chat import tokenizer_image_token
from videoxl.media.choice import FrameChoice
from videoxl.media.stream import open_video

lmms_eval = pytest.importorskip("lmms_eval", reason="lmms-eval is in the second environment (extra `eval`)")
pytestmark = pytest.mark.slow

ARGUMENTS = f"pretrained={BUNDLE},conv_template=qwen_1_5,max_frames_num=12,beacon_ratio=8,video_decode_backend=pyav"
PUBLISHED = (
    f"pretrained={BUNDLE},conv_template=qwen_1_5,model_name=llava_qwen,max_frames_num=12,video_decode_backend=decord,"
    "attn_implementation=sdpa,device_map=cpu,mm_spatial_pool_stride=2,mm_spatial_pool_mode=average"
)


def environment(**changes):
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    return {**os.environ, **offline, "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true", **changes}


def run(folder, output, tasks, arguments=ARGUMENTS, processes=1, model="videoxl", more=(), **changes):
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    command = [*launch, "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", tasks,
               "--include_path", str(folder), "--batch_size", "1", "--log_samples",
               "--output_path", str(output), *more]  # fmt: skip
    return subprocess.run(
        command, env=environment(**changes), capture_output=True, text=True, timeout=600, cwd=output.parent
    )


def results(output):
    (path,) = output.rglob("*_results.json")
    return json.loads(path.read_text())["results"]


def samples(output, task):
    (path,) = output.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts(sample):
    return sample["token_counts"][0]


def answers(output, records):
    """What was answered to each question about each video."""
    return {
        (records[s["doc_id"]]["question"], records[s["doc_id"]]["video"]): s["filtered_resps"]
        for s in samples(output, "tiny_open")
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    return folder, write_world(folder)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """All tasks in one run."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    done = run(world[0], output, "tiny_open,tiny_choice,tiny_pictures,tiny_rounds")
    assert done.returncode == 0, done.stderr[-3000:]
    return output, done


def test_every_request_type_is_answered_and_scored(world, whole):
    found, (_, records) = results(whole[0]), world
    right = [record["answer"] for record in records]
    opened = samples(whole[0], "tiny_open")
    given = [sample["filtered_resps"] for sample in opened]
    assert set(given) <= set("ABCD") and len(given) == len(records)
    assert found["tiny_open"]["right,none"] == pytest.approx(sum(a == b for a, b in zip(given, right)) / len(right))
    assert found["tiny_open"]["right,none"] >= 0.6  # 8 questions about 4 videos, chance 0.25
    for sample, answer in zip(samples(whole[0], "tiny_choice"), given):
        losses = [float(response[0]) for response in sample["filtered_resps"]]
        # The letter that is generated is the likeliest of the four.
        assert min(losses) > 0 and "ABCD"[losses.index(min(losses))] == answer
        assert [response[1] for response in sample["filtered_resps"]].count("True") == 1
    assert found["tiny_choice"]["acc,none"] == pytest.approx(found["tiny_open"]["right,none"])
    for sample in samples(whole[0], "tiny_pictures"):
        assert len({response[0] for response in sample["filtered_resps"]}) == 4
    assert found["tiny_rounds"]["rounds,none"] == 2
    assert found["tiny_rounds"]["right,none"] == pytest.approx(found["tiny_open"]["right,none"])


def test_each_sample_says_ratio_frames_and_times(whole):
    for task in ("tiny_open", "tiny_choice", "tiny_rounds"):
        for sample in samples(whole[0], task):
            said = facts(sample)
            assert said["beacon_ratio"] == 8 and said["frames"] == 12
            assert said["timestamps"] == [float(second) for second in range(12)]
    assert facts(samples(whole[0], "tiny_pictures")[0]) == {"beacon_ratio": 8, "visual_inputs": 1}


def test_shuffled_questions_get_the_same_answers(world, whole, tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(world[0], folder)
    turned = shuffled(world[1])
    write_records(folder, turned)
    done = run(folder, tmp_path / "out", "tiny_open")
    assert done.returncode == 0, done.stderr[-3000:]
    assert turned != world[1] and answers(tmp_path / "out", turned) == answers(whole[0], world[1])


def test_a_resumed_run_gives_the_same_answers(world, whole, tmp_path):
    """lmms-eval's own cache of answers: what a first run answered is taken over, the rest is asked."""
    more = ("--use_cache", str(tmp_path / "cache"))
    done = run(world[0], tmp_path / "first", "tiny_open,tiny_choice,tiny_rounds", more=(*more, "--limit", "3"))
    assert done.returncode == 0, done.stderr[-3000:]
    # Two processes: one may find all of its answers in the cache, and is then never asked.
    done = run(world[0], tmp_path / "second", "tiny_open,tiny_choice,tiny_rounds", processes=2, more=more)
    assert done.returncode == 0, done.stderr[-3000:]
    for task, metric in (("tiny_choice", "acc,none"), ("tiny_rounds", "rounds,none")):
        assert results(tmp_path / "second")[task][metric] == results(whole[0])[task][metric]
    found = samples(tmp_path / "second", "tiny_open")
    assert [sample["token_counts"][0] is None for sample in found].count(True) == 3  # taken from the cache
    assert answers(tmp_path / "second", world[1]) == answers(whole[0], world[1])


def test_two_processes_and_the_published_arguments_give_the_same_scores(world, whole, tmp_path):
    done = run(world[0], tmp_path / "out", "tiny_open,tiny_choice", PUBLISHED, processes=2, model="video_xl")
    assert done.returncode == 0, done.stderr[-3000:]
    for task, metric in (("tiny_open", "right,none"), ("tiny_choice", "acc,none")):
        assert results(tmp_path / "out")[task][metric] == results(whole[0])[task][metric]
    assert len(samples(tmp_path / "out", "tiny_open")) == len(world[1])
    assert "Running on rank 1" in done.stderr + done.stdout


@pytest.mark.parametrize("strict", [False, True])
def test_an_unreadable_video_has_an_empty_answer_and_a_status_where_strict(world, tmp_path, strict):
    folder = tmp_path / "tasks"
    shutil.copytree(world[0], folder)
    broken = cut(Path(world[1][0]["video"]), tmp_path / "broken.mp4", 0.02)
    records = [{**world[1][0], "video": str(broken)}, world[1][2]]
    write_records(folder, records)
    done = run(folder, tmp_path / "out", "tiny_open", ARGUMENTS + f",strict={strict}")
    assert done.returncode == (1 if strict else 0), done.stderr[-3000:]
    first, second = samples(tmp_path / "out", "tiny_open")
    assert first["filtered_resps"] == "" and second["filtered_resps"] in set("ABCD")
    assert "broken.mp4" in done.stderr + done.stdout
    assert ("strict: 1 visual inputs" in done.stderr) == strict


def test_strict_counts_over_all_processes(world, tmp_path):
    folder = tmp_path / "tasks"
    shutil.copytree(world[0], folder)
    broken = cut(Path(world[1][0]["video"]), tmp_path / "broken.mp4", 0.02)
    write_records(folder, [world[1][2], {**world[1][0], "video": str(broken)}])  # the second one is process 1's
    done = run(folder, tmp_path / "out", "tiny_open", ARGUMENTS + ",strict=True", processes=2)
    assert done.returncode == 1 and "strict: 1 visual inputs" in done.stderr
    assert [sample["filtered_resps"] for sample in samples(tmp_path / "out", "tiny_open")].count("") == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("pretrained=/nowhere/at/all", "no such checkpoint"),
        (f"pretrained={BUNDLE},beacon_ratio=[2,4]", "give one ratio"),
        (f"pretrained={BUNDLE},frames=12", "frames is not known"),
        ("beacon_ratio=8", "lacks pretrained"),
        (f"pretrained={BUNDLE},conv_template=vicuna", "conv_template"),
    ],
)
def test_wrong_arguments_end_with_a_status_and_a_reason(world, tmp_path, arguments, said):
    done = run(world[0], tmp_path / "out", "tiny_open", arguments)
    assert done.returncode == 2 and said in done.stderr + done.stdout


def test_an_error_in_a_request_ends_with_a_status(world, tmp_path):
    """lmms-eval itself logs it and ends with 0."""
    folder = tmp_path / "tasks"
    shutil.copytree(world[0], folder)
    utils = folder / "utils.py"
    utils.write_text(utils.read_text().replace('return [doc["video"]]', 'return [{"array": doc["video"]}]', 1))
    done = run(folder, tmp_path / "out", "tiny_open")
    assert done.returncode == 2 and "a visual input is a dict" in done.stderr + done.stdout


@pytest.fixture(scope="module")
def model():
    from videoxl.benchmarks.lmms import VideoXL

    plugin = VideoXL(pretrained=str(BUNDLE), max_frames_num=6, device="cpu")
    yield plugin
    plugin._status.strict = False


@pytest.mark.parametrize("kinds", ["p", "pp", "vp", "pv", "vv", ""])
def test_several_visual_inputs_give_what_generate_gives(world, model, kinds):
    from PIL import Image

    from videoxl.media.views import process_images

    session, record = model._asker.session, world[1][0]
    seen = [record["video"] if kind == "v" else Image.open(record["picture"]) for kind in kinds]
    made = model._generate("What is it?", {"max_new_tokens": 5}, seen)
    marks = " ".join(["<image>"] * len(kinds)) + "\n" if kinds else ""
    prompt = (
        f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{marks}What is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer_image_token(prompt, session.tokenizer, return_tensors="pt").unsqueeze(0)

    def pixels(kind):
        if kind == "p":
            picture = Image.open(record["picture"])
            return process_images([picture], session.image_processor, session.model.config)[0]
        with open_video(record["video"], session.image_processor, FrameChoice(6)) as stream:
            return torch.cat([chunk.pixels(torch.device("cpu"), torch.float32) for chunk in stream])

    images = [pixels(kind) for kind in kinds]
    modalities = ["video" if kind == "v" else "image" for kind in kinds]
    extra = {"images": images, "modalities": modalities, "ratio": 8} if kinds else {}
    output = session.model.generate(ids, **extra, max_new_tokens=5, do_sample=False, return_dict_in_generate=True,
                                    output_logits=True)  # fmt: skip
    new = output.sequences[0, -len(output.logits) :]
    assert made.text == session.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_video_mmes_own_task_runs_on_a_local_data_set(world, tmp_path):
    """Its prompt, its parsing and its metric, with the data set put in its place."""
    home = tmp_path / "home"
    data = home / "videomme" / "data"
    data.mkdir(parents=True)
    rows = []
    for number, record in enumerate(world[1][::2]):
        shutil.copy(record["video"], data / f"{record['videoID']}.mp4")
        options = [f"{letter}. {option}" for letter, option in zip("ABCD", record["options"])]
        question = record["question"].split("\n")[0]
        rows.append(
            {
                "video_id": f"{number:03d}", "duration": "short", "domain": "Knowledge", "sub_category": "Astronomy",
                "videoID": record["videoID"], "question_id": f"{number:03d}-1", "task_type": "Object Recognition",
                "question": question, "options": options, "answer": record["answer"], "url": "",
            }
        )  # fmt: skip
    (tmp_path / "mme.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Path(lmms_eval.__file__).parent / "tasks" / "videomme" / "videomme.yaml"
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "local.yaml").write_text(
        f"include: {task}\ntask: videomme_local\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'mme.jsonl'}\n"
    )
    done = run(folder, tmp_path / "out", "videomme_local", HF_HOME=str(home))
    assert done.returncode == 0, done.stderr[-3000:]
    score = results(tmp_path / "out")["videomme_local"]["videomme_perception_score,none"]
    given = samples(tmp_path / "out", "videomme_local")
    assert len(given) == VIDEOS and all("Respond with only the letter" in s["input"] for s in given)
    right = sum(s["filtered_resps"][:1] == row["answer"] for s, row in zip(given, rows))
    assert score == pytest.approx(100 * right / VIDEOS)


def test_the_file_works_inside_a_copied_lmms_eval(world, whole, tmp_path):
    """As the published README says: the file into the tree, a line into its list; no entry point."""
    tree = tmp_path / "tree"
    shutil.copytree(Path(lmms_eval.__file__).parent, tree / "lmms_eval", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "eval" / "videoxl.py", tree / "lmms_eval" / "models" / "simple" / "videoxl.py")
    listing = tree / "lmms_eval" / "models" / "__init__.py"
    text = listing.read_text()
    listing.write_text(
        text.replace("AVAILABLE_SIMPLE_MODELS = {", 'AVAILABLE_SIMPLE_MODELS = {\n    "dropped_in": "X",', 1)
    )
    (tree / "lmms_eval" / "models" / "simple" / "dropped_in.py").write_text(
        "from lmms_eval.models.simple.videoxl import VideoXL as X\n"
    )
    done = run(world[0], tmp_path / "out", "tiny_open", model="dropped_in", PYTHONPATH=f"{tree}:{ROOT}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(tmp_path / "out")["tiny_open"] == results(whole[0])["tiny_open"]
