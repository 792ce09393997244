"""The sizes of a model that its cost depends on. Computed from the configuration: no model is built."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerShape:
    """A vision tower.

    Attributes:
        layers: number of all layers; layers_run: number of those that a pass goes through.
        patches: of one frame, without class token.
        parameters: number of those of the whole tower.
    """

    width: int
    layers: int
    layers_run: int
    intermediate_size: int
    image_size: int
    patches: int
    parameters: int


@dataclass(frozen=True)
class ModelShape:
    """Decoder, projector and tower of one model.

    Attributes:
        tower: None where its cost is not known (then only the decoder can be counted).
        tower_name: for messages.
        heads, kv_heads, head_dim: of attention.
        own_projections: the decoder's projections that beacons have twins of (`q`, `k`, `v`, `o`, `mlp`).
        projector_parameters: from the tower's width to `hidden_size`.
        tied_embeddings: whether the head shares the embedding's weights.
        window: visual tokens of a full window. tokens_a_frame: visual tokens of one frame of a video.
        max_positions: `max_position_embeddings`. ratio_mix: `beacon_ratio_mix`.
        one_by_one: windows go through the layers one by one (eager attention keeps masks and weights).
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    own_projections: tuple[str, ...]
    projector_parameters: int
    tied_embeddings: bool
    window: int
    tokens_a_frame: int
    max_positions: int
    ratio_mix: str
    one_by_one: bool
    tower: TowerShape | None
    tower_name: str | None

    @property
    def position_elements(self) -> int:
        """Numbers that one cached position takes over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def linear_parameters(self) -> int:
        """Weights that multiply every row of the decoder: no biases, embeddings or head."""
        attention = 2 * self.hidden_size * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def decoder_parameters(self) -> int:
        """Parameters of decoder, beacons and projector."""
        rows = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        sizes = {name: (self.hidden_size + 1) * number * self.head_dim for name, number in rows.items()}
        sizes["o"] = self.heads * self.head_dim * self.hidden_size
        sizes["mlp"] = 2 * self.hidden_size * self.intermediate_size
        ordinary = sum(sizes.values()) + self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        layer = ordinary + sum(sizes[name] for name in self.own_projections)
        words = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.layers * layer + words + 2 * self.hidden_size + self.projector_parameters
