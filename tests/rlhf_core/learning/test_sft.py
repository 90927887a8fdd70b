"""Supervised fine-tuning: which tokens count, that packing and accumulation change nothing, and that a tiny model
learns."""

import copy
import math

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_core.desk.tokenizer import train_tokenizer
from rlhf_core.errors import SettingsError, TrainingError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.packing import PackedBatch
from rlhf_core.learning.sft import (
    SftExample,
    accumulate_gradients,
    encode_conversation,
    plan_minibatches,
    schedule_share,
    train_supervised,
)
from rlhf_core.learning.sft_loss import (
    next_token_logprobs,
    wanted_logprobs,
)
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.documents import Documents, use_documents

CPU = torch.device("cpu")
CONVERSATION = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello, I am Mira."},
    {"role": "assistant", "content": "Mira, hello!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye, Mira."},
)


def tiny_model(vocab_size: int = 16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    use_documents(model)
    return model


def example(prompt: list[int], response: list[int]) -> SftExample:
    return SftExample((*prompt, *response), (False,) * len(prompt) + (True,) * len(response))


EXAMPLES = [
    example([3, 4, 5], [6, 7, 1]),
    example([9], [10, 11, 12, 13, 1]),
    example([5, 5, 4, 8], [2, 1]),
    example([14, 15], [3, 1]),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    texts = [message["content"] for message in CONVERSATION] * 3
    return train_tokenizer(texts, vocab_size=1600, max_tokens=64)


def gradients(model: LlamaForCausalLM) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_every_assistant_turn_counts_with_its_end_token_and_nothing_else_does(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode_conversation(tokenizer, CONVERSATION)
    counted = [i for i, counts in zip(encoded.token_ids, encoded.response_mask, strict=True) if counts]
    assert tokenizer.decode(counted) == "Mira, hello!<|end|> Bye, Mira.<|end|>"


def test_the_mask_ends_where_the_last_answer_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    trailing = (*CONVERSATION, {"role": "user", "content": "And now?"})
    assert encode_conversation(tokenizer, trailing) == encode_conversation(tokenizer, CONVERSATION)


def test_a_conversation_without_an_answer_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TrainingError, match="teaches nothing"):
        encode_conversation(tokenizer, CONVERSATION[:2])


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    rewriting = copy.deepcopy(tokenizer)
    rewriting.chat_template = "{{ messages | length }}{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"
    with pytest.raises(TrainingError, match="do not begin"):
        encode_conversation(rewriting, CONVERSATION)


def test_an_answer_that_nothing_stands_before_and_that_says_nothing_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(TrainingError, match=f"of the token {tokenizer.eos_token_id} alone"):
        encode_conversation(bare, [CONVERSATION[0], {"role": "assistant", "content": ""}])


def test_packed_logprobs_equal_those_of_each_document_alone() -> None:
    model = tiny_model()
    packed = next_token_logprobs(model, PackedBatch.of(EXAMPLES, CPU))
    rows = packed.split([len(each.token_ids) - 1 for each in EXAMPLES])
    for each, row in zip(EXAMPLES, rows, strict=True):
        # No packing: the model's own causal attention over one document.
        logits = model(input_ids=torch.tensor([each.token_ids])).logits[0, :-1]
        alone = logits.log_softmax(-1).gather(1, torch.tensor(each.token_ids)[1:, None])[:, 0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_how_documents_are_put_together_changes_neither_loss_nor_gradient() -> None:
    together, apart = tiny_model(), tiny_model()
    settings = SftSettings(row_tokens=24, rows_per_minibatch=8, rows_per_microbatch=8, prompt_weight=0.3)
    narrow = msgspec.structs.replace(settings, row_tokens=1)
    a = accumulate_gradients(together, [EXAMPLES], settings)
    b = accumulate_gradients(apart, [[each] for each in EXAMPLES], narrow)
    assert a == pytest.approx(b, abs=1e-6)
    torch.testing.assert_close(gradients(together), gradients(apart), atol=1e-6, rtol=0)


def test_the_gradient_is_that_of_the_documents_in_padded_rows_by_the_models_own_attention() -> None:
    packed, usual = tiny_model(), tiny_model()
    accumulate_gradients(packed, [EXAMPLES], SftSettings(row_tokens=24))
    total = 0.0
    for each in EXAMPLES:
        logits = usual(input_ids=torch.tensor([each.token_ids])).logits[0, :-1]
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(each.token_ids)[1:, None])[:, 0]
        total = total - logprobs[torch.tensor(each.response_mask[1:])].sum()
    (total / 12).backward()  # 3 + 5 + 2 + 2 response tokens
    torch.testing.assert_close(gradients(packed), gradients(usual), atol=1e-6, rtol=0)


def test_accumulated_microbatches_give_the_gradient_of_one_big_batch() -> None:
    whole, pieces = tiny_model(), tiny_model()
    rows = [[each] for each in EXAMPLES]
    settings = SftSettings(row_tokens=8, rows_per_minibatch=4, rows_per_microbatch=4, prompt_weight=0.3)
    # Rows with 3, 5, 2 and 2 response tokens: a mean per microbatch would weigh them alike and fail here.
    a = accumulate_gradients(whole, rows, settings)
    b = accumulate_gradients(pieces, rows, msgspec.structs.replace(settings, rows_per_microbatch=1))
    assert a == pytest.approx(b, abs=1e-6)
    torch.testing.assert_close(gradients(whole), gradients(pieces), atol=1e-6, rtol=0)


def test_the_loss_of_a_uniform_model_is_the_log_of_the_vocabulary() -> None:
    model = tiny_model(vocab_size=16)
    torch.nn.init.zeros_(model.lm_head.weight)
    loss = accumulate_gradients(model, [EXAMPLES], SftSettings(row_tokens=24))
    assert loss == pytest.approx(math.log(16), abs=1e-6)


def test_the_schedule_climbs_then_falls_along_a_cosine() -> None:
    # 10 minibatches, 2 of warmup: 1/2, 2/2, then (1 + cos(pi k / 8)) / 2 for k = 0..7
    shares = [schedule_share(at, 10, 0.2) for at in range(10)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert shares[6] == pytest.approx(0.5)  # k = 4: cos(pi / 2) = 0
    assert shares[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_the_plan_reads_every_example_once_per_epoch_and_depends_on_the_seed_alone() -> None:
    settings = SftSettings(row_tokens=8, rows_per_minibatch=2, rows_per_microbatch=1, epochs=2, seed=5)
    plan = plan_minibatches(EXAMPLES, settings)
    read = [each for rows in plan for row in rows for each in row]
    assert sorted(each.token_ids for each in read) == sorted(each.token_ids for each in EXAMPLES * 2)
    assert plan_minibatches(EXAMPLES, settings) == plan


def test_a_tiny_model_learns_a_toy_set_and_repeats_it_exactly() -> None:
    first, second = tiny_model(), tiny_model()
    settings = SftSettings(
        learning_rate=1e-2, epochs=60, row_tokens=16, rows_per_minibatch=2, rows_per_microbatch=2, seed=3
    )
    result = train_supervised(first, EXAMPLES, settings)
    again = train_supervised(second, EXAMPLES, settings)
    assert result.losses[0] > 2.0
    assert sum(result.losses[-5:]) / 5 < 0.05
    assert again.losses == result.losses
    greedy = first(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).logits[0].argmax(-1).tolist()
    assert greedy[2:] == [6, 7, 1]


def test_progress_reports_every_minibatch() -> None:
    seen: list[int] = []
    settings = SftSettings(row_tokens=8, rows_per_minibatch=2, rows_per_microbatch=2)
    result = train_supervised(
        tiny_model(),
        EXAMPLES,
        settings,
        on_progress=lambda progress: seen.append(progress.minibatch),
    )
    # four examples of 6, 6, 6 and 4 tokens fill four rows of 8, hence two minibatches of two rows
    assert seen == [1, 2]
    assert result.tokens == 22


def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    before = model.model.embed_tokens.weight.clone()
    with pytest.raises(TrainingError, match="loss nan"):
        train_supervised(model, EXAMPLES, SftSettings(row_tokens=24))
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_settings_that_cannot_train_are_refused_by_name_and_value() -> None:
    with pytest.raises(SettingsError, match=r"learning_rate is 0\.0"):
        SftSettings(learning_rate=0.0)
    with pytest.raises(SettingsError, match="row_tokens is -1"):
        SftSettings(row_tokens=-1)
    with pytest.raises(SettingsError, match=r"prompt_weight is 1\.5"):
        SftSettings(prompt_weight=1.5)


def test_attention_that_let_documents_see_each_other_would_be_noticed() -> None:
    model = tiny_model()
    batch = PackedBatch.of(EXAMPLES, CPU)
    as_one = batch._replace(documents=Documents([len(batch.token_ids)], CPU))
    leaked, right = (next_token_logprobs(model, each) for each in (as_one, batch))
    assert (leaked - right).abs().max() > 1e-2


def test_only_wanted_positions_reach_the_head_and_say_the_same() -> None:
    model = tiny_model()
    batch = PackedBatch.of(EXAMPLES, CPU)
    wanted = batch.weights(0.0) > 0
    torch.testing.assert_close(
        wanted_logprobs(model, batch, wanted), next_token_logprobs(model, batch)[wanted], atol=1e-6, rtol=0
    )
    assert int(wanted.sum()) == 12  # 3 + 5 + 2 + 2 response tokens


def test_a_resumed_run_ends_in_the_same_bits_and_tells_the_same_metrics() -> None:
    settings = SftSettings(learning_rate=1e-2, epochs=6, row_tokens=8, rows_per_minibatch=2, rows_per_microbatch=1)
    whole, broken, kept, told, retold = tiny_model(), tiny_model(), list[TrainingState](), list[Metrics](), []
    first = train_supervised(whole, EXAMPLES, settings, hooks=Hooks(log=told.append, keep=kept.append, keep_every=5))
    assert [state.step for state in kept] == [5, 10]
    second = train_supervised(broken, EXAMPLES, settings, hooks=Hooks(log=retold.append, resume=kept[0]))
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), broken.parameters(), strict=True))
    timed = {"time/step", "tokens_per_s"}
    for ours, theirs in zip(told[5:], retold, strict=True):
        assert {name: ours[name] for name in ours.keys() - timed} == {
            name: theirs[name] for name in ours.keys() - timed
        }


def test_only_what_is_trainable_learns() -> None:
    model = tiny_model()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_supervised(model, EXAMPLES, SftSettings(row_tokens=24, learning_rate=1e-2))
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["lm_head.weight"]


def test_bfloat16_computes_close_by_and_float32_weights_learn() -> None:
    exact, halved = tiny_model(), tiny_model()
    settings = SftSettings(row_tokens=24)
    rows = [[each] for each in EXAMPLES]
    a = accumulate_gradients(exact, rows, settings)
    b = accumulate_gradients(halved, rows, settings, Devices("bfloat16", "cpu"))
    # bfloat16 keeps 8 bits: 2^-8 of a loss near 3 is about 0.01.
    assert b == pytest.approx(a, abs=0.05)
    assert b != a
    assert gradients(halved).dtype == torch.float32
    assert torch.cosine_similarity(gradients(exact), gradients(halved), dim=0) > 0.99


def test_dropout_stays_off() -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    settings = SftSettings(learning_rate=1e-3, row_tokens=24)
    result = train_supervised(model, EXAMPLES, settings)
    plain = train_supervised(tiny_model(), EXAMPLES, settings)
    assert result.losses == plain.losses
