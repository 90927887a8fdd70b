from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_core.errors import InvalidRequestError, ModelError
from rlhf_core.models.load import LoadedPolicy, fetch_model, load_policy, render_prompt
from rlhf_core.records import Message


@pytest.fixture
def directory(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that the test may spoil."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change_config(directory: Path, name: str = "config.json", **values: Any) -> None:
    path = directory / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_loaded_policy_knows_its_context_its_end_and_its_name(tiny_model_dir: Path) -> None:
    policy = load_policy(tiny_model_dir, policy_version=7, checkpoint_id="policy-x", weights_sha256="ab")
    assert (policy.policy_version, policy.checkpoint_id, policy.weights_sha256) == (7, "policy-x", "ab")
    assert policy.max_context == 256
    assert policy.end_token_ids == {1}
    assert policy.vocab_size == 300
    assert not policy.model.training
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.float32}


def test_the_context_can_be_lowered_but_not_raised(tiny_model_dir: Path) -> None:
    assert load_policy(tiny_model_dir, max_context=100).max_context == 100
    assert load_policy(tiny_model_dir, max_context=1000).max_context == 256


def test_end_tokens_are_gathered_from_config_generation_config_and_tokenizer(directory: Path) -> None:
    change_config(directory, "generation_config.json", eos_token_id=[5, 6])
    change_config(directory, eos_token_id=7)
    assert load_policy(directory).end_token_ids == {1, 5, 6, 7}


def test_a_saved_policy_does_not_carry_the_engines_attention(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    tiny_policy.model.save_pretrained(tmp_path)
    assert "attune_slots" not in (tmp_path / "config.json").read_text()


def without(*names: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return spoil


def with_config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: change_config(directory, **values)


def with_text(name: str, text: str) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        (directory / name).write_text(text)

    return spoil


def with_a_weight_removed(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("config.json"), "has no config.json"),
        (without("model.safetensors"), "has no safetensors weights"),
        (without("tokenizer.json"), "has no tokenizer"),
        (without("chat_template.jinja"), "has no chat template"),
        (with_text("tokenizer.json", "{}"), "has no tokenizer that can be loaded"),
        (with_text("config.json", "{"), "is not JSON"),
        (with_text("model.safetensors", "nonsense"), "cannot be loaded"),
        (with_a_weight_removed, "lacks 1 weights, among them lm_head.weight"),
        (with_config(auto_map={"AutoModel": "x.Y"}), "names code to run"),
        (with_config(quantization_config={"quant_method": "x"}), "quantised"),
        (with_config(model_type="unheard-of"), "is not a model this release knows"),
        (with_config(model_type="gemma2", attn_logit_softcapping=50.0, sliding_window=4096), "caps its attention"),
        (
            with_config(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "dynamic rotary scaling",
        ),
        (with_config(vocab_size=301), "cannot be loaded"),
    ],
)
def test_a_directory_that_cannot_be_served_is_refused_in_one_sentence(
    spoil: Callable[[Path], None], sentence: str, directory: Path
) -> None:
    spoil(directory)
    with pytest.raises(ModelError, match=sentence) as refused:
        load_policy(directory)
    assert "\n" not in str(refused.value)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_policy(tmp_path / "nowhere")


def test_the_prompt_is_the_rendered_conversation_and_ends_where_the_assistant_speaks(
    tiny_policy: LoadedPolicy,
) -> None:
    messages = [Message("user", "hi"), Message("assistant", "yo"), Message("user", "go")]
    token_ids = render_prompt(tiny_policy.tokenizer, messages)
    assert (
        tiny_policy.tokenizer.decode(token_ids)
        == "<|user|>hi<|end|><|assistant|>yo<|end|><|user|>go<|end|><|assistant|>"
    )


def test_what_the_template_refuses_is_the_callers_error(tiny_policy: LoadedPolicy) -> None:
    strange: Any = Message("tool", "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="unknown role: tool") as refused:
        render_prompt(tiny_policy.tokenizer, [strange])
    assert refused.value.param == "messages"


def test_a_local_model_is_copied_whole_and_nothing_else(directory: Path, tmp_path: Path) -> None:
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "modeling.py").write_text("print()")
    fetch_model(str(directory), tmp_path / "copy")
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= copied
    assert not copied & {"pytorch_model.bin", "modeling.py"}
    assert load_policy(tmp_path / "copy").end_token_ids == {1}


def test_a_template_inside_the_tokenizers_config_is_written_to_its_own_file(directory: Path, tmp_path: Path) -> None:
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    change_config(directory, "tokenizer_config.json", chat_template=template)
    fetch_model(str(directory), tmp_path / "copy")
    assert (tmp_path / "copy" / "chat_template.jinja").read_text() == template


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "gpt2", "a/b/c", ""])
def test_a_name_that_is_no_model_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither `desk`, nor a directory"):
        fetch_model(name, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_hub_that_does_not_answer_gives_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'nobody/nothing' could not be fetched from the hub") as refused:
        fetch_model("nobody/nothing", tmp_path / "copy")
    assert "\n" not in str(refused.value)
