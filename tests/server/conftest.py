"""Real server processes: one that most tests share, and stores and models for those that need their own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis

from rlhf_core.checkpoints import checkpoint_path, new_checkpoint_id, seal
from rlhf_core.records import Interaction, PolicyVersion
from rlhf_core.store.connection import connect
from rlhf_core.store.embedded import EmbeddedServer, start_embedded
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.policies import PolicyStore
from tests.conftest import MakeTinyModel
from tests.running import RunningServer, free_port, running_server
from tests.server.saying import make_saying_model_in

LONG_CONTEXT = 16384


@dataclass(frozen=True)
class Site:
    """A server with its store, as a test sees it: by HTTP, and by looking into the records."""

    server: RunningServer
    store: EmbeddedServer
    http: httpx.Client
    redis: redis.Redis

    @property
    def interactions(self) -> InteractionStore:
        return InteractionStore(self.redis)

    @property
    def policies(self) -> PolicyStore:
        return PolicyStore(self.redis)

    def chat(self, content: str = "hello", **fields: object) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=chat_body(content, **fields))

    def metric(self, series: str) -> float:
        """Value of one line of /metrics, named with its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} "))

    def publish(self, model: Path, spoil: Callable[[Path], None] | None = None) -> PolicyVersion:
        """Seal a model, spoil the sealed directory if asked to, and make it live."""
        root = self.server.data_dir / "checkpoints"
        fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": time.time()}
        manifest = seal(root, lambda directory: copy_model(model, directory), fields)
        if spoil:
            spoil(checkpoint_path(root, manifest.checkpoint_id))
        return self.policies.publish(
            checkpoint_id=manifest.checkpoint_id,
            weights_sha256=manifest.weights_sha256,
            actor="operator",
            reason="test",
            now=time.time(),
            expected_version=self.policies.live_version(),
        )

    def ended(self, interaction_id: str) -> Interaction:
        """The interaction once it streams no more."""
        eventually(lambda: self.interactions.get(interaction_id).status != "streaming")
        return self.interactions.get(interaction_id)


def chat_body(content: str = "hello", **fields: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **fields}


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another process is about to do."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def sse(lines: Iterator[str]) -> Iterator[str]:
    """The payloads of a stream of server-sent events."""
    return (line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def copy_model(source: Path, destination: Path) -> None:
    for path in source.iterdir():
        shutil.copyfile(path, destination / path.name)


def with_long_context(model: Path) -> Path:
    """Let a tiny model speak long enough to watch: rotary positions need no weights."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": LONG_CONTEXT}))
    return model


@pytest.fixture(scope="session")
def long_model_dir(make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_long_context(make_tiny_model(tmp_path_factory.mktemp("long") / "model"))


@pytest.fixture(scope="session")
def other_long_model_dir(make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape with other weights."""
    return with_long_context(make_tiny_model(tmp_path_factory.mktemp("long") / "other", seed=1))


@pytest.fixture(scope="session")
def site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The shared server. Tests leave its policy alone."""
    yield from run_site(long_model_dir, tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def narrow_site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with one slot and one place to wait. Tests leave it idle."""
    yield from run_site(long_model_dir, tmp_path_factory.mktemp("narrow"), max_running=1, max_waiting=1)


@pytest.fixture(scope="session")
def saying_site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose policy says SAID, and nothing else. Tests leave its policy alone."""
    directory = tmp_path_factory.mktemp("saying")
    yield from run_site(make_saying_model_in(directory / "model", long_model_dir), directory, max_context=64)


@pytest.fixture(scope="module")
def swap_site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose policy the tests change."""
    yield from run_site(long_model_dir, tmp_path_factory.mktemp("swap"))


def run_site(model: Path, directory: Path, **settings: object) -> Iterator[Site]:
    settings = {"max_running": 4, "max_context": LONG_CONTEXT, **settings}
    with (
        start_embedded(directory / "store", free_port()) as store,
        running_server(directory / "data", store.url, model, **settings) as server,
        httpx.Client(base_url=server.url, timeout=60.0) as http,
    ):
        client = connect(store.url)
        yield Site(server, store, http, client)
        client.connection_pool.disconnect()
