"""Settings: environment variables named ATTUNE_*, frozen, strict, documented in place.

`load_settings(os.environ)` reads them all; an unknown ATTUNE_ name or a value out of bounds raises SettingsError with
the name and the value. Every process reads the same struct, so a misspelt name stops each of them, not one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rlhf_core.errors import SettingsError

PREFIX = "ATTUNE_"
NOT_SETTINGS = frozenset({"ATTUNE_CI"})
"""Names under the prefix that only the tests read."""

Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]


class Secret(str):
    """A string that does not show itself in logs or reprs. `reveal()` is the only way to read it."""

    __slots__ = ()

    def __new__(cls, value: str = "") -> Secret:
        return super().__new__(cls, value)

    def reveal(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return "Secret('***')" if len(self) else "Secret('')"

    def __str__(self) -> str:
        return "***" if len(self) else ""

    def __format__(self, _spec: str) -> str:
        return str(self)


def _secret() -> Secret:
    return Secret("")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    # Where things are.
    data_dir: str = "./data"
    """Directory of everything that must survive: the append-only file, checkpoints, batches."""
    host: str = "127.0.0.1"
    """Address that the API and the UI bind. Anything but loopback needs ATTUNE_API_KEYS."""
    api_port: Port = 8000
    """Port of the API."""
    ui_port: Port = 7860
    """Port of the chat UI."""
    api_url: str = ""
    """Where the UI and the demo find the API. Empty: http://HOST:API_PORT."""
    redis_url: Secret = msgspec.field(default_factory=_secret)
    """Redis-protocol server with the records. Empty: the embedded one that `make up` starts."""
    redis_port: Port = 6390
    """Port of the embedded Redis-protocol server."""
    broker_url: Secret = msgspec.field(default_factory=_secret)
    """Redis-protocol server for Celery's queues. Empty: the one of ATTUNE_REDIS_URL."""
    # Who may call.
    api_keys: Secret = msgspec.field(default_factory=_secret)
    """Comma-separated bearer keys that the API accepts. Empty: the API is open, on loopback only."""
    api_key: Secret = msgspec.field(default_factory=_secret)
    """The key with which the UI and the demo call the API."""
    moderator_keys: Secret = msgspec.field(default_factory=_secret)
    """Bearer keys of moderators, who read reports and review answers. Empty: nobody may, where API keys are set."""
    # The model and the engine.
    model: str = "desk"
    """First policy: `desk` (bundled), a `transformers` directory, or a hub id. Read while nothing is published."""
    max_running: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Sequences that the engine decodes at once; each has a slot in the KV cache."""
    max_waiting: Annotated[int, Meta(ge=0)] = 128
    """Requests that may wait for a slot; beyond that the API answers 429."""
    stall_seconds: Positive = 30.0
    """A connection whose reader takes nothing for so long, or whose request stays unfinished, is cut off."""
    max_context: Annotated[int, Meta(ge=16)] = 1024
    """Tokens per slot, prompt and answer together; capped by the model's own limit."""
    prefix_cache_tokens: Annotated[int, Meta(ge=0)] = 8192
    """Tokens of earlier prompts whose keys and values are kept for prompts that begin alike. 0: none."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What a step computes in. auto: bfloat16 where the CPU or GPU multiplies it in hardware, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the engine runs. auto: CUDA where there is a device. Training stays on the CPU."""
    serve_threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of the engine. 0: torch's choice."""
    train_threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of a training. 0: torch's choice."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """Seed of training and of answers that name none."""
    # When learning starts.
    reward_min_feedback: Count = 160
    """New judgements that start a reward-model update."""
    ppo_min_feedback: Count = 320
    """New judgements since the last policy training that start a PPO cycle."""
    # Reward model.
    reward_learning_rate: Positive = 2e-4
    """AdamW learning rate of the reward model."""
    reward_epochs: Annotated[int, Meta(ge=0, le=50)] = 2
    """Passes over the feedback that train all weights, after the head alone was fitted. 0: the head alone."""
    reward_batch_size: Count = 16
    """Judgements per optimizer step."""
    # The policy.
    algorithm: Literal["ppo", "rloo", "grpo", "dpo", "online_dpo", "kto", "best_of_n"] = "ppo"
    """ppo, rloo, grpo, online_dpo and best_of_n climb the reward model; dpo learns from choices, kto from thumbs."""
    group_size: Annotated[int, Meta(ge=2)] = 4
    """Responses to one prompt that rloo and grpo compare, and of which best_of_n keeps one."""
    preference_epochs: Count = 2
    """Passes of dpo and kto over the judgements."""
    preference_learning_rate: Positive = 2e-4
    """AdamW learning rate of dpo, online_dpo and kto; falls linearly to 0 within a training."""
    preference_kl_coef: Positive = 0.1
    """Weight of the KL to the supervised policy in what dpo, online_dpo and kto solve."""
    # PPO; what rloo, grpo, online_dpo and best_of_n share with it is read from here as well.
    ppo_updates: Count = 8
    """PPO updates per cycle."""
    ppo_rollouts: Count = 192
    """Responses sampled per update."""
    ppo_epochs: Count = 2
    """Passes over the rollouts of one update."""
    ppo_minibatch_size: Count = 64
    """Responses per optimizer step."""
    ppo_learning_rate: Positive = 1e-4
    """AdamW learning rate of the policy; falls linearly to 0 within a cycle."""
    ppo_kl_coef: NonNegative = 0.05
    """Weight of the per-token KL penalty to the supervised policy."""
    ppo_clip_range: Positive = 0.2
    """Clip of the probability ratio."""
    ppo_value_clip_range: Positive = 0.2
    """Clip of the value update."""
    ppo_value_coef: NonNegative = 0.1
    """Weight of the value loss."""
    ppo_gamma: Fraction = 1.0
    """Discount per token."""
    ppo_gae_lambda: Fraction = 0.95
    """GAE decay."""
    ppo_target_kl: Positive = 0.02
    """An update's epochs stop early when approx_kl passes 1.5 times this (nats per token)."""
    ppo_max_new_tokens: Count = 96
    """Longest rollout."""
    ppo_missing_end_penalty: NonNegative = 1.0
    """Taken off the score of a response that never ends."""
    # The gate.
    gate_kl_budget: Positive = 10.0
    """Largest KL to the supervised policy, nats per response."""
    gate_win_rate: Fraction = 0.55
    """Least win rate of the candidate over the live policy on held-out prompts, by the judging reward model."""
    gate_end_rate: Fraction = 0.95
    """Least share of answers that end by themselves."""
    gate_prompts: Count = 128
    """Held-out prompts that the gate samples."""

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir).expanduser().resolve()

    @property
    def checkpoints_path(self) -> Path:
        return self.data_path / "checkpoints"

    @property
    def batches_path(self) -> Path:
        return self.data_path / "batches"

    @property
    def resolved_api_url(self) -> str:
        return self.api_url.rstrip("/") or self.local_url(self.api_port)

    def local_url(self, port: int) -> str:
        """How this machine reaches what binds ATTUNE_HOST on `port`."""
        return f"http://{_url_host(self.host)}:{port}"

    @property
    def resolved_redis_url(self) -> str:
        """The records' server: the setting, else the address file of the embedded server, else its default address."""
        if self.redis_url:
            return self.redis_url.reveal()
        address = self.data_path / "redis" / "url"
        if address.is_file():
            return address.read_text().strip()
        return f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def resolved_broker_url(self) -> str:
        return self.broker_url.reveal() or self.resolved_redis_url

    @property
    def accepted_keys(self) -> frozenset[str]:
        return _keys(self.api_keys)

    @property
    def moderators(self) -> frozenset[str]:
        return _keys(self.moderator_keys)


def _keys(named: Secret) -> frozenset[str]:
    return frozenset(key.strip() for key in named.reveal().split(",") if key.strip())


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether a bind address reaches this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def setting_names() -> tuple[str, ...]:
    """Every variable, in the order of the struct."""
    return tuple(PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings))


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read and check all ATTUNE_* variables. Raises SettingsError with the name and the value."""
    known = {PREFIX + field.name.upper(): field for field in msgspec.structs.fields(Settings)}
    values: dict[str, Any] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_SETTINGS:
            continue
        if name not in known:
            raise SettingsError(f"unknown setting {name}; the README lists those that exist")
        field = known[name]
        values[field.name] = _convert(name, environ[name], field.type)
    settings = Settings(**values)
    if not is_loopback(settings.host) and not settings.accepted_keys:
        raise SettingsError(
            f"ATTUNE_HOST is {settings.host}, which others can reach: set ATTUNE_API_KEYS, or use 127.0.0.1"
        )
    return settings


def _convert(name: str, text: str, wanted: Any) -> Any:
    if wanted is Secret:
        return Secret(text)
    try:
        return msgspec.convert(text.strip(), wanted, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{name} is {text!r}: {str(error).removesuffix('.')}") from None
