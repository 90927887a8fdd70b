"""The hot swap on a real server: open streams keep their policy, new ones get the new; what is broken is not served."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.models.load import load_policy
from rlhf_core.records import Sampling
from server.generation import Generation
from server.metrics import Metrics
from server.serving import Serving
from server.wire import CHAT, Address, Wire, chat_bytes, request_bytes
from tests.conftest import make_tiny_model_in
from tests.server.conftest import Site, chat_body, copy_model, eventually, run_site, sse, with_long_context

Weights = dict[str, Any]
"""Names to tensors."""

GREEDY = {"temperature": 0, "ignore_eos": True}
LISTENERS, SWAPS, SAID = 4, 6, 48
"""Streams at once, policies in turn under them, and the tokens of an answer. `make bench` does 60 swaps."""


def test_a_stream_open_across_a_swap_finishes_on_its_own_policy(swap_site: Site, other_long_model_dir: Path) -> None:
    short = swap_site.chat(**GREEDY, max_tokens=24).json()["choices"][0]["message"]["content"]
    body = chat_body(**GREEDY, max_tokens=4000, stream=True)
    with swap_site.http.stream("POST", "/v1/chat/completions", json=body) as old:
        swap_site.publish(other_long_model_dir)
        eventually(lambda: swap_site.chat().headers["x-policy-version"] == "2", 60)
        # While the old stream still runs, by its own record:
        assert swap_site.interactions.get(old.headers["x-interaction-id"]).status == "streaming"
        assert [model["id"] for model in swap_site.http.get("/v1/models").json()["data"]] == ["live", "policy@2"]
        new_short = swap_site.chat(**GREEDY, max_tokens=24).json()["choices"][0]["message"]["content"]
        assert swap_site.metric('inflight_requests{slot="draining"}') == 1.0
        *chunks, done = sse(old.iter_lines())
    frames = [json.loads(chunk) for chunk in chunks]
    text = "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames)
    record = swap_site.interactions.get(old.headers["x-interaction-id"])
    assert done == "[DONE]"
    assert {frame["model"] for frame in frames} == {"policy@1"}
    assert (record.policy_version, len(record.token_ids), record.status) == (1, 4000, "done")
    assert text.startswith(short)
    assert not text.startswith(new_short)
    assert swap_site.metric("policy_version") == 2.0
    assert swap_site.metric('policy_swaps_total{result="done"}') == 1.0
    eventually(lambda: swap_site.policies.served_at(2) is not None)


def test_a_corrupt_checkpoint_leaves_the_old_policy_serving_and_says_so(
    swap_site: Site, other_long_model_dir: Path
) -> None:
    def flip_a_byte(checkpoint: Path) -> None:
        weights = checkpoint / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)

    before = serving_version(swap_site)
    failed = swap_site.metric('policy_swaps_total{result="failed"}')
    bad = swap_site.publish(other_long_model_dir, flip_a_byte)
    eventually(lambda: swap_site.metric('policy_swaps_total{result="failed"}') == failed + 1)
    assert swap_site.chat().headers["x-policy-version"] == str(before)
    status = swap_site.http.get("/v1/status").json()
    assert (status["live"]["policy_version"], status["serving"]["policy_version"]) == (bad.policy_version, before)
    assert "sha256" in swap_site.server.log.read_text()
    good = swap_site.publish(other_long_model_dir)
    eventually(lambda: serving_version(swap_site) == good.policy_version)
    # Two publications, one failure: the bad one was not tried again while the pointer stood still.
    assert swap_site.metric('policy_swaps_total{result="failed"}') == failed + 1


def another_template(model: Path) -> None:
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")


def another_vocabulary(model: Path) -> None:
    """Two words change places: every shape is as it was, and every text would be another."""
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    first, second = list(words)[100:102]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(content))


def fewer_key_heads(model: Path) -> None:
    make_tiny_model_in(model, kv_heads=1)
    with_long_context(model)


def another_shape_than_it_says(model: Path) -> None:
    change_weights(model, lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"][:-1].clone()})


def half_the_precision(model: Path) -> None:
    change_weights(model, lambda weights: {name: tensor.half() for name, tensor in weights.items()})


def an_unused_row_of_nan(model: Path) -> None:
    """No probe speaks this token, so only a look at the weights can find it."""

    def spoil(weights: Weights) -> Weights:
        weights["model.embed_tokens.weight"][250] = float("nan")
        return weights

    change_weights(model, spoil)


def an_infinite_weight(model: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.norm.weight"][0] = float("inf")
        return weights

    change_weights(model, spoil)


def change_weights(model: Path, change: Callable[[Weights], Weights]) -> None:
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (another_template, "has another chat template than"),
        (another_vocabulary, "has another vocabulary than"),
        (fewer_key_heads, "has num_key_value_heads 1, "),
        (another_shape_than_it_says, "has lm_head.weight of [299, 32], "),
        (half_the_precision, "has lm_head.weight in F16, "),
        (an_unused_row_of_nan, "holds a number in model.embed_tokens.weight that is not finite"),
        (an_infinite_weight, "holds a number in model.norm.weight that is not finite"),
    ],
)
def test_what_would_answer_wrongly_is_refused_with_its_reason(
    swap_site: Site, long_model_dir: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    before = serving_version(swap_site)
    failed = swap_site.metric('policy_swaps_total{result="failed"}')
    model = tmp_path / "model"
    model.mkdir()
    copy_model(long_model_dir, model)
    spoil(model)
    bad = swap_site.publish(model)
    eventually(lambda: swap_site.metric('policy_swaps_total{result="failed"}') == failed + 1)
    assert serving_version(swap_site) == before
    assert swap_site.chat().headers["x-policy-version"] == str(before)
    said = [json.loads(line) for line in swap_site.server.log.read_text().splitlines() if "swap failed" in line]
    assert said[-1]["policy_version"] == bad.policy_version
    assert f"{bad.checkpoint_id} {reason}" in said[-1]["reason"]


def test_swaps_under_load_cut_no_stream_and_mix_no_policies(
    swap_site: Site, long_model_dir: Path, other_long_model_dir: Path
) -> None:
    """Greedy answers tell which weights spoke each token: they must be, to the letter, those of the version named."""
    models = (long_model_dir, other_long_model_dir)
    prompts = [f"hello {number}" for number in range(LISTENERS)]
    alone = []
    for model in models:
        follow(swap_site, model)
        alone.append([swap_site.chat(prompt, **GREEDY, max_tokens=SAID).json() for prompt in prompts])
    texts = [[body["choices"][0]["message"]["content"] for body in bodies] for bodies in alone]
    address = Address("127.0.0.1", int(swap_site.server.url.rpartition(":")[2]))
    over = threading.Event()

    async def listen(prompt: str) -> list[tuple[int, str]]:
        body = chat_bytes(prompt, **GREEDY, max_tokens=SAID, stream=True)
        heard = []
        async with asyncio.timeout(60), Wire.open(address) as wire:
            while not over.is_set():
                wire.send(request_bytes(CHAT, body))
                head = await wire.head()
                assert head.status == 200
                *chunks, done = [chunk async for chunk in wire.chunks()]
                assert done == b"data: [DONE]\n\n"
                frames = [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]
                assert {frame["model"] for frame in frames} == {f"policy@{head.headers['x-policy-version']}"}
                said = "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames)
                heard.append((int(head.headers["x-policy-version"]), said))
        return heard

    async def everyone() -> list[list[tuple[int, str]]]:
        return await asyncio.gather(*(listen(prompt) for prompt in prompts))

    drained = 'policy_swap_phase_seconds_count{phase="drain"}'
    before = swap_site.metric(drained)
    with ThreadPoolExecutor(1) as executor:
        listening = executor.submit(asyncio.run, everyone())
        try:
            for turn in range(SWAPS):
                version = follow(swap_site, models[turn % 2])
        finally:
            over.set()
        heard = listening.result()
    # The last version is of the other model, and versions take turns.
    for place, answers in enumerate(heard):
        assert {said == texts[1 - (version - number) % 2][place] for number, said in answers} == {True}
    assert len({number for answers in heard for number, _ in answers}) > SWAPS // 2
    eventually(lambda: swap_site.metric(drained) == before + SWAPS)
    assert swap_site.metric('inflight_requests{slot="draining"}') == 0.0


def test_after_a_swap_one_weight_set_is_left_though_old_answers_are_still_held(
    long_model_dir: Path, other_long_model_dir: Path
) -> None:
    old, new = (
        load_policy(model, policy_version=1 + turn) for turn, model in enumerate((long_model_dir, other_long_model_dir))
    )
    weights = weakref.ref(old.model)
    engine = Engine(old, max_running=2, max_waiting=4, max_context=64)
    del old

    async def scenario() -> Generation:
        serving = Serving(engine, max_running=2, max_waiting=2, metrics=Metrics())
        serving.start()
        try:
            async with asyncio.timeout(30):
                held = serving.submit(GenerationRequest("a", (5, 6), Sampling(max_tokens=40), ignore_end=True))
                await held.first_token()
                await serving.swap(new)
                await held.ended.wait()
                other = serving.submit(GenerationRequest("b", (5, 6), Sampling(max_tokens=2)))
                await other.ended.wait()
                return held
        finally:
            serving.close()

    held = asyncio.run(scenario())
    assert held.policy.policy_version == 1
    assert engine.draining is None
    assert weights() is None


def follow(site: Site, model: Path) -> int:
    """Publish, and wait until new answers are of it."""
    version = site.publish(model).policy_version
    eventually(lambda: site.http.get("/health/ready").json()["policy_version"] == version, 60)
    return version


def serving_version(site: Site) -> int:
    version: int = site.http.get("/v1/status").json()["serving"]["policy_version"]
    return version


@pytest.fixture
def wide_site(long_model_dir: Path, tmp_path: Path) -> Iterator[Site]:
    yield from run_site(widened(long_model_dir, tmp_path / "wide"), tmp_path, max_context=64)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from Linux's /proc")
def test_a_replaced_policy_takes_its_memory_with_it(wide_site: Site, tmp_path: Path) -> None:
    before = resident_megabytes(wide_site)
    for version in (2, 3):
        wide_site.publish(tmp_path / "wide")
        eventually(lambda version=version: serving_version(wide_site) == version, 60)
    # One set is 64 MB of weights and as much again in the order that the processor likes.
    eventually(lambda: resident_megabytes(wide_site) < before + 48, 10)


def widened(model: Path, directory: Path) -> Path:
    """A copy with 16 million weights, 64 MB."""
    directory.mkdir()
    copy_model(model, directory)
    config = LlamaConfig.from_pretrained(directory)
    config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "head_dim": 128})
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def resident_megabytes(site: Site) -> int:
    lines = Path(f"/proc/{site.server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
