"""Which model made a video memory: its configuration and a digest of sampled weights, cheap at any size."""

from __future__ import annotations

import torch

from videoxl.utils.digest import digest, digest_json

SAMPLES = 8  # elements of each parameter; 860 parameters of a 7B model take some ten milliseconds on a GPU

# Keys that do not change a cache's content: file locations, run settings, and what is recorded elsewhere.
_IGNORED = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "beacon_ratio",
    "beacon_ratio_mix",
    "mm_vision_tower",
    "dtype",
    "torch_dtype",
    "use_cache",
    "quantization_config",
    "_attn_implementation",
    "attn_implementation",
)


@torch.no_grad()
def model_fingerprint(model) -> dict[str, str]:
    """`config` and `weights` (16 hex digits each), `dtype` and `quantization`."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _IGNORED}
    quantization = getattr(model.config, "quantization_config", None)
    method = getattr(quantization, "quant_method", quantization)
    return {
        "config": digest_json(config),
        "weights": digest(_sampled_weights(model).numpy().tobytes()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": getattr(model, "weights_format", None)
        or ("none" if quantization is None else str(getattr(method, "value", method))),
    }


def _sampled_weights(model) -> torch.Tensor:
    rows = []
    for _, parameter in sorted(model.named_parameters()):
        if parameter.device.type == "meta" or parameter.numel() == 0:
            continue
        flat = parameter.detach().reshape(-1)
        sampled = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long()
        rows.append(flat[sampled.to(flat.device)].float())
    by_device: dict[torch.device, list[int]] = {}
    for index, row in enumerate(rows):
        by_device.setdefault(row.device, []).append(index)
    for indices in by_device.values():  # one transfer a device, not one a parameter
        for index, row in zip(indices, torch.stack([rows[i] for i in indices]).cpu()):
            rows[index] = row
    return torch.stack(rows)
