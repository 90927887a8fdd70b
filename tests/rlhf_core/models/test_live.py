from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf_core.engine.engine import Engine
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.rollouts import sample
from rlhf_core.models import live
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import make_trainable
from rlhf_core.records import Sampling

SAMPLE = """
import sys
from pathlib import Path
from rlhf_core.engine.engine import Engine
from rlhf_core.learning.ppo import train_ppo
from rlhf_core.learning.rollouts import sample
from rlhf_core.models.load import load_policy
from rlhf_core.models.trainable import make_trainable
from rlhf_core.records import Sampling

engine = Engine(make_trainable(load_policy(Path(sys.argv[1]))).policy, max_running=4, max_waiting=64, max_context=64)
assert len(sample(engine, [(5, 6), (7,)], Sampling(max_tokens=8))) == 2
print(sorted({"numba", "llvmlite"} & sys.modules.keys()))
"""


def test_a_small_model_is_sampled_from_without_the_compiler(tiny_model_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAMPLE, str(tiny_model_dir)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("worth", [0, 1 << 40], ids=["kernels", "tensors"])
def test_what_is_sampled_follows_what_was_learned(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, worth: int, lora: LoraSettings | None
) -> None:
    monkeypatch.setattr(live, "WORTH_A_COMPILER", worth)
    trainee = make_trainable(load_policy(tiny_model_dir), lora)
    engine = Engine(trainee.policy, max_running=4, max_waiting=64, max_context=64)
    prompts = [tuple(range(5, 5 + length)) for length in range(1, 11)]
    for _ in range(2):
        responses = sample(engine, prompts, Sampling(temperature=0.8, max_tokens=8))
        batch = TokenBatch.of([(one.prompt, one.token_ids) for one in responses])
        with torch.no_grad():
            ours = analyse(trainee.model, batch, temperature=0.8)
            for row, one in enumerate(responses):
                torch.testing.assert_close(
                    ours.logprobs[row, : len(one.token_ids)], torch.tensor(one.logprobs), atol=1e-4, rtol=0
                )
            for parameter in trainee.parameters:
                parameter.add_(torch.randn_like(parameter) * 0.02)
        trainee.refresh()


def test_a_large_model_is_sampled_from_by_kernels(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load_policy(tiny_model_dir)
    size = sum(parameter.nbytes for parameter in policy.model.parameters())
    for worth, by_kernel in ((size, True), (size + 1, False)):
        monkeypatch.setattr(live, "WORTH_A_COMPILER", worth)
        forward = make_trainable(load_policy(tiny_model_dir)).policy.forward
        assert forward is not None
        assert forward.by_kernel is by_kernel
