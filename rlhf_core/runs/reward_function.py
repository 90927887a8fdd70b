"""`--reward`: a reward checkpoint, or any Python function over texts, as the score function that a policy climbs.

A function is `module:function`, found as Python finds modules, the working directory first. It is called with a list of
prompts (as the chat template writes them) and a list of responses (without the end token), and returns one finite
number for each. It may be a rule, a classifier, or a client of a judge elsewhere. The code is the caller's own: nothing
from a checkpoint is ever run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_core.errors import SettingsError, TrainingError
from rlhf_core.learning.ppo_scores import AxisScores, ScoreFunction
from rlhf_core.learning.reward.evaluation import score, score_axes
from rlhf_core.learning.reward.files import RECORD, load_reward
from rlhf_core.records import TokenIds
from rlhf_core.runs.vocabulary import Reads

TextReward = Callable[[list[str], list[str]], Sequence[float]]


class RewardScores(NamedTuple):
    """What `--reward` gives: one score per response, and where axes were asked for, one on each."""

    score: ScoreFunction
    axes: AxisScores | None = None


def load_score_function(name: str, policy: Reads, device: torch.device | str = "cpu") -> ScoreFunction:
    """The scores alone of `load_reward_scores`."""
    return load_reward_scores(name, policy, device).score


def load_reward_scores(
    name: str, policy: Reads, device: torch.device | str = "cpu", *, axes: Sequence[str] = ()
) -> RewardScores:
    """What `--reward` names. Raises SettingsError when it names neither kind, or has not learned one of the `axes`.

    A reward checkpoint must have been fitted on the tokens of `policy`'s tokenizer.
    """
    if is_checkpoint(name):
        return _from_checkpoint(Path(name).expanduser(), policy, torch.device(device), axes)
    if ":" not in name:
        raise SettingsError(f"--reward is {name!r}: neither a reward checkpoint (with {RECORD}) nor module:function")
    if axes:
        raise SettingsError(f"--reward {name} has no axes: {axes[0]} is scored by reward checkpoints only")
    return RewardScores(over_texts(load_function(name), policy.tokenizer, name))


def is_checkpoint(name: str) -> bool:
    return (Path(name).expanduser() / RECORD).is_file()


def _from_checkpoint(directory: Path, policy: Reads, device: torch.device, axes: Sequence[str]) -> RewardScores:
    model = load_reward(directory).to(device)
    _refuse_other_tokens(directory, int(model.trunk.config.get_text_config().vocab_size), policy)
    for name in axes:
        if name not in model.learned_axes:
            known = ", ".join(model.learned_axes) or "no axis"
            raise SettingsError(f"--reward {directory} has not learned the axis {name!r}; it knows {known}")

    def scores(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        return score(model, list(zip(prompts, responses, strict=True)))

    def on_axes(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Mapping[str, Tensor]:
        return score_axes(model, list(zip(prompts, responses, strict=True)))

    return RewardScores(scores, on_axes if axes else None)


def _refuse_other_tokens(directory: Path, known: int, policy: Reads) -> None:
    """Scores of token ids that mean other texts would be numbers without a meaning."""
    if known < policy.vocab_size:
        raise SettingsError(f"--reward {directory} knows {known} tokens and the policy has {policy.vocab_size}")
    if not (directory / "tokenizer.json").is_file():
        return
    theirs = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    if theirs.get_vocab() != policy.tokenizer.get_vocab():
        raise SettingsError(f"--reward {directory} was fitted on the tokens of another tokenizer than the policy's")


def load_function(name: str) -> TextReward:
    """The callable that `module:function` names. Raises SettingsError when there is none."""
    module_name, _, path = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"--reward is {name!r}, which cannot be imported: {error}") from None
    if not callable(found):
        raise SettingsError(f"--reward is {name!r}, which is {type(found).__name__} and cannot be called")
    function: TextReward = found
    return function


def over_texts(function: TextReward, tokenizer: PreTrainedTokenizerBase, name: str) -> ScoreFunction:
    """`function` as a score function over token ids. What it returns is checked at every call: TrainingError."""

    def scores(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        asked = tokenizer.batch_decode([list(each) for each in prompts])
        said = tokenizer.batch_decode([list(each) for each in responses], skip_special_tokens=True)
        return _checked(function(list(asked), list(said)), len(responses), name)

    return scores


def _checked(numbers: object, wanted: int, name: str) -> Tensor:
    try:
        scores = torch.as_tensor(numbers, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{name} returned {type(numbers).__name__}, not numbers: {error}") from None
    if scores.shape != (wanted,):
        raise TrainingError(f"{name} got {wanted} responses and returned scores of shape {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise TrainingError(f"{name} returned {int((~scores.isfinite()).sum())} scores that are not finite")
    return scores
