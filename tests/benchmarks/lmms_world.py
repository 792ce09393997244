"""An offline benchmark for lmms-eval: generated videos, a question with options each, tasks of every request type."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from videoxl.synth.files import write_picture, write_video
from videoxl.synth.testset import TestSet

FRAMES, VIDEOS = 12, 4
QUESTIONS = 2  # about each video

UTILS = """
import json

def visual(doc):
    return [doc["video"]]

def picture(doc):
    from PIL import Image
    return [Image.open(doc["picture"])]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}

def rounds(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == 2:
        return None, None, True, previous_output, None
    return [doc["video"]], "How many cards are shown in this video?", False, previous_output, {"asked": round_idx}

def rounds_results(doc, results):
    answers = results[0]
    return {"right": float(answers[0] == doc["answer"]), "rounds": float(len(answers))}
"""

COMMON = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output_type}
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.{text}
doc_to_target: "{target}"
"""
GENERATION = """
generation_kwargs:
  max_new_tokens: 8
  do_sample: false
process_results: !function utils.{results}
"""
METRIC = """
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


def write_world(folder: Path) -> list[dict]:
    """Videos, pictures, records and tasks; returns the records."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    testset = TestSet("needle", VIDEOS, FRAMES, 336, seed=3)
    records = []
    for number in range(VIDEOS):
        item = testset[number]
        numbers = item.frames.numbers.numpy()
        path, picture = videos / f"video{number}.mp4", videos / f"picture{number}.png"
        write_video(path, numbers, 336)
        write_picture(picture, numbers[:1], 336)
        for turn in range(QUESTIONS):
            question = item.questions[0].turned((item.questions[0].right + turn) % 4)
            records.append(
                {
                    "video": str(path),
                    "picture": str(picture),
                    "question": question.text,
                    "options": list(question.options),
                    "answer": question.answer,
                    "right": question.right,
                    "videoID": path.stem,
                }
            )
    (folder / "utils.py").write_text(UTILS)
    write_records(folder, records)
    return records


def write_records(folder: Path, records: list[dict]) -> None:
    """The four tasks on these records."""
    data = folder / "test.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    write = {
        "tiny_open": ("generate_until", "visual", "text", "results", ["right"]),
        "tiny_choice": ("multiple_choice", "visual", "text", None, ["acc"]),
        "tiny_pictures": ("multiple_choice", "picture", "text", None, ["acc"]),
        "tiny_rounds": ("generate_until_multi_round", "visual", "rounds", "rounds_results", ["right", "rounds"]),
    }
    for name, (output_type, visual, text, results, metrics) in write.items():
        target = "right" if results is None else "answer"
        body = COMMON.format(name=name, data=data, output_type=output_type, visual=visual, text=text, target=target)
        body += GENERATION.format(results=results) if results else '\ndoc_to_choice: ["A", "B", "C", "D"]\n'
        body += 'target_delimiter: ""\n' if results is None else ""
        body += "metric_list:" + "".join(METRIC.format(metric=metric) for metric in metrics)
        (folder / f"{name}.yaml").write_text(body)


def shuffled(records: list[dict], seed: int = 0) -> list[dict]:
    return [records[place] for place in np.random.default_rng(seed).permutation(len(records))]
