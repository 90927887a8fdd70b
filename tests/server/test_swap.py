"""The hot swap on a real server: open streams keep their policy, new ones get the new; what is broken is not served."""

from __future__ import annotations

import json
from pathlib import Path

from tests.server.conftest import Site, chat_body, eventually, sse

GREEDY = {"temperature": 0, "ignore_eos": True}


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


def test_another_chat_template_is_refused(swap_site: Site, long_model_dir: Path, tmp_path: Path) -> None:
    before = serving_version(swap_site)
    failed = swap_site.metric('policy_swaps_total{result="failed"}')
    model = tmp_path / "model"
    model.mkdir()
    for path in long_model_dir.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    template = model / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    swap_site.publish(model)
    eventually(lambda: swap_site.metric('policy_swaps_total{result="failed"}') == failed + 1)
    assert serving_version(swap_site) == before
    assert "another chat template" in swap_site.server.log.read_text()


def serving_version(site: Site) -> int:
    version: int = site.http.get("/v1/status").json()["serving"]["policy_version"]
    return version
