"""A policy to be trained: which weights learn, what it is measured against, how it samples, and how it is saved.

Full weights learn beside a frozen copy. With LoRA only the terms learn, and the reference is the same trunk with the
adapter off, so there is no second copy. Samples come from the serving engine over the very weights that learn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_core.errors import TrainingError
from rlhf_core.models.live import LiveForward
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.lora_layers import adapter_off, add_lora, save_lora
from rlhf_core.models.lora_settings import LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig

Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Trainable:
    """Made by `make_trainable`. The policy's own model is changed in place."""

    policy: LoadedPolicy
    """Its `forward` samples from the weights as they are at the last `refresh`."""
    lora: LoraConfig | None
    """None: all weights learn."""
    frozen: PreTrainedModel | None
    """A reference of its own. None: the trunk with the adapter off, or no reference at all."""
    starts_as_reference: bool
    """Whether policy and reference are the same function before anything was learned."""

    @property
    def model(self) -> PreTrainedModel:
        return self.policy.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns; tied weights once."""
        return [each for each in self.model.parameters() if each.requires_grad]

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference policy's model while the context lasts. Raises TrainingError when there is none."""
        if self.frozen is not None:
            yield self.frozen
        elif self.lora is not None:
            with adapter_off(self.model) as model:
                yield model
        else:
            raise TrainingError("this policy was made trainable without a reference to measure it against")

    def refresh(self) -> None:
        """Let the next samples come from the weights as they are now. To be called after they learned."""
        if isinstance(self.policy.forward, LiveForward):
            self.policy.forward.refresh()

    def save(self, directory: Path) -> None:
        """Write what learned into `directory`, which exists: config.json and all weights, or peft's two files."""
        if self.lora is None:
            self.model.save_pretrained(directory)
        else:
            save_lora(self.model, self.lora, directory, base=self.policy.checkpoint_id)


def make_trainable(
    policy: LoadedPolicy,
    lora: LoraSettings | None = None,
    *,
    reference: LoadedPolicy | None = None,
    with_reference: bool = True,
    compute: Compute = "float32",
    seed: int = 0,
) -> Trainable:
    """Prepare a policy loaded in float32 (`load_policy`, `load_full`) to be trained in place.

    `reference` is another model to measure against; without one it is the policy as it stands now, unless
    `with_reference` says that none is wanted. With bfloat16 compute, frozen projections are kept in bfloat16, which is
    what autocast would make of them each time; every forward must then run under `Devices.autocast`. `seed` draws the
    adapter's first weights. Raises ModelError for LoRA targets that the model lacks, TrainingError when the reference
    is the policy's own model.
    """
    model = policy.model
    if reference is not None and reference.model is model:
        raise TrainingError("the policy is trained in place, so the reference must be another copy of the model")
    same = reference is None or _equal(model, reference.model)
    frozen = reference.model if reference is not None else None
    if frozen is None and lora is None and with_reference:
        frozen = copy.deepcopy(model)
    if frozen is not None:
        frozen.eval().requires_grad_(False)
    model.eval().requires_grad_(True)
    config = add_lora(model, lora, seed) if lora is not None else None
    if compute == "bfloat16":
        for each in (model, frozen):
            if each is not None:
                _halve_frozen(each)
    forward = LiveForward(model, max_context=policy.max_context, lora=lora is not None, compute=compute)
    return Trainable(replace(policy, forward=forward), config, frozen, same)


def _equal(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _halve_frozen(model: PreTrainedModel) -> None:
    """Keep frozen projections in bfloat16. Embeddings stay: nothing casts them, so they would change the result."""
    embedded = {id(each.weight) for each in model.modules() if isinstance(each, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.requires_grad and id(module.weight) not in embedded:
            module.weight.data = module.weight.data.to(torch.bfloat16)
