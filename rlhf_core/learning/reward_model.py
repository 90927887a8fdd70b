"""Fits a reward model to judgements, and keeps it in a directory.

Every fit starts from the supervised policy's trunk and sees all judgements that stand; nothing is carried
over from the last reward model, so a withdrawn judgement leaves no trace. Pairs and thumbs teach one head
(design notes, 2.2): the loss is

    [ sum_pairs L_pair + w sum_thumbs L_thumb ] / sum of weights
        + c mean (s_chosen + s_rejected)^2 + (log alpha)^2 / 2N

Knows nothing of the store, of splits or of checkpoints: it is given judgements, and writes plain files where
it is told.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.baselines import fit_baselines
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.preference_losses import (
    centering_losses,
    log_alpha_penalty,
    pair_losses,
    thumb_losses,
)
from rlhf_core.learning.reward_evaluation import answers_of, evaluate, features, is_up, score
from rlhf_core.learning.reward_files import load_reward, save_reward
from rlhf_core.learning.reward_head import Features, solve_head
from rlhf_core.learning.reward_settings import RewardSettings
from rlhf_core.models.heads import AnswerBatch, PromptResponse, RewardModel
from rlhf_core.records import PreferencePair, RatedResponse

__all__ = [
    "Judgement",
    "Progress",
    "PromptResponse",
    "RewardSettings",
    "TrainedReward",
    "evaluate",
    "load_reward",
    "preference_loss",
    "save_reward",
    "score",
    "train_reward_model",
]

WINDOW_BATCHES = 4
"""Batches are cut from shuffled windows of this many, sorted by length: little padding, random order."""
LEAST_SPREAD = 1e-6
"""A standard deviation of scores below this is no preference at all."""

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of it that is behind, 0 to 1."""

Judgement = RatedResponse | PreferencePair


@dataclass(frozen=True, eq=False)
class TrainedReward:
    """A fitted, normalised reward model, and what its fit measured on its own training judgements."""

    model: RewardModel
    metrics: dict[str, float]


def train_reward_model(
    trunk_dir: Path,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    settings: RewardSettings,
    seed: int,
    on_progress: Progress | None = None,
    *,
    reference_answers: Sequence[PromptResponse] = (),
    device: str = "cpu",
) -> TrainedReward:
    """Fit a copy of the policy in `trunk_dir` to judgements; the same seed and threads give the same weights.

    Scores are normalised to mean 0 and standard deviation 1 on `reference_answers`, samples of the supervised
    policy; without them on the judged answers. Raises TrainingError when the judgements cannot tell good from
    bad or the loss is not finite, ModelError when there is no model in `trunk_dir`.
    """
    _check_something_to_learn(ratings, pairs)
    model = RewardModel(load_trunk(trunk_dir), torch.Generator().manual_seed(seed)).to(device)
    model.baselines = fit_baselines(ratings, pairs)
    model.fit_settings = {**msgspec.to_builtins(settings), "seed": seed}
    _solve_head(model, ratings, pairs, settings)
    losses = _fit(model, [*ratings, *pairs], settings, random.Random(f"reward model {seed}"), on_progress)
    _normalise(model, reference_answers or answers_of(ratings, pairs))
    metrics = {
        "steps": float(len(losses)),
        "loss": sum(losses[-10:]) / len(losses[-10:]) if losses else 0.0,
        "alpha": float(model.log_alpha.detach().exp()),
        "threshold": float(model.threshold.detach()),
        "n_ratings": float(len(ratings)),
        "n_pairs": float(len(pairs)),
        "train_accuracy": evaluate(model, ratings, pairs).accuracy,
    }
    return TrainedReward(model, metrics)


def load_trunk(directory: Path) -> PreTrainedModel:
    """The policy in `directory` without its LM head, float32, dropout off. Raises ModelError."""
    try:
        policy = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory} holds no model that a reward model can start from: {error}") from None
    trunk: PreTrainedModel = policy.base_model
    return trunk.eval()


@torch.no_grad()
def _solve_head(
    model: RewardModel,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    settings: RewardSettings,
) -> None:
    rated, chosen, rejected = features(model, answers_of(ratings, pairs)).split([len(ratings), len(pairs), len(pairs)])
    with torch.enable_grad():
        solution = solve_head(
            Features(rated, is_up(ratings), chosen, rejected),
            ridge=settings.ridge,
            label_smoothing=settings.label_smoothing,
            thumbs_weight=settings.thumbs_weight,
        )
    model.head.weight.copy_(solution.weight[None])
    model.head.bias.fill_(float(solution.bias))
    model.log_alpha.copy_(solution.log_alpha)
    model.threshold.copy_(solution.threshold)


