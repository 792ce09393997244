"""What lmms-eval finds by the entry point: a name for a class that is imported when it is asked for."""

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="videoxl", simple_class_path="videoxl.benchmarks.lmms.VideoXL", aliases=("video_xl",))
