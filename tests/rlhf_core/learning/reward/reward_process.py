"""One of two processes that fit one reward model together. Usage: python -m ... TRUNK_DIR OUTPUT."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch

from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.reward.files import save_reward
from rlhf_core.learning.reward.training import RewardSettings, TrainedReward, train_reward_model
from tests.rlhf_core.learning.reward.simulated_people import simulated_pairs, simulated_thumbs


def train(trunk_dir: Path, devices: Devices) -> tuple[TrainedReward, list[Metrics]]:
    """A short fit, in batches of odd sizes so that the processes' parts differ."""
    torch.set_num_threads(1)
    logged: list[Metrics] = []
    settings = RewardSettings(epochs=1, learning_rate=1e-3, head_learning_rate=1e-3, batch_size=7, ensemble=2)
    ratings, pairs = simulated_thumbs(20, 1), simulated_pairs(16, 2)
    trained = train_reward_model(trunk_dir, ratings, pairs, settings, 3, Hooks(log=logged.append), devices=devices)
    return trained, logged


if __name__ == "__main__":
    output = Path(sys.argv[2])
    together = Devices(device="cpu")
    assert together.count == 2
    fitted, seen = train(Path(sys.argv[1]), together)
    if together.is_main:
        save_reward(fitted.model, output)
        (output / "metrics.json").write_bytes(msgspec.json.encode(seen))
    together.wait()
