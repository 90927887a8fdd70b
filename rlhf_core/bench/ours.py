"""One training of the bench, in a process of its own so that its peak memory is its own.

Usage: python -m rlhf_core.bench.ours KIND MODEL_DIR COMPUTE UPDATES; prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_core.bench import task
from rlhf_core.learning.conversations import encode_conversations
from rlhf_core.learning.devices import Compute, Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.ppo import ScoreFunction, train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.reward.evaluation import score
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.training import load_trunk, train_reward_model
from rlhf_core.learning.sft import train_supervised
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.models.allocation import keep_freed_memory, peak_of_process
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.records import PreferencePair, TokenIds

LEARNING_RATE = 2e-4
WARM_STEPS = 3


def ppo(directory: Path, devices: Devices, updates: int) -> Metrics:
    """Updates of 64 rollouts, 4 epochs of 4 minibatches, every response at full length, scored by a reward model."""
    trainee = make_trainable(load_policy(directory), compute=devices.compute)
    judge = RewardModel(load_trunk(directory))

    def scores(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        return score(judge, list(zip(prompts, responses, strict=True)))

    settings = equal_work(updates=updates)
    return _rates(_train(trainee, scores, settings, task.PROMPT_TOKENS, devices))


def lora(directory: Path, devices: Devices, updates: int) -> Metrics:
    """One update of the 135 M shape with LoRA, without a reward model: prompt 64, response 64, 2 epochs."""
    trainee = make_trainable(load_policy(directory), LoraSettings(), compute=devices.compute)

    def good_words(_prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        return torch.tensor([sum(one < task.GOOD_WORDS for one in each) / len(each) for each in responses])

    settings = equal_work(updates=updates, epochs=2, max_new_tokens=64, microbatch_tokens=512)
    return _rates(_train(trainee, good_words, settings, 64, devices))


def equal_work(**changes: object) -> PPOSettings:
    """Nothing ends an update or the run early."""
    return msgspec.convert(
        {
            "rollouts": task.ROLLOUTS,
            "epochs": task.EPOCHS,
            "minibatch_size": task.ROLLOUTS // task.MINIBATCHES,
            # Half of a minibatch in one pass. A third of one (512) takes some 30 MB less and a tenth more time.
            "microbatch_tokens": 640,
            "max_new_tokens": task.RESPONSE_TOKENS,
            "learning_rate": 3e-6,
            "target_kl": 1e9,
            "kl_budget": 1e9,
            "least_end_rate": 0.0,
            "least_entropy": 0.0,
            "longest": 1e9,
            "shortest": 0.0,
        }
        | changes,
        PPOSettings,
    )


def _train(
    trainee: Trainable, scores: ScoreFunction, settings: PPOSettings, prompt_tokens: int, devices: Devices
) -> list[Metrics]:
    prompts = task.prompts(task.ROLLOUTS * task.UPDATES, trainee.policy.vocab_size, prompt_tokens)
    seen: list[Metrics] = []
    train_ppo(trainee, scores, prompts, settings, 0, hooks=Hooks(log=seen.append), devices=devices)
    return seen


def _rates(seen: list[Metrics]) -> Metrics:
    """Rollouts per second, the first update left out where there are several; and where the time went."""
    counted = seen[1:] or seen
    stages = {name: sum(one[name] for one in counted) / len(counted) for name in seen[0] if name.startswith("time/")}
    laps = sum(stages[f"time/{name}"] for name in ("rollout", "score", "measure", "improve"))
    return {"rate": task.ROLLOUTS / laps, "seconds": laps} | stages


def reward(directory: Path, devices: Devices, _updates: int) -> Metrics:
    """One epoch over the pairs, then accuracy on held-out ones. The rate is that of the epoch, as of TRL's; what comes
    before it (the head is solved for) and after it (scores are normalised and measured) is in `time/all`."""
    policy = load_policy(directory)
    train, held_out = (
        [_as_pair(row, at, policy.tokenizer) for at, row in enumerate(task.pairs(count, seed))]
        for count, seed in ((task.TRAIN_PAIRS, 1), (task.HELD_OUT_PAIRS, 2))
    )
    settings = RewardSettings(
        epochs=1, batch_size=task.BATCH, learning_rate=LEARNING_RATE, rater_model=False, ensemble=0
    )
    began, ends = time.perf_counter(), list[float]()
    hooks = Hooks(log=lambda _: ends.append(time.perf_counter()))
    trained = train_reward_model(directory, [], train, settings, 0, hooks, devices=devices)
    steps = task.TRAIN_PAIRS // task.BATCH
    seconds = (ends[steps - 1] - ends[WARM_STEPS - 1]) / (steps - WARM_STEPS)
    sides = [
        score(trained.model, [(each.prompt_token_ids, answer(each)) for each in held_out])
        for answer in (lambda pair: pair.chosen_token_ids, lambda pair: pair.rejected_token_ids)
    ]
    accuracy = float((sides[0] > sides[1]).float().mean())
    return {"rate": task.BATCH / seconds, "accuracy": accuracy, "time/all": time.perf_counter() - began}


def _as_pair(row: dict[str, str], at: int, tokenizer: PreTrainedTokenizerBase) -> PreferencePair:
    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    end = (int(tokenizer.eos_token_id),)
    return PreferencePair(
        event_id=f"event-{at}",
        rater=f"rater-{at % 40}",
        comparison_id=f"comparison-{at}",
        policy_version=1,
        prompt_token_ids=ids(row["prompt"]),
        chosen_token_ids=ids(row["chosen"]) + end,
        rejected_token_ids=ids(row["rejected"]) + end,
        chosen_side="left" if at % 2 else "right",
        prompt_key=f"{at:064d}",
    )


def sft(directory: Path, devices: Devices, _updates: int) -> Metrics:
    """One epoch over short demonstrations, the same tokens in a step as TRL's: real tokens per second."""
    policy = load_policy(directory)
    conversations = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        for row in task.demonstrations(task.TRAIN_ROWS)
    ]
    examples = encode_conversations(policy.tokenizer, conversations)
    settings = SftSettings(learning_rate=LEARNING_RATE, rows_per_minibatch=2, rows_per_microbatch=2)
    seen: list[Metrics] = []
    train_supervised(
        policy.model,
        examples,
        settings,
        hooks=Hooks(log=seen.append),
        devices=devices,
    )
    counted = seen[WARM_STEPS:]
    tokens = counted[-1]["tokens"] - seen[WARM_STEPS - 1]["tokens"]
    return {"rate": tokens / sum(one["time/step"] for one in counted)}


KINDS: dict[str, Callable[[Path, Devices, int], Metrics]] = {"ppo": ppo, "lora": lora, "reward": reward, "sft": sft}


def main(kind: str, directory: str, compute: Compute, updates: int) -> None:
    keep_freed_memory()  # as every process of ours that trains does
    found = KINDS[kind](Path(directory), Devices(compute, device="cpu"), updates)
    print(json.dumps(found | {"peak_mb": peak_of_process() / 2**20}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], msgspec.convert(sys.argv[3], Compute), int(sys.argv[4]))
