"""lmms-eval's entry point: maps model names to the class, which is imported on demand."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="videoxl", simple_class_path="videoxl.benchmarks.lmms.VideoXL", aliases=("video_xl",))
