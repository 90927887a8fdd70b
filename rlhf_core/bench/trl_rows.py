"""TRL's RewardTrainer and SFTTrainer on the bench's rows. Run by the Python of an environment that has a recent TRL.

Usage: python trl_rows.py reward|sft|sft-packed MODEL_DIR DTYPE < task.json; prints one line of JSON. Imports nothing of
Attune. The rate is over training alone, without loading and tokenising; the first steps warm up and are left out.
"""

import json
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

WARM_STEPS = 3


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
        self.ends.append(time.perf_counter())

    def seconds_per_step(self) -> float:
        return (self.ends[-1] - self.ends[WARM_STEPS - 1]) / (len(self.ends) - WARM_STEPS)


def common(task: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": task["batch"],
        "num_train_epochs": 1,
        "learning_rate": task["learning_rate"],
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": dtype == "bfloat16",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "gradient_checkpointing": False,
        "dataset_num_proc": None,
    }


def reward(task: dict[str, Any], directory: str, dtype: str) -> dict[str, float]:
    tokenizer = read_tokenizer(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=1, dtype=torch.float32)
    clock = Clock()
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**common(task, dtype), max_length=256),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(task["train"]),
        callbacks=[clock],
    )
    trainer.train()
    right = sum(
        score(model, tokenizer, row["prompt"], row["chosen"]) > score(model, tokenizer, row["prompt"], row["rejected"])
        for row in task["held_out"]
    )
    return {"rate": task["batch"] / clock.seconds_per_step(), "accuracy": right / len(task["held_out"])}


@torch.no_grad()
def score(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    text = f"{prompt} {response}"
    token_ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return float(model.eval()(input_ids=torch.tensor([token_ids])).logits[0, 0])


def supervised(task: dict[str, Any], directory: str, dtype: str, *, packing: bool) -> dict[str, float]:
    tokenizer = read_tokenizer(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    clock = Clock()
    settings = common(task, dtype)
    if packing:
        # The same tokens in a step: a packed row of 512 holds about eleven of 45.
        settings["per_device_train_batch_size"] = 2
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**settings, max_length=512, packing=packing, completion_only_loss=True),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(task["train"]),
        callbacks=[clock],
    )
    trainer.train()
    real = sum(len((row["prompt"] + " " + row["completion"]).split()) + 1 for row in task["train"])
    share = (len(clock.ends) - WARM_STEPS) / len(clock.ends)
    return {"rate": real * share / (clock.ends[-1] - clock.ends[WARM_STEPS - 1])}


def read_tokenizer(directory: str) -> Any:
    """From the one file that every release of transformers reads."""
    file = f"{directory}/tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=file, pad_token="<pad>", eos_token="<end>")


def peak_mb() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main(kind: str, directory: str, dtype: str) -> None:
    task = json.load(sys.stdin)
    if kind == "reward":
        found = reward(task, directory, dtype)
    else:
        found = supervised(task, directory, dtype, packing=kind == "sft-packed")
    print(json.dumps(found | {"peak_mb": peak_mb()}))


if __name__ == "__main__":
    main(*sys.argv[1:4])
