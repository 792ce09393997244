"""The sizes of a configuration, for the estimate of cost."""

from __future__ import annotations

from videoxl.cost.shapes import ModelShape
from videoxl.model.configuration import VideoXLConfig
from videoxl.model.modality import get_modality
from videoxl.model.projector import count_projector
from videoxl.model.towers import tower_shape


def model_shape(config: VideoXLConfig) -> ModelShape:
    """The sizes that costs depend on. Raises `CheckpointError` if the vision tower's configuration cannot be found."""
    tower = tower_shape(config)
    return ModelShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        own_projections=tuple(config.beacon_param),
        projector_parameters=0 if tower is None else count_projector(config),
        tied_embeddings=bool(config.tie_word_embeddings),
        window=config.beacon_window,
        tokens_a_frame=0 if tower is None else get_modality("video").num_tokens(1, tower.patches, config),
        max_positions=config.max_position_embeddings,
        ratio_mix=config.beacon_ratio_mix,
        one_by_one=config._attn_implementation == "eager",
        tower=tower,
        tower_name=config.mm_vision_tower,
    )
