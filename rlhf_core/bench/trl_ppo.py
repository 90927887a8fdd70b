"""TRL's PPO on the bench's task. Run by the Python of an environment that has TRL 0.24, the last with PPO.

Usage: python trl_ppo.py MODEL_DIR DTYPE UPDATES < task.json; prints one line of JSON. Imports nothing of Attune.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    """When each update ended."""

    def __init__(self) -> None:
        self.ends = [time.perf_counter()]

    def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
        self.ends.append(time.perf_counter())


def main(directory: str, dtype: str, updates: int) -> None:
    task = json.load(sys.stdin)
    tokenizer = read_tokenizer(directory)
    kind = getattr(torch, dtype)
    policy, reference = (AutoModelForCausalLM.from_pretrained(directory, dtype=kind) for _ in range(2))
    value, reward = (
        AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=kind) for _ in range(2)
    )
    settings = PPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=task["rollouts"] // task["minibatches"],
        gradient_accumulation_steps=task["minibatches"],
        num_mini_batches=task["minibatches"],
        num_ppo_epochs=task["epochs"],
        total_episodes=task["rollouts"] * updates,
        response_length=task["response_tokens"],
        local_rollout_forward_batch_size=task["rollouts"],
        stop_token="eos",
        temperature=1.0,
        num_sample_generations=0,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        logging_strategy="no",
    )
    clock = Clock()
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=Dataset.from_dict({"input_ids": task["prompts"]}),
        eval_dataset=Dataset.from_dict({"input_ids": task["prompts"][:1]}),
        callbacks=[clock],
    )
    clock.ends = [time.perf_counter()]
    trainer.train()
    # The first update warms up: allocator, caches, threads.
    seconds = (clock.ends[-1] - clock.ends[1]) / (len(clock.ends) - 2)
    print(json.dumps({"rate": task["rollouts"] / seconds, "peak_mb": peak_mb()}))


def read_tokenizer(directory: str) -> Any:
    """From the one file that every release of transformers reads."""
    file = f"{directory}/tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>", eos_token="<end>", padding_side="left")


def peak_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
