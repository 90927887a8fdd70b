"""One process of a data-parallel PPO run, started by `test_ppo_devices.py`: MODEL_DIRECTORY OUTPUT, ranks from the
environment as `accelerate launch` sets them. The first process writes metrics and weights."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from safetensors.torch import save_file

from rlhf_core.learning.devices import Devices
from rlhf_core.learning.ppo import PPOResult, train_ppo
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from tests.rlhf_core.learning.test_ppo import PROMPTS, SMALL, low_tokens
from tests.rlhf_core.learning.test_ppo_resume import short

SETTINGS = msgspec.structs.replace(
    SMALL,
    rollouts=11,  # shares and minibatches that are not alike
    minibatch_size=5,
    learning_rate=3e-3,
    axis_weights={"short": 0.5},
    demonstration_coef=0.1,
    critic_warmup_updates=1,
    updates=3,
)
DEMONSTRATIONS = [((5, 6), (40, 50, 1)), ((7,), (60, 1)), ((8, 9, 10), (70, 71, 72, 1))]


def train(directory: Path, devices: Devices | None, lora: LoraSettings | None) -> tuple[Trainable, PPOResult]:
    trainee = make_trainable(load_policy(directory), lora)
    result = train_ppo(
        trainee,
        low_tokens,
        PROMPTS,
        SETTINGS,
        3,
        devices=devices,
        axis_scores=short,
        judge=low_tokens,
        demonstrations=DEMONSTRATIONS,
    )
    return trainee, result


def main(directory: Path, output: Path) -> None:
    devices = Devices(device="cpu")
    assert devices.count == 2
    for name, lora in (("full", None), ("lora", LoraSettings(rank=4))):
        trainee, result = train(directory, devices, lora)
        if devices.is_main:
            (output / f"{name}.json").write_bytes(msgspec.json.encode(result.metrics))
            save_file(trainee.model.state_dict(), output / f"{name}.safetensors")
    devices.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
