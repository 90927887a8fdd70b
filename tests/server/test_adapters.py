"""LoRA adapters as policies, on a real server: published by hand, swapped in beside their base, rolled back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_core.checkpoints import load_manifest, new_checkpoint_id, seal
from rlhf_core.errors import AttuneError
from rlhf_core.models.adapted import copy_adapter, load_full
from rlhf_core.models.load import LoadedPolicy, fetch_model, render_prompt
from rlhf_core.models.lora import ADAPTER_WEIGHTS
from rlhf_core.publishing import publish_directory
from rlhf_core.records import Message, PolicyVersion
from server.policy_source import PolicySource
from tests.rlhf_core.engine.generation import engine, request
from tests.rlhf_core.models.test_lora import make_adapter
from tests.server.conftest import Site, eventually, run_site

# peft asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def adapter_site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from run_site(long_model_dir, tmp_path_factory.mktemp("adapters"))


def publish(site: Site, directory: Path) -> PolicyVersion:
    root = site.server.data_dir / "checkpoints"
    return publish_directory(site.policies, root, directory, "test", time.time())


def serves(site: Site, version: PolicyVersion) -> None:
    eventually(lambda: site.chat().headers["x-policy-version"] == str(version.policy_version), 60)


def greedy(policy: LoadedPolicy) -> str:
    prompt = tuple(render_prompt(policy.tokenizer, [Message("user", "hello")]))
    return engine(policy, max_context=256).generate([request("r", prompt, max_tokens=24)])[0].text


def said(site: Site) -> str:
    reply = site.chat(temperature=0, max_tokens=24).json()
    text: str = reply["choices"][0]["message"]["content"]
    return text


def test_an_adapter_is_published_served_trained_from_and_rolled_back(
    adapter_site: Site, long_model_dir: Path, tmp_path: Path
) -> None:
    root = adapter_site.server.data_dir / "checkpoints"
    plain = said(adapter_site)
    first_id = adapter_site.policies.version(1).checkpoint_id
    answers = {}
    for seed in (1, 2):
        make_adapter(long_model_dir, tmp_path / str(seed), seed=seed)
        version = publish(adapter_site, tmp_path / str(seed))
        serves(adapter_site, version)
        sealed = root / version.checkpoint_id
        # The second names no checkpoint of ours either: it changes what the first changed.
        assert load_manifest(sealed).base == first_id
        assert not (sealed / "model.safetensors").exists()
        answers[seed] = said(adapter_site)
        # What a training starts from is the same policy in full weights.
        assert greedy(load_full(sealed)) == answers[seed]
    assert len({plain, *answers.values()}) == 3
    back = publish(adapter_site, root / first_id)
    serves(adapter_site, back)
    assert said(adapter_site) == plain


def test_an_adapter_that_does_not_fit_is_not_published(
    adapter_site: Site, long_model_dir: Path, tmp_path: Path
) -> None:
    make_adapter(long_model_dir, tmp_path / "adapter")
    (tmp_path / "adapter" / ADAPTER_WEIGHTS).write_bytes(b"nothing")
    before = adapter_site.policies.live_version()
    with pytest.raises(AttuneError, match="cannot be read"):
        publish(adapter_site, tmp_path / "adapter")
    assert adapter_site.policies.live_version() == before


def test_an_adapter_whose_base_is_gone_leaves_the_old_policy_serving(
    adapter_site: Site, long_model_dir: Path, other_long_model_dir: Path, tmp_path: Path
) -> None:
    failed = adapter_site.metric('policy_swaps_total{result="failed"}')
    other = publish(adapter_site, other_long_model_dir)
    serves(adapter_site, other)
    make_adapter(other_long_model_dir, tmp_path / "adapter")
    adapted = publish(adapter_site, tmp_path / "adapter")
    serves(adapter_site, adapted)
    root = adapter_site.server.data_dir / "checkpoints"
    back = publish(adapter_site, root / adapter_site.policies.version(1).checkpoint_id)
    serves(adapter_site, back)
    shutil.rmtree(root / other.checkpoint_id)
    with pytest.raises(AttuneError, match=f"changes the weights of {other.checkpoint_id}"):
        publish(adapter_site, root / adapted.checkpoint_id)
    adapter_site.policies.publish(
        checkpoint_id=adapted.checkpoint_id,
        weights_sha256=adapted.weights_sha256,
        actor="operator",
        reason="test",
        now=time.time(),
        expected_version=back.policy_version,
    )
    eventually(lambda: adapter_site.metric('policy_swaps_total{result="failed"}') == failed + 1)
    assert adapter_site.chat().headers["x-policy-version"] == str(back.policy_version)


def test_an_adapter_shares_the_memory_of_the_policy_that_it_changes(long_model_dir: Path, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    fields = {"kind": "policy", "created_at": 0.0}
    base = seal(
        root, lambda to: fetch_model(str(long_model_dir), to), {**fields, "checkpoint_id": new_checkpoint_id("policy")}
    )
    make_adapter(long_model_dir, tmp_path / "adapter")
    adapter = seal(
        root,
        lambda to: copy_adapter(tmp_path / "adapter", root / base.checkpoint_id, to),
        {**fields, "checkpoint_id": new_checkpoint_id("policy"), "base": base.checkpoint_id},
    )
    source = PolicySource(root, 256)
    versions = [
        PolicyVersion(
            policy_version=number,
            checkpoint_id=manifest.checkpoint_id,
            weights_sha256=manifest.weights_sha256,
            published_at=0.0,
            actor="operator",
            reason="test",
        )
        for number, manifest in enumerate((base, adapter, base, adapter), start=1)
    ]
    serving = source.load(versions[0])
    pointers = {parameter.data_ptr() for parameter in serving.model.parameters()}
    for version in versions[1:]:
        serving = source.load(version, serving)
        shared = {parameter.data_ptr() for parameter in serving.model.parameters()} == pointers
        assert shared
