"""The loop in which a reward model's trunk learns: batches, AdamW, one line of metrics for each step.

The loss of a batch is [ sum_pairs w L_pair + w_th sum_thumbs w L_thumb ] / (its size x the fit's mean weight)
+ c mean (s_left + s_right)^2 + priors / number of judgements (design notes, 2.2(c)).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_core.errors import TrainingError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.preference_losses import centering_losses
from rlhf_core.learning.reward.batches import VoteBatch, VoteData, plan_batches, share_prompts
from rlhf_core.learning.reward.length import credits_of
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.votes import Labels, RaterEffects, Scalars, tie_start, vote_losses
from rlhf_core.learning.training_state import capture, restore
from rlhf_core.models.heads import RewardModel


def fit_trunk(
    model: RewardModel,
    effects: RaterEffects,
    data: VoteData,
    settings: RewardSettings,
    seed: int,
    hooks: Hooks,
    devices: Devices,
) -> Metrics:
    """Train in place and return the last steps' mean loss and their number. Dropout stays off, as when scoring.

    Raises TrainingError when a loss or a gradient is not finite.
    """
    scalars = model_scalars(model, effects, data.labels)
    shuffle = random.Random(f"reward model {seed}")
    batches = plan_batches(data, settings.batch_size, settings.epochs, shuffle)
    optimizer, peaks = _optimizer(model, scalars, data.labels, settings)
    modules = {"model": model, "raters": effects}
    shared, typical = share_prompts(model, data), mean_weight(data.labels, settings.thumbs_weight)
    done = 0
    if hooks.resume is not None:
        restore(hooks.resume, modules, optimizer, randoms={"shuffle": shuffle})
        done = hooks.resume.step
    losses: list[float] = hooks.resume.numbers.get("losses", []) if hooks.resume is not None else []
    for step, indices in enumerate(itertools.islice(batches, done, None), start=done + 1):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step - 1, len(batches), settings.warmup_share)
        metrics = _step(
            model, scalars, data, indices, settings, optimizer, devices, shared_prompts=shared, typical=typical
        )
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            said = f"loss {metrics['loss']}, gradient norm {metrics['grad_norm']}"
            raise TrainingError(f"reward model, step {step}: {said}")
        losses = [*losses, metrics["loss"]][-10:]
        hooks.log({"step": float(step), **metrics, "learning_rate": optimizer.param_groups[0]["lr"]})
        hooks.progress("reward model", step / len(batches))
        if hooks.keeps(step) and hooks.keep is not None:
            hooks.keep(capture(step, modules, optimizer, randoms={"shuffle": shuffle}, numbers={"losses": losses}))
    return {"steps": float(len(batches)), "loss": sum(losses) / len(losses) if losses else 0.0}


def model_scalars(model: RewardModel, effects: RaterEffects, labels: Labels) -> Scalars:
    """The model's own scalars, with the priors that these labels give them."""
    return Scalars(model.log_alpha, model.threshold, model.tie_u, model.side_bias, effects, tie_start(labels))


def preference_loss(
    model: RewardModel,
    scalars: Scalars,
    batch: VoteBatch,
    whole: Labels,
    settings: RewardSettings,
    *,
    judgements: int,
    devices: Devices,
    typical: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """This process's part of a batch's loss, a scalar, and of its metrics. `whole` are the labels of the whole batch.

    `typical` is the mean weight of a judgement of the fit, and `judgements` of the fit share one prior. Parts of all
    processes sum to the loss of one process with the whole batch.
    """
    with devices.autocast():
        hidden = model.hidden(batch.answers)
    scores = model.score_features(model.read(hidden, batch.answers))
    labels = batch.labels.to(scores)
    rated, paired = scores[: len(labels.up)], scores[len(labels.up) :].view(-1, 2)
    left, right = paired[:, 0], paired[:, 1]
    smoothing = 0.0 if settings.rater_model else settings.label_smoothing
    thumbs, choices = vote_losses(rated, left, right, labels, scalars, smoothing)
    # Doubted and aged votes weigh little in any batch: divided by its own weights alone, one would count in full.
    size = len(whole.outcomes) + settings.thumbs_weight * len(whole.up)
    weight = max(size * typical, 1e-6)
    loss = (choices.sum() + settings.thumbs_weight * thumbs.sum()) / weight
    loss = loss + scalars.penalty() / judgements / devices.count
    if len(whole.outcomes):
        loss = loss + settings.centering * centering_losses(left, right).sum() / len(whole.outcomes)
    decisive = labels.decisive
    hits = credits_of(left.detach(), right.detach(), labels.outcomes)[decisive]
    return loss, {"loss": float(loss.detach()), "hits": float(hits.sum()), "choices": float(decisive.sum())}


def mean_weight(labels: Labels, thumbs_weight: float) -> float:
    """What a judgement weighs on average, where all that are believed and new weigh 1."""
    size = len(labels.outcomes) + thumbs_weight * len(labels.up)
    return labels.total(thumbs_weight) / size if size else 1.0


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate: up over the warmup, then down to 0 in a line."""
    warmup = max(1.0, warmup_share * steps)
    return min((step + 1) / warmup, (steps - step) / max(1.0, steps - warmup + 1))


def _step(
    model: RewardModel,
    scalars: Scalars,
    data: VoteData,
    indices: Sequence[int],
    settings: RewardSettings,
    optimizer: torch.optim.Optimizer,
    devices: Devices,
    *,
    shared_prompts: bool,
    typical: float,
) -> Metrics:
    """One optimizer step over all processes' parts of a batch."""
    optimizer.zero_grad(set_to_none=True)
    mine = devices.share(indices)
    if mine:
        batch = data.batch(mine, model.device, shared_prompts=shared_prompts)
        whole = data.labels_of(indices)
        loss, metrics = preference_loss(
            model,
            scalars,
            batch,
            whole,
            settings,
            judgements=len(data),
            devices=devices,
            typical=typical,
        )
    else:  # of a last batch with fewer judgements than processes, the priors alone
        loss = scalars.penalty() / len(data) / devices.count
        metrics = {"loss": float(loss.detach()), "hits": 0.0, "choices": 0.0}
    if loss.requires_grad:
        loss.backward()
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    devices.sum_gradients(trained)
    norm = float(nn.utils.clip_grad_norm_(trained, settings.clip_norm))
    summed = devices.sum_numbers(metrics)
    if math.isfinite(norm):
        optimizer.step()
    measured = {"loss": summed["loss"], "grad_norm": norm, **_readings(scalars)}
    return measured | ({"accuracy": summed["hits"] / summed["choices"]} if summed["choices"] else {})


def _readings(scalars: Scalars) -> Metrics:
    named = {"alpha": scalars.log_alpha.exp(), "eta": scalars.eta, "side_bias": scalars.side_bias}
    return {name: float(value.detach()) for name, value in named.items()}


def _optimizer(
    model: RewardModel, scalars: Scalars, labels: Labels, settings: RewardSettings
) -> tuple[torch.optim.AdamW, tuple[float, float]]:
    """AdamW over what learns of the trunk, and over head and scalars; and the peak learning rate of each group.

    Scalars that these labels cannot teach stay where they are.
    """
    learning = scalars.leaves(labels)
    for each in (model.log_alpha, model.threshold, model.tie_u, model.side_bias):
        each.requires_grad_(any(each is one for one in learning))
    groups: list[dict[str, Any]] = [
        {
            "params": [each for each in model.trunk.parameters() if each.requires_grad],
            "weight_decay": settings.weight_decay,
        },
        {"params": [*model.head.parameters(), *learning], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True), (
        settings.learning_rate,
        settings.head_learning_rate,
    )
