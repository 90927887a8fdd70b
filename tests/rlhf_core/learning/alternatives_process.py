"""One process of data-parallel runs of the alternatives, started by `test_alternatives_devices.py`: MODEL_DIRECTORY
OUTPUT, ranks from the environment as `accelerate launch` sets them. The first process writes metrics and weights."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
from safetensors.torch import save_file

from rlhf_core.learning.devices import Devices
from rlhf_core.learning.dpo import train_dpo
from rlhf_core.learning.hooks import Metrics
from rlhf_core.learning.kto import train_kto
from rlhf_core.learning.rloo import train_rloo
from rlhf_core.models.load import load_policy
from rlhf_core.models.trainable import Trainable, make_trainable
from tests.rlhf_core.learning import test_dpo, test_kto, test_rloo

NAMES = ("dpo", "kto", "rloo")


def train(name: str, directory: Path, devices: Devices | None) -> tuple[Trainable, list[Metrics]]:
    """Short trainings whose minibatches do not divide by two."""
    trainee = make_trainable(load_policy(directory))
    match name:
        case "dpo":
            # Adam's first steps have the size of the learning rate whatever the gradient: rounding grows with it.
            gentle = msgspec.structs.replace(test_dpo.SMALL, learning_rate=1e-4)
            return trainee, train_dpo(trainee, test_dpo.PAIRS, gentle, 3, None, devices)
        case "kto":
            return trainee, train_kto(trainee, test_kto.THUMBS, test_kto.SMALL, 3, None, devices)
        case _:
            settings = msgspec.structs.replace(test_rloo.SMALL, minibatch_size=5, epochs=2)
            return trainee, train_rloo(trainee, test_rloo.low_tokens, test_rloo.PROMPTS, settings, 3, None, devices)


def main(directory: Path, output: Path) -> None:
    devices = Devices(device="cpu")
    assert devices.count == 2
    for name in NAMES:
        trainee, metrics = train(name, directory, devices)
        if devices.is_main:
            (output / f"{name}.json").write_bytes(msgspec.json.encode(metrics))
            save_file(trainee.model.state_dict(), output / f"{name}.safetensors")
    devices.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
