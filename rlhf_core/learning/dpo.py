"""Direct preference optimisation: a policy learns from choices and ties at once, without a reward model between.

Contract: the trainee's weights are trained in place; its reference is read once, before the first step, and never
again. Both sides of a pair share a forward pass. Source: Rafailov et al. 2305.18290; ties by Rao and
Kupper's model with a threshold that is learned along; slips as in cDPO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import DPOSettings, OnlineDPOSettings
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.answer_logprobs import answer_logprobs, microbatches
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.policy_losses import dpo_losses, hits, neutral_tie_threshold, sequence_sums
from rlhf_core.learning.policy_steps import PolicySteps, alone, require_weights, run_steps, shuffled_minibatches
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import PreferencePair, TokenIds

SUMS = ("loss", "chosen", "rejected", "hits", "choices", "ties", "chosen_logprob", "rejected_logprob", "tokens")
"""What a minibatch adds up over its pairs, and over processes."""


@dataclass(frozen=True, slots=True)
class ReferredPair:
    """A comparison, with the logprobs of both sides under the reference."""

    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds
    ref_chosen: float
    ref_rejected: float
    tie: bool = False
    """Neither was chosen."""
    margin: float = 0.0
    weight: float = 1.0

    @property
    def padded_length(self) -> int:
        """Tokens of both sides, the shorter one padded."""
        return 2 * (len(self.prompt) + max(len(self.chosen), len(self.rejected)))


class TieThreshold(nn.Module):
    """eta = softplus(u): how near two responses must be to tie. Learned, so that ties set no scale of their own."""

    def __init__(self, tie_share: float) -> None:
        """Starts where a policy that is its own reference sees ties in `tie_share` of comparisons, in (0, 1)."""
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(math.log(math.expm1(neutral_tie_threshold(tie_share)))))

    def forward(self) -> Tensor:
        return functional.softplus(self.raw)


def train_dpo(
    trainee: Trainable,
    pairs: Sequence[PreferencePair],
    settings: DPOSettings,
    seed: int,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> list[Metrics]:
    """Train on `pairs` and return the metrics of every step.

    `weights` say how much each pair counts, relative to the others. The same arguments give the same weights and
    metrics. Raises TrainingError when no pair is a choice, or a number is not finite.
    """
    hooks, devices = hooks or Hooks(), devices or alone(trainee)
    _check(pairs, weights)
    hooks.progress("reference", 0.0)
    with trainee.reference() as model:
        answers = [(pair.prompt_token_ids, side) for pair in pairs for side in _sides(pair)]
        ref_logprobs = answer_logprobs(model, answers, settings, devices).view(-1, 2).tolist()
    scale = len(pairs) / sum(weights) if weights else 1.0
    referred = [
        ReferredPair(pair.prompt_token_ids, *_sides(pair), chosen, rejected, pair.tie, pair.margin, scale * weight)
        for pair, (chosen, rejected), weight in zip(pairs, ref_logprobs, weights or [1.0] * len(pairs), strict=True)
    ]
    tie_share = sum(pair.weight for pair in referred if pair.tie) / len(referred)
    ties = TieThreshold(tie_share).to(trainee.model.device) if tie_share else None
    learner = PairLearner(settings, PolicySteps(trainee, settings, devices, ties, settings.tie_learning_rate))
    minibatches = shuffled_minibatches(referred, settings.minibatch_size, settings.epochs, seed)
    return run_steps(learner.steps, minibatches, settings.warmup_share, hooks, learner.improve)


@dataclass(slots=True, eq=False)
class PairLearner:
    """Steps of a policy along the DPO loss of referred pairs."""

    settings: DPOSettings | OnlineDPOSettings
    steps: PolicySteps

    def improve(self, minibatch: Sequence[ReferredPair], share: float) -> Metrics:
        """One optimizer step on `minibatch` at `share` of the peak learning rate. The loss is the mean over pairs."""
        devices = self.steps.devices
        totals = dict.fromkeys(SUMS, 0.0)
        lengths = [pair.padded_length for pair in minibatch]
        for group in microbatches(lengths, range(len(minibatch)), self.settings.microbatch_tokens, devices):
            sums = self._accumulate([minibatch[at] for at in group], len(minibatch))
            totals = {name: totals[name] + sums[name] for name in SUMS}
        eta = self._tie_threshold()
        metrics = pair_metrics(devices.sum_numbers(totals), float(eta.detach()), self.settings.kl_coef)
        return metrics | self.steps.step(share, metrics)

    def _accumulate(self, pairs: Sequence[ReferredPair], total: int) -> dict[str, float]:
        """Add the gradient of one microbatch of a minibatch of `total` pairs. Returns its part of SUMS."""
        device = self.steps.trainee.model.device
        answers = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
        batch = TokenBatch.of(answers, device)
        with self.steps.devices.autocast():
            now = analyse(self.steps.trainee.model, batch, temperature=self.settings.temperature)
        chosen, rejected = sequence_sums(now.logprobs.float(), batch.response_mask).chunk(2)
        tied = torch.tensor([pair.tie for pair in pairs], device=device)
        chosen_ratios = chosen - torch.tensor([pair.ref_chosen for pair in pairs], device=device)
        rejected_ratios = rejected - torch.tensor([pair.ref_rejected for pair in pairs], device=device)
        losses = dpo_losses(
            chosen_ratios,
            rejected_ratios,
            tied,
            self._tie_threshold(),
            kl_coef=self.settings.kl_coef,
            label_smoothing=self.settings.label_smoothing,
            margins=torch.tensor([pair.margin for pair in pairs], device=device),
        )
        loss = (losses * torch.tensor([pair.weight for pair in pairs], device=device)).sum() / total
        torch.autograd.backward(loss)
        choice = ~tied
        lead = chosen_ratios - rejected_ratios
        sums = {
            "loss": loss,
            "chosen": chosen_ratios[choice].sum(),
            "rejected": rejected_ratios[choice].sum(),
            "hits": hits(lead[choice]),
            "choices": choice.sum(),
            "ties": tied.sum(),
            "chosen_logprob": chosen[choice].sum(),
            "rejected_logprob": rejected[choice].sum(),
            "tokens": batch.response_mask.sum(),
        }
        return {name: float(number.detach()) for name, number in sums.items()}

    def _tie_threshold(self) -> Tensor:
        """eta, a scalar; 0 where nothing ties."""
        beside = self.steps.beside
        return torch.zeros((), device=self.steps.trainee.model.device) if beside is None else beside()


def pair_metrics(totals: dict[str, float], eta: float, kl_coef: float) -> Metrics:
    """What one minibatch measured before its step. Rewards are those that the policy implies: kl_coef times the log
    ratio to the reference; averages are over choices, ties aside."""
    choices = max(1.0, totals["choices"])
    chosen, rejected = kl_coef * totals["chosen"] / choices, kl_coef * totals["rejected"] / choices
    return {
        "policy/loss": totals["loss"],
        "preference/chosen_reward": chosen,
        "preference/rejected_reward": rejected,
        "preference/margin": chosen - rejected,
        "preference/accuracy": totals["hits"] / choices,
        "preference/tie_threshold": eta,
        "preference/choices": totals["choices"],
        "preference/ties": totals["ties"],
        "policy/chosen_logprob": totals["chosen_logprob"] / choices,
        "policy/rejected_logprob": totals["rejected_logprob"] / choices,
        "tokens": totals["tokens"],
    }


def mean_metrics(minibatches: Sequence[Metrics]) -> Metrics:
    """Averages over the minibatches of an update, and their number; nothing but zero steps when there were none."""
    names = minibatches[0] if minibatches else ()
    means = {name: sum(each[name] for each in minibatches) / len(minibatches) for name in names}
    return means | {"policy/steps": float(len(minibatches))}


def _sides(pair: PreferencePair) -> tuple[TokenIds, TokenIds]:
    return pair.chosen_token_ids, pair.rejected_token_ids


def _check(pairs: Sequence[PreferencePair], weights: Sequence[float] | None) -> None:
    if all(pair.tie for pair in pairs):
        raise TrainingError(f"DPO needs choices to learn from, but has {len(pairs)} pairs, all of them ties")
    for pair in pairs:
        if not (pair.prompt_token_ids and pair.chosen_token_ids and pair.rejected_token_ids):
            raise TrainingError(f"the pair {pair.event_id} has an empty prompt or answer")
    require_weights(weights, len(pairs))
