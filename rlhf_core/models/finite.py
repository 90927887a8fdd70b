"""Whether weights are numbers. A few greedy answers do not touch every row of an embedding; this does."""

from __future__ import annotations

import torch

from rlhf_core.errors import ModelError
from rlhf_core.models.load import LoadedPolicy


@torch.inference_mode()
def require_finite(policy: LoadedPolicy) -> None:
    """Read every weight once. Raises ModelError naming the first that holds a NaN or an infinity."""
    for name, weights in policy.model.state_dict().items():
        if weights.is_floating_point() and weights.numel():
            # No mask as large as the weights: a NaN comes through both extremes.
            least, most = torch.aminmax(weights)
            if not (least.isfinite() and most.isfinite()):
                raise ModelError(f"{policy.checkpoint_id or 'the policy'} holds a number in {name} that is not finite")
