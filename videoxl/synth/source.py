"""The synthetic world as a data source: `--data_path synth:SIZE/STAGE`. Importing it registers source and tasks."""

from __future__ import annotations

from videoxl.synth import class_tasks, word_task  # noqa: F401  (they register their tasks)
from videoxl.synth.stages import find_stage
from videoxl.synth.stream import SyntheticStream
from videoxl.train.data.sources import DATA_SOURCES, DataSource, SourceContext


@DATA_SOURCES.register("synth")
class SyntheticSource(DataSource):
    """One stage of the small model's recipe, drawn on the fly."""

    def __init__(self, name: str):
        self.stage = find_stage(name)

    def dataset(self, context: SourceContext) -> SyntheticStream:
        return SyntheticStream(
            self.stage, context.tokenizer, context.config, context.num_patches, context.image_size, context.seed
        )
