"""A reward model as files: weights in safetensors, everything else in JSON, nothing that runs code on
loading.

The directory is self-contained: the trunk's configuration and weights lie in it, so it outlives the policy
that it started from. `rlhf_core.checkpoints.seal` makes it a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

from rlhf_core.baselines import Baselines
from rlhf_core.errors import ModelError
from rlhf_core.models.heads import RewardModel

WEIGHTS = "model.safetensors"
RECORD = "reward.json"


class RewardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What `reward.json` holds, for people and for loading. The numbers are those of the weights, repeated to
    be read.
    """

    baselines: Baselines
    gain: float
    bias: float
    alpha: float
    threshold: float
    settings: dict[str, float]
    """Of the fit."""
    parameters: int
    eta: float = 0.0
    side_bias: float = 0.0
    temperature: float = 1.0
    length_slope: float = 0.0
    ensemble: int = 0
    """Heads of the ensemble."""
    axes: tuple[str, ...] = ()
    """That were learned."""
    raters: dict[str, dict[str, float]] = {}


def save_reward(model: RewardModel, directory: Path) -> None:
    """Write the model into `directory`, which exists."""
    model.trunk.config.save_pretrained(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    record = RewardRecord(
        baselines=model.baselines,
        gain=float(model.gain),
        bias=float(model.bias),
        alpha=float(model.log_alpha.detach().exp()),
        threshold=float(model.threshold.detach()),
        settings=model.fit_settings,
        parameters=sum(each.numel() for each in model.parameters()),
        eta=float(model.eta.detach()),
        side_bias=float(model.side_bias.detach()),
        temperature=float(model.temperature),
        length_slope=float(model.length_slope),
        ensemble=len(model.ensemble_weight),
        axes=model.learned_axes,
        raters=model.raters,
    )
    (directory / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def load_reward(directory: Path) -> RewardModel:
    """Read what `save_reward` wrote; its scores are the same to the last bit. Raises ModelError naming the
    directory.
    """
    try:
        record = msgspec.json.decode((directory / RECORD).read_bytes(), type=RewardRecord)
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        trunk = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model = RewardModel(trunk, ensemble=record.ensemble)
        tensors = load_file(directory / WEIGHTS)
        model.load_state_dict({**_later_tensors(model, tensors), **tensors})
    except (OSError, ValueError, RuntimeError, SafetensorError, msgspec.MsgspecError) as error:
        raise ModelError(f"{directory} holds no reward model: {error}") from None
    model.baselines = record.baselines
    model.fit_settings = record.settings
    model.raters = record.raters
    return model.eval()


def _later_tensors(model: RewardModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What reward models of the first format lack, as it was then: no ties, sides, axes, ensemble or temperature."""
    if "pair_scale" in tensors or "gain" not in tensors:
        return {}
    neutral = {name: value for name, value in model.state_dict().items() if not name.startswith(("trunk.", "head."))}
    return neutral | {"pair_scale": 1.0 / tensors["gain"]}
