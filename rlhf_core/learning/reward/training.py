"""Fits a reward model to judgements.

Every fit starts from the supervised policy's trunk and sees all judgements that stand; nothing is carried over from the
last reward model, so a withdrawn judgement leaves no trace. Pairs and thumbs teach one head (design notes, 2.2):

1. On the trunk as it stands, doubt votes by who gave them (`raters.py`), and solve for the head.
2. Let the trunk learn too, for some epochs (`fit.py`).
3. Normalise on reference answers; fit the heads of the axes and of the ensemble on what the trunk now says.

Knows nothing of the store, of splits or of checkpoints: it is given judgements. Calibration needs others, and is
`report.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlhf_core.axes import AXES, LEAST_JUDGEMENTS
from rlhf_core.baselines import fit_baselines
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.reward.axes import AxisReport, Said, fit_axes, not_learned
from rlhf_core.learning.reward.batches import VoteData
from rlhf_core.learning.reward.ensemble import fit_ensemble
from rlhf_core.learning.reward.evaluation import answers_of, evaluate, features, score
from rlhf_core.learning.reward.files import load_reward, save_reward
from rlhf_core.learning.reward.findings import accuracy, measured, rater_records
from rlhf_core.learning.reward.fit import fit_trunk
from rlhf_core.learning.reward.head import Features, HeadSolution, Prepared, prepare, solve_prepared
from rlhf_core.learning.reward.length import ScoredPairs, length_slope
from rlhf_core.learning.reward.raters import (
    RaterMixture,
    believe,
    cross_fitted_mixture,
    draw_folds,
    has_honest_majority,
)
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.votes import Judgement, Labels, RaterEffects, judgements, label, rater_names
from rlhf_core.models.documents import use_documents
from rlhf_core.models.heads import PromptResponse, RewardModel
from rlhf_core.models.inspection import inspect_attention, refuse_chunks, refuse_special_attention
from rlhf_core.models.lora_layers import add_lora, lora_layers
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.records import PreferencePair, RatedResponse, Remark

__all__ = [
    "Judgement",
    "PromptResponse",
    "RewardSettings",
    "TrainedReward",
    "evaluate",
    "load_reward",
    "load_trunk",
    "save_reward",
    "score",
    "train_reward_model",
]

MEASURED = 512
"""Judgements that suffice to fix the unit of scores, where no further head is fitted to all of them."""
LEAST_SPREAD = 1e-6
"""A standard deviation of scores below this is no preference at all."""


@dataclass(frozen=True, eq=False)
class TrainedReward:
    """A fitted, normalised reward model, and what its fit measured on its own training judgements."""

    model: RewardModel
    metrics: Metrics
    axes: list[AxisReport] = field(default_factory=list)


def train_reward_model(
    trunk: Path | PreTrainedModel,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    settings: RewardSettings,
    seed: int,
    hooks: Hooks | None = None,
    *,
    devices: Devices | None = None,
    reference_answers: Sequence[PromptResponse] = (),
    remarks: Sequence[Remark] = (),
    lora: LoraSettings | None = None,
) -> TrainedReward:
    """Fit a trunk to judgements; the same seed and threads give the same weights.

    `trunk` is the directory of a policy, or a policy's trunk, which is changed in place. With `lora` its weights stay
    and low-rank terms learn, which are merged in at the end. Scores are normalised to mean 0 and standard deviation 1
    on `reference_answers`, samples of the supervised policy; without them on the judged answers. `remarks` teach the
    heads of the axes, and nothing else. Raises TrainingError when the judgements cannot tell good from bad or the loss
    is not finite, ModelError when there is no model.
    """
    hooks, devices = hooks or Hooks(), devices or Devices(device="cpu")
    check_something_to_learn(ratings, pairs)
    trunk = load_trunk(trunk) if isinstance(trunk, Path) else trunk
    if lora is not None and settings.epochs:
        add_lora(trunk, lora, seed)
    model = RewardModel(trunk, torch.Generator().manual_seed(seed), ensemble=settings.ensemble).to(devices.device)
    model.baselines = fit_baselines(ratings, pairs)
    model.fit_settings = {name: float(value) for name, value in msgspec.to_builtins(settings).items()} | {"seed": seed}
    names = rater_names(ratings, pairs)
    labels = label(ratings, pairs, settings.half_life_days)
    read = _read(model, ratings, pairs, devices)
    prepared = prepare(read, settings.ridge)
    mixture = _doubt(prepared, labels, ratings, pairs, len(names), settings, seed) if settings.rater_model else None
    if mixture is not None:
        labels = believe(labels, *mixture.responsibilities[:, :2].split([len(ratings), len(pairs)]))
    effects = RaterEffects(labels, len(names))
    _install_head(model, effects, _solve(prepared, labels, settings, effects))
    votes = VoteData(ratings, pairs, labels)
    fitted = fit_trunk(model, effects.to(devices.device), votes, settings, seed, hooks, devices)
    merge_lora(model.trunk)
    said = Said(ratings, pairs, labels, remarks, settings.half_life_days)
    kept = _kept(votes, said, settings) if settings.epochs else votes
    if settings.epochs:
        read = _read(model, kept.ratings, kept.pairs, devices)
    spoken = remarks if len(kept) == len(votes) else ()
    remarked = _shared_features(model, [(each.prompt_token_ids, each.token_ids) for each in spoken], devices)
    axes = _finish(model, read, remarked, kept, said, reference_answers, settings, seed)
    fitted |= measured(model, ratings, pairs, mixture) | {"train_accuracy": accuracy(model, read, kept.labels)}
    model.raters = rater_records(names, ratings, pairs, effects, mixture)
    return TrainedReward(model.eval(), fitted, axes)


def load_trunk(directory: Path, max_context: int | None = None) -> PreTrainedModel:
    """The policy in `directory` without its LM head, float32, dropout off; `max_context` can lower its own limit.

    Raises ModelError.
    """
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
    refuse_special_attention(directory, policy.config)
    limit = getattr(policy.config.get_text_config(), "max_position_embeddings", None) or max_context
    if limit is None:
        raise ModelError(f"{directory}/config.json has no max_position_embeddings: set a context length")
    context = min(int(limit), max_context or int(limit))
    refuse_chunks(directory, policy.config, context)
    use_documents(policy)
    inspect_attention(directory, policy, context)
    trunk: PreTrainedModel = policy.base_model
    return trunk.eval()


def check_something_to_learn(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> None:
    """Raises TrainingError when nothing tells a good answer from a bad one."""
    values = {each.value for each in ratings}
    decisive = [each for each in pairs if not each.tie]
    if not decisive and len(values) < 2:
        said = f"all {len(ratings)} thumbs are {values.pop()}" if values else "there are no judgements"
        said = f"all {len(pairs)} pairs are ties" if pairs and not values else said
        raise TrainingError(f"a reward model needs good and bad answers to learn from, but {said}")


@torch.no_grad()
def merge_lora(trunk: PreTrainedModel) -> None:
    """Put LoRA terms into the weights that they change, and take the adapter off; nothing where there is none."""
    for name, layer in lora_layers(trunk).items():
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(trunk.get_submodule(parent), last, layer.get_base_layer())
    trunk.requires_grad_(True)


def _read(
    model: RewardModel, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], devices: Devices
) -> Features:
    """Features of all judged answers."""
    read = _shared_features(model, answers_of(ratings, pairs), devices)
    return Features(*read.split([len(ratings), len(pairs), len(pairs)]))


def _shared_features(model: RewardModel, answers: Sequence[PromptResponse], devices: Devices) -> Tensor:
    """[N, W] float64; the processes share the work and all get everything."""
    with devices.autocast():
        mine = features(model, devices.share(answers))
    # Rows are copied, because a row that is sent takes the whole table that it is a view of along.
    rows = devices.gather([row.clone() for row in mine.double()], len(answers))
    return torch.stack(rows) if rows else mine.double()


def _doubt(
    prepared: Prepared,
    labels: Labels,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    raters: int,
    settings: RewardSettings,
    seed: int,
) -> RaterMixture | None:
    """Whom to believe, by scores of the trunk that has learned nothing yet.

    None, and everyone is believed, with too few prompts to hold out, or where no honest majority was found: scores that
    cannot predict any vote cannot tell who lies.
    """
    folds = draw_folds([each.prompt_key for each in judgements(ratings, pairs)], seed)
    if len(set(folds.tolist())) < 2:
        return None
    mixture = cross_fitted_mixture(prepared, labels, folds, raters, thumbs_weight=settings.thumbs_weight)
    return mixture if has_honest_majority(mixture) else None


def _solve(prepared: Prepared, labels: Labels, settings: RewardSettings, effects: RaterEffects) -> HeadSolution:
    solved, scalars = solve_prepared(
        prepared,
        labels,
        label_smoothing=0.0 if settings.rater_model else settings.label_smoothing,
        thumbs_weight=settings.thumbs_weight,
        effects=effects,
    )
    return HeadSolution(*prepared.head(solved), scalars)


@torch.no_grad()
def _install_head(model: RewardModel, effects: RaterEffects, solution: HeadSolution) -> None:
    model.head.weight.copy_(solution.weight[None])
    model.head.bias.fill_(float(solution.bias))
    solved = solution.scalars
    for ours, theirs in zip(
        (model.log_alpha, model.threshold, model.tie_u, model.side_bias),
        (solved.log_alpha, solved.threshold, solved.tie_u, solved.side_bias),
        strict=True,
    ):
        ours.copy_(theirs)
    effects.raw.requires_grad_(effects.raw.numel() > 0)


@torch.no_grad()
def _finish(
    model: RewardModel,
    read: Features,
    remarked: Tensor,
    votes: VoteData,
    said: Said,
    reference_answers: Sequence[PromptResponse],
    settings: RewardSettings,
    seed: int,
) -> list[AxisReport]:
    """Fix the unit of scores, and fit all further heads on what the trunk says now of `votes`: of all that was said or,
    where no further head is fitted, of a sample of it. `remarked` are the features of the remarks."""
    ratings, pairs, labels = votes.ratings, votes.pairs, votes.labels
    reference = features(model, reference_answers).double() if reference_answers else torch.cat(read)
    _normalise(model, reference)
    left, right = (model.score_features(part.to(model.head.weight)).cpu() for part in read[1:])
    lefts, rights = torch.tensor([len(response) for _, response in answers_of([], pairs)]).view(2, -1)
    model.length_slope.fill_(length_slope(ScoredPairs(left, right, lefts, rights, labels.outcomes)))
    answers = reference_answers or answers_of(ratings, pairs)
    model.log_length_mean.fill_(sum(math.log(len(response)) for _, response in answers) / len(answers))
    with torch.enable_grad():
        if settings.ensemble:
            prepared, weight = prepare(read, settings.ridge), settings.thumbs_weight
            fit_ensemble(model, prepared, ratings, pairs, labels, reference, thumbs_weight=weight, seed=seed)
        if len(votes) < len(said.ratings) + len(said.pairs):
            return [not_learned(axis, said) for axis in AXES]
        read = read._replace(rated=torch.cat([read.rated, remarked]))
        return fit_axes(model, read, said, reference, ridge=settings.ridge)


def _kept(votes: VoteData, said: Said, settings: RewardSettings) -> VoteData:
    """The judgements that are read once more after the fit: all where heads are fitted to them, else a sample."""
    spoken = any(said.evidence(axis) >= LEAST_JUDGEMENTS for axis in AXES)
    step = -(-len(votes) // MEASURED)
    if settings.ensemble or spoken or step == 1:
        return votes
    thumbs, pairs = torch.arange(0, len(votes.ratings), step), torch.arange(0, len(votes.pairs), step)
    return VoteData(votes.ratings[::step], votes.pairs[::step], votes.labels.at(thumbs, pairs))


def _normalise(model: RewardModel, reference: Tensor) -> None:
    scores = model.score_features(reference.to(model.head.weight)).double()
    std = float(scores.std(unbiased=False))
    if not (math.isfinite(std) and std > LEAST_SPREAD):
        raise TrainingError(f"the reward model scores {len(scores)} reference answers alike (standard deviation {std})")
    model.normalise(float(scores.mean()), std)
