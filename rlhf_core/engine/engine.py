"""Continuous batching: schedule, run, commit.

`step` advances every running sequence by one token and reads some waiting prompts, in one forward per
resident weight set. A sequence belongs to the policy that was active when its first token was scheduled and
finishes there; `swap` puts a new policy in front between two steps, and the old one leaves when its last
sequence ends. Serves, and makes rollouts.

Not thread-safe: one thread owns an engine. Knows nothing of HTTP, clocks or stores.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

import torch

from rlhf_core.engine.agreement import require_agreement
from rlhf_core.engine.pacing import Pacing
from rlhf_core.engine.runner import Runner
from rlhf_core.engine.sampling import sample
from rlhf_core.engine.scheduler import Lane, Plan, Scheduler
from rlhf_core.engine.sequence import NO_TOKEN, GenerationRequest, Sequence, StepOutput, TopLogprobs
from rlhf_core.engine.text import Decode, TextStream, text_decoder
from rlhf_core.errors import ConflictError, ContextOverflowError, InvalidRequestError, ModelError
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import FinishReason, Sampling

PROBE_TOKENS = 4
PROBE_PART = 8
"""Prompt tokens a step in a probe: prompts are read in parts, beside answers that already run."""


class Engine:
    """Generates for many requests at once from one policy, or from two while one drains.

    Memory beside the weights: per weight set, keys and values of `max_running` x `max_context` tokens at most,
    and of `max_prefix_tokens` of ended conversations. `max_prefill_tokens` bounds the prompt tokens of a step, and
    so how long a long prompt can hold up running answers; with a `clock` (seconds) they are also paced, so that a
    prompt slows running answers down by a factor, not by its length.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        *,
        max_running: int,
        max_waiting: int,
        max_context: int,
        seed: int = 0,
        max_prefill_tokens: int = 512,
        max_prefix_tokens: int = 0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.max_context = min(max_context, policy.max_context)
        self._max_running = max_running
        self._scheduler = Scheduler(
            policy, max_running=max_running, max_waiting=max_waiting, max_prefix_tokens=max_prefix_tokens
        )
        self._max_prefill_tokens = max_prefill_tokens
        self._clock = clock
        self._pacing = Pacing(max_prefill_tokens)
        self._runners: dict[Lane, Runner] = {self._scheduler.active: self._runner(policy)}
        self._sequences: dict[str, Sequence] = {}
        self._random = random.Random(seed)
        self._decode: Decode = text_decoder(policy.tokenizer)

    @property
    def active(self) -> LoadedPolicy:
        return self._scheduler.active.policy

    @property
    def draining(self) -> LoadedPolicy | None:
        return self._scheduler.draining.policy if self._scheduler.draining else None

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def cached_tokens(self) -> int:
        """Tokens with keys and values in the caches; `max_running * max_context` is full."""
        return sum(sequence.cached for sequence in self._sequences.values())

    def submit(self, request: GenerationRequest) -> Sequence:
        """Queue a request; max_tokens is cut to what the context holds.

        Raises OverloadedError when the queue is full, ContextOverflowError when the prompt leaves no room for
        one token, InvalidRequestError for an empty prompt, a token that does not exist or less than one token
        to draw, ConflictError when that request id is in the engine.
        """
        self._check(request)
        wants_text = request.decode_text or bool(request.sampling.stop)
        sequence = Sequence(
            request=request,
            max_tokens=min(request.sampling.max_tokens, self.max_context - len(request.prompt_token_ids)),
            stream=TextStream(self._decode, request.sampling.stop) if wants_text else None,
            uniforms=None if request.sampling.seed is None else random.Random(request.sampling.seed),
        )
        self._scheduler.submit(sequence)
        self._sequences[request.request_id] = sequence
        return sequence

    def _check(self, request: GenerationRequest) -> None:
        prompt = request.prompt_token_ids
        if len(prompt) + 1 > self.max_context:
            raise ContextOverflowError(len(prompt), self.max_context)
        if not prompt or min(prompt) < 0 or max(prompt) >= self.active.vocab_size:
            raise InvalidRequestError(
                "the prompt is empty or has a token that the model does not know", param="messages"
            )
        if request.sampling.max_tokens < 1:
            raise InvalidRequestError(f"max_tokens is {request.sampling.max_tokens}, not 1 or more", param="max_tokens")
        if request.request_id in self._sequences:
            raise ConflictError(f"request {request.request_id} is already in the engine")

    def abort(self, request_id: str) -> bool:
        """Drop a request, waiting or running; its slot is free at once. False when it is not (any longer) here."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        if sequence.status == "waiting":
            self._scheduler.waiting.remove(sequence)
            del self._sequences[request_id]
        else:
            self._release(sequence)
            self._drop_drained()
        sequence.status = "aborted"
        return True

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """One token for every running sequence; one output per sequence that drew a token or failed.

        Should a forward raise, nothing of it is committed and the step can be tried again.
        """
        outputs: list[StepOutput] = []
        scheduler, decoding = self._scheduler, self._scheduler.decoding
        budget = self._max_prefill_tokens
        started = 0.0
        if self._clock is not None:
            budget = self._pacing.budget(decoding=decoding, prompts=scheduler.unread)
            started = self._clock()
        plans = scheduler.schedule(budget)
        for plan in plans:
            outputs += self._advance(plan)
        if self._clock is not None:
            prompt_tokens = sum(plan.prompt_tokens for plan in plans)
            self._pacing.note(self._clock() - started, decoding=decoding, prompt_tokens=prompt_tokens)
        self._drop_drained()
        return outputs

    def _advance(self, plan: Plan) -> list[StepOutput]:
        drawing = plan.drawing
        runner = self._runners[plan.lane]
        for reuse in plan.reuses:
            runner.cache.copy_in(reuse.slot, reuse.saved, reuse.length)
        logits = runner.forward(plan)
        plan.commit()
        if not drawing:
            return []
        try:
            draws = sample(logits, drawing, self._random, by_kernel=runner.by_kernel)
        except ModelError as error:
            return self._fail(plan.lane, str(error))
        rows = zip(drawing, draws.token_ids, draws.logprobs, draws.top, strict=True)
        return [self._commit(*row) for row in rows]

    def _commit(self, sequence: Sequence, token_id: int, logprob: float, top: TopLogprobs) -> StepOutput:
        sequence.token_ids.append(token_id)
        sequence.logprobs.append(logprob)
        assert sequence.policy is not None, "a scheduled sequence is pinned to a policy"
        ended = token_id in sequence.policy.end_token_ids and not sequence.request.ignore_end
        stream = sequence.stream
        text = "" if stream is None or ended else stream.push(token_id)
        sequence.finish_reason = _finish_reason(sequence, ended)
        if finished := sequence.finish_reason is not None:
            text += stream.finish() if stream else ""
            if stream and stream.stopped:
                sequence.finish_reason = "stop"
            self._keep_prefix(sequence)
            self._release(sequence)
            sequence.status = "finished"
        sequence.text += text
        return StepOutput(sequence, token_id, logprob, text, finished, top)

    def _keep_prefix(self, sequence: Sequence) -> None:
        """What was said may be how the next prompt begins; after a swap, nobody will ask the old policy again."""
        lane = self._scheduler.active
        if sequence.policy is not lane.policy:
            return
        slot, cache = lane.running.index(sequence), self._runners[lane].cache
        token_ids = (*sequence.request.prompt_token_ids, *sequence.token_ids)[: sequence.cached]
        lane.prefixes.keep(token_ids, lambda length: cache.copy_out(slot, length))

    def _fail(self, lane: Lane, reason: str) -> list[StepOutput]:
        """End every sequence of a weight set that can no longer be trusted, and forget its keys and values."""
        failed = list(lane.running)
        for sequence in failed:
            self._release(sequence)
            sequence.status = "failed"
            sequence.error = reason
        self._runners[lane].clear()
        lane.prefixes.clear()
        return [StepOutput(sequence, NO_TOKEN, 0.0, "", True) for sequence in failed]

    def _release(self, sequence: Sequence) -> None:
        lane, moves = self._scheduler.remove(sequence)
        for source, target in moves:
            self._runners[lane].cache.move(source, target, lane.running[target].cached)
        del self._sequences[sequence.request.request_id]

    def _drop_drained(self) -> None:
        if lane := self._scheduler.drop_drained():
            del self._runners[lane]

    def swap(self, policy: LoadedPolicy) -> None:
        """Requests that are not running yet start on `policy`; running ones finish where they are. Takes no
        time.

        Raises ConflictError while answers of an earlier swap still run, ModelError when `policy` cannot take
        over this engine's requests.
        """
        if policy.vocab_size != self.active.vocab_size:
            raise ModelError(f"the policy has {policy.vocab_size} tokens, the one in service {self.active.vocab_size}")
        if policy.max_context < self.max_context:
            raise ModelError(f"the policy's context of {policy.max_context} is below the engine's {self.max_context}")
        previous = self._scheduler.active
        self._scheduler.swap(policy)
        if self._scheduler.draining is not previous:
            del self._runners[previous]
        self._runners[self._scheduler.active] = self._runner(policy)

    def _runner(self, policy: LoadedPolicy) -> Runner:
        return Runner(policy, slots=self._max_running, max_context=self.max_context)

    def generate(self, requests: Iterable[GenerationRequest]) -> list[Sequence]:
        """Run requests to their ends, in their order. For an engine that nobody else is waiting for: the memory of keys
        and values is given back until the next ones come, since whoever samples to train needs it in between.

        Raises ModelError when one of them failed.
        """
        pending = deque(requests)
        sequences = []
        while pending or self.has_work:
            while pending and self._scheduler.has_room:
                sequences.append(self.submit(pending.popleft()))
            for output in self.step():
                if output.sequence.status == "failed":
                    raise ModelError(output.sequence.error)
        for runner in self._runners.values():
            runner.rest()
        return sequences


def _finish_reason(sequence: Sequence, ended: bool) -> FinishReason | None:
    if ended or (sequence.stream is not None and sequence.stream.stopped):
        return "stop"
    return "length" if len(sequence.token_ids) >= sequence.max_tokens else None


def probe(policy: LoadedPolicy, prompts: Rows[tuple[int, ...]]) -> None:
    """Answer a few prompts greedily in an engine of its own, before a policy takes traffic.

    Touches no other engine, so it can run beside one in another thread. Raises ModelError when logits are not
    finite, or when the engine's probabilities are not those of the model called as usual.
    """
    context = max(len(prompt) for prompt in prompts) + PROBE_TOKENS
    engine = Engine(policy, max_running=len(prompts), max_waiting=0, max_context=context, max_prefill_tokens=PROBE_PART)
    sampling = Sampling(temperature=0.0, max_tokens=PROBE_TOKENS)
    sequences = engine.generate(
        GenerationRequest(f"probe-{number}", prompt, sampling, decode_text=False, ignore_end=True)
        for number, prompt in enumerate(prompts)
    )
    require_agreement(policy, sequences)
