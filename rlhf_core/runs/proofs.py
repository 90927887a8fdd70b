"""Proofs that this installation trains and serves one particular model rightly: each measures one number.

Every check has its negative control, the same measurement of something deliberately wrong, which must not pass: a
check that cannot fail proves nothing. Sources: design/algorithms.md, section 3, A, C and F.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from rlhf_core.engine.agreement import own_logprobs
from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.engine.sequence import Sequence as Answered
from rlhf_core.learning.conversations import SftExample
from rlhf_core.learning.packing import PackedBatch
from rlhf_core.learning.sft_loss import next_token_logprobs
from rlhf_core.models.documents import Documents
from rlhf_core.models.load import LoadedPolicy, probe_prompts
from rlhf_core.records import Sampling

ROUNDING: Final = 1e-3
"""Largest distance of two logprobs that are the same but for rounding, in nats, of a model in float32."""
ANSWER_TOKENS: Final = 24
WRONG_TEMPERATURE: Final = 0.7


@dataclass(frozen=True)
class Proof:
    """One row of the table. It passes when `measured` is at most `bound`; a control passes when it is not."""

    name: str
    measured: float
    bound: float
    control: bool = False

    @property
    def passed(self) -> bool:
        return (self.measured <= self.bound) != self.control


def prove_serving(policy: LoadedPolicy) -> Iterator[Proof]:
    """The engine against `generate()` and against the trainer's own forward pass."""
    answers = greedy_answers(policy)
    yield Proof("engine: greedy answers that differ from generate()", _differing(policy, answers), 0.0)
    yield Proof("engine: logprobs against the trainer's, nats", _against_trainer(policy, answers), ROUNDING)
    yield Proof("  control: the trainer at another temperature", _at_wrong_temperature(policy, answers), ROUNDING, True)


def greedy_answers(policy: LoadedPolicy) -> list[Answered]:
    """The engine's answers to the fixed probe prompts."""
    prompts = probe_prompts(policy.tokenizer)
    longest = max(map(len, prompts)) + ANSWER_TOKENS
    engine = Engine(policy, max_running=4, max_waiting=8, max_context=min(longest, policy.max_context))
    sampling = Sampling(temperature=0.0, max_tokens=ANSWER_TOKENS)
    return engine.generate(
        [GenerationRequest(f"probe-{at}", prompt, sampling, decode_text=False) for at, prompt in enumerate(prompts)]
    )


def _against_trainer(policy: LoadedPolicy, answers: Sequence[Answered]) -> float:
    gaps = [
        abs(own - kept) for each in answers for own, kept in zip(own_logprobs(policy, each), each.logprobs, strict=True)
    ]
    return max(gaps)


def _differing(policy: LoadedPolicy, answers: Sequence[Answered]) -> float:
    """How many answers `generate()` gives otherwise."""
    model: Any = policy.model
    kept = model.generation_config
    # The model's own settings may penalise repetition and the like; what is compared is the model.
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=ANSWER_TOKENS, eos_token_id=sorted(policy.end_token_ids), pad_token_id=0
    )
    try:
        return float(sum(_generated(model, each) != list(each.token_ids) for each in answers))
    finally:
        model.generation_config = kept


@torch.inference_mode()
def _generated(model: Any, answer: Answered) -> list[int]:
    prompt = torch.tensor([answer.request.prompt_token_ids], device=model.device)
    row = model.generate(prompt, attention_mask=torch.ones_like(prompt))
    token_ids: list[int] = row[0, prompt.shape[1] :].tolist()
    return token_ids


@torch.inference_mode()
def _at_wrong_temperature(policy: LoadedPolicy, answers: Sequence[Answered]) -> float:
    gaps = []
    for each in answers:
        prompt = each.request.prompt_token_ids
        token_ids = torch.tensor([[*prompt, *each.token_ids]], device=policy.model.device)
        logits = policy.model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        said = (logits / WRONG_TEMPERATURE).log_softmax(-1).gather(1, token_ids[0, len(prompt) :, None])[:, 0]
        gaps.append(float((said.cpu() - torch.tensor(each.logprobs)).abs().max()))
    return max(gaps)


@torch.no_grad()
def prove_batches(policy: LoadedPolicy) -> Iterator[Proof]:
    """That neither padding nor what lies beside a document changes what the model says of it."""
    documents = probe_documents(policy)
    alone = [_plainly(policy, [each])[0] for each in documents]
    padded = list(_plainly(policy, documents))
    yield Proof("batches: padding changes logprobs by, nats", _furthest(alone, padded), ROUNDING)
    yield Proof(
        "  control: padding on the left, unmasked", _padded_left(policy, documents[0], alone[0]), ROUNDING, True
    )
    whole = PackedBatch.of(documents, policy.model.device)
    as_one = whole._replace(documents=Documents([len(whole.token_ids)], policy.model.device))
    predicted = [len(each.token_ids) - 1 for each in documents]
    packed, leaked = (next_token_logprobs(policy.model, batch).cpu().split(predicted) for batch in (whole, as_one))
    yield Proof("batches: packing changes logprobs by, nats", _furthest(alone, packed), ROUNDING)
    yield Proof("  control: attention across documents", _furthest(alone, leaked), ROUNDING, True)


def probe_documents(policy: LoadedPolicy) -> list[SftExample]:
    """A few fixed documents of different lengths in the model's tokens; the last half of each is its response."""
    lengths = (7, 19, 12)
    source = [token_id for prompt in probe_prompts(policy.tokenizer) for token_id in prompt]
    many = (source * (1 + sum(lengths) // len(source)))[: sum(lengths)]
    documents, start = [], 0
    for length in lengths:
        mask = tuple(at >= length // 2 for at in range(length))
        documents.append(SftExample(tuple(many[start : start + length]), mask))
        start += length
    return documents


def _plainly(policy: LoadedPolicy, documents: Sequence[SftExample]) -> Tensor:
    """[documents, longest - 1] logprobs by the model's own attention, called as usual: padded on the right, masked."""
    rows = [torch.tensor(each.token_ids) for each in documents]
    token_ids = pad_sequence(rows, batch_first=True).to(policy.model.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(policy.model.device)
    logits = policy.model(input_ids=token_ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(2, token_ids[:, 1:, None])[..., 0].cpu()


def _padded_left(policy: LoadedPolicy, document: SftExample, alone: Tensor) -> float:
    """What three tokens of padding before a document do to it when nothing masks them."""
    token_ids = torch.tensor([[0, 0, 0, *document.token_ids]], device=policy.model.device)
    logits = policy.model(input_ids=token_ids, use_cache=False).logits[0, 3:-1].float()
    said = logits.log_softmax(-1).gather(1, token_ids[0, 4:, None])[:, 0].cpu()
    return float((said - alone).abs().max())


def _furthest(alone: Sequence[Tensor], together: Sequence[Tensor]) -> float:
    return max(float((one - other[: len(one)]).abs().max()) for one, other in zip(alone, together, strict=True))