def _fit(
    model: RewardModel,
    judgements: Sequence[Judgement],
    settings: RewardSettings,
    shuffle: random.Random,
    on_progress: Progress | None,
) -> list[float]:
    """Train in place; returns the loss of each step. Dropout stays off, as when the model scores."""
    optimizer, peaks = _optimizer(model, settings)
    batches = list(_batches(judgements, settings, shuffle))
    losses = []
    for step, batch in enumerate(batches):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * _schedule(step, len(batches), settings.warmup_share)
        loss = preference_loss(model, batch, settings, total=len(judgements))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm))
        if not (math.isfinite(loss.item()) and math.isfinite(norm)):
            raise TrainingError(f"reward model, step {step + 1}: loss {loss.item()}, gradient norm {norm}")
        optimizer.step()
        losses.append(loss.item())
        if on_progress is not None:
            on_progress("reward model", (step + 1) / len(batches))
    return losses


def preference_loss(
    model: RewardModel, judgements: Sequence[Judgement], settings: RewardSettings, *, total: int
) -> Tensor:
    """Loss of one batch, a scalar; `total` judgements share one prior of alpha. One forward pass over all
    answers.
    """
    ratings = [each for each in judgements if isinstance(each, RatedResponse)]
    pairs = [each for each in judgements if isinstance(each, PreferencePair)]
    scores = model(AnswerBatch.of(answers_of(ratings, pairs), model.device))
    rated, chosen, rejected = scores.split([len(ratings), len(pairs), len(pairs)])
    up = is_up(ratings).to(model.device)
    thumbs = thumb_losses(rated, up, model.log_alpha, model.threshold, settings.label_smoothing).sum()
    choices = pair_losses(chosen, rejected, settings.label_smoothing).sum()
    weight = len(pairs) + settings.thumbs_weight * len(ratings)
    loss: Tensor = (choices + settings.thumbs_weight * thumbs) / weight + log_alpha_penalty(model.log_alpha) / total
    if pairs:
        loss = loss + settings.centering * centering_losses(chosen, rejected).mean()
    return loss


def _batches(
    judgements: Sequence[Judgement], settings: RewardSettings, shuffle: random.Random
) -> Iterator[Sequence[Judgement]]:
    """The batches of all epochs, in order."""
    for _ in range(settings.epochs):
        epoch = [
            batch
            for window in _cut(shuffle.sample(judgements, len(judgements)), WINDOW_BATCHES * settings.batch_size)
            for batch in _cut(sorted(window, key=_length), settings.batch_size)
        ]
        shuffle.shuffle(epoch)
        yield from epoch


def _cut(judgements: Sequence[Judgement], size: int) -> Iterator[Sequence[Judgement]]:
    return (judgements[start : start + size] for start in range(0, len(judgements), size))


def _length(judgement: Judgement) -> int:
    if isinstance(judgement, RatedResponse):
        response = len(judgement.token_ids)
    else:
        response = max(len(judgement.chosen_token_ids), len(judgement.rejected_token_ids))
    return len(judgement.prompt_token_ids) + response


def _optimizer(model: RewardModel, settings: RewardSettings) -> tuple[torch.optim.AdamW, tuple[float, float]]:
    """AdamW over trunk and scalars, and the peak learning rate of each group."""
    scalars = [*model.head.parameters(), model.log_alpha, model.threshold]
    groups = [
        {"params": list(model.trunk.parameters()), "weight_decay": settings.weight_decay},
        {"params": scalars, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95)), (settings.learning_rate, settings.head_learning_rate)


def _schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate: up over the warmup, then down to 0 in a line."""
    warmup = max(1.0, warmup_share * steps)
    return min((step + 1) / warmup, (steps - step) / max(1.0, steps - warmup + 1))


def _normalise(model: RewardModel, answers: Sequence[PromptResponse]) -> None:
    scores = score(model, answers).double()
    std = float(scores.std(unbiased=False))
    if not (math.isfinite(std) and std > LEAST_SPREAD):
        raise TrainingError(f"the reward model scores {len(scores)} reference answers alike (standard deviation {std})")
    model.normalise(float(scores.mean()), std)


def _check_something_to_learn(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> None:
    values = {each.value for each in ratings}
    if not pairs and len(values) < 2:
        said = f"all {len(ratings)} thumbs are {values.pop()}" if values else "there are no judgements"
        raise TrainingError(f"a reward model needs good and bad answers to learn from, but {said}")
