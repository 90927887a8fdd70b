"""The bench measures what it says: the client against a scripted server, the figures by hand, one small run of all."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch

from rlhf_core.errors import AttuneError
from rlhf_core.models.load import load_policy, render_prompt
from rlhf_core.records import Message
from server.bench.__main__ import main
from server.bench.client import Heard, User, events
from server.bench.figures import quantile, speed_of
from server.bench.models import BenchModel, make_model, prompts, without_end
from server.bench.servers import RIVALS, started
from server.bench.speed import report_rival
from server.bench.swaps import SwapRun, by_version, largest_gap, memory, mixed

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-policy-version: 7\r\ntransfer-encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"
SMALL_SHAPE = {
    "vocab_size": 2_048,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


def chunk(*payloads: str) -> bytes:
    """Events in one chunk of a response."""
    body = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def said(text: str, fingerprint: str = "policy-7-abc") -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}], "system_fingerprint": fingerprint})


ROLE = json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """A server that reads each request and writes what the script does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                await reader.readexactly(int(head.partition("content-length: ")[2].split("\r\n")[0]))
                await script(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def asked(script: Script, times: int = 1) -> list[Heard]:
    """What one user hears from the script, asking `times` on end."""

    async def talk() -> list[Heard]:
        async with scripted(script) as url:
            user = User(url, {"max_tokens": 2})
            for _ in range(times):
                await user.ask([{"role": "user", "content": "hello"}])
            user.leave()
        return [heard.read() for heard in user.heard]

    return asyncio.run(talk())


def test_an_answer_is_read_from_whatever_pieces_it_comes_in() -> None:
    whole = HEAD + chunk(ROLE) + chunk(said("Hel")) + chunk(said('lo\ndata: "x"'), USAGE, "[DONE]") + END

    async def one_byte_at_a_time(writer: asyncio.StreamWriter) -> None:
        for start in range(len(whole)):
            writer.write(whole[start : start + 1])
            if start % 50 == 0:
                await asyncio.sleep(0)

    heard = asked(one_byte_at_a_time)[0]
    assert heard.error == ""
    assert heard.text == 'Hello\ndata: "x"'
    # The role, the usage and the end bear no text.
    assert len(heard.frames) == 2
    assert heard.usage.completion_tokens == 2
    assert heard.version == "7"
    assert heard.sent_at < heard.frames[0] <= heard.frames[1] <= heard.ended_at


def test_a_connection_serves_one_answer_after_another() -> None:
    async def at_once(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(said("a")) + chunk(said("b"), USAGE, "[DONE]") + END)

    answers = asked(at_once, times=3)
    assert [heard.text for heard in answers] == ["ab"] * 3
    assert not any(heard.error for heard in answers)


def test_each_event_bears_the_time_at_which_its_last_byte_came() -> None:
    first, second = chunk(said("a")), chunk(said("b"))
    pieces = [(1.0, HEAD + first[:9]), (2.0, first[9:] + second[:5]), (3.0, second[5:]), (4.0, END)]
    assert [at for at, _ in events(pieces)] == [2.0, 3.0]


def test_a_stream_that_breaks_is_cut_and_a_refusal_is_not() -> None:
    async def broken(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(said("a")))
        await writer.drain()
        writer.close()

    async def refused(writer: asyncio.StreamWriter) -> None:
        body = b'{"error": "busy"}'
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

    async def unfinished(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(said("a")) + END)

    cut, busy, short = asked(broken)[0], asked(refused)[0], asked(unfinished)[0]
    assert cut.cut
    assert "the connection broke" in cut.error
    assert not busy.cut
    assert busy.error == 'status 429: {"error": "busy"}' or "busy" in busy.error
    assert short.cut
    assert short.error == "the stream ended without its end"


def test_an_error_inside_a_stream_counts_as_one() -> None:
    async def failing(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(said("a"), '{"error": {"message": "lost"}}', "[DONE]") + END)

    heard = asked(failing)[0]
    assert heard.cut
    assert "lost" in heard.error


def answer(frames: Sequence[float], tokens: int = 0, version: str = "1", **fields: object) -> Heard:
    heard = Heard(0.0, ended_at=frames[-1], status=200, version=version, frames=list(frames))
    heard.usage.completion_tokens = tokens or len(frames)
    heard.fingerprints = {f"policy-{version}-abc"}
    for name, value in fields.items():
        setattr(heard, name, value)
    return heard


def test_the_speed_is_all_tokens_over_the_time_of_all() -> None:
    speed = speed_of([answer([0.1, 0.2, 0.4]), answer([0.3, 0.5, 2.0], tokens=9)], users=2)
    # 3 + 9 tokens in the 2 s from the first request to the last end; six frames bore them.
    assert speed.tokens_per_second == pytest.approx(6.0)
    assert speed.tokens_per_frame == pytest.approx(2.0)
    # First tokens after 100 and 300 ms; gaps of 100, 200, 200 and 1500 ms.
    assert speed.first[0] == pytest.approx(200.0)
    assert speed.between[0] == pytest.approx(200.0)
    # Position 0.99 * 3 = 2.97 of the sorted gaps: 200 + 0.97 * 1300.
    assert speed.between[1] == pytest.approx(1461.0)


def test_no_speed_is_reported_of_answers_that_failed() -> None:
    with pytest.raises(AttuneError, match="1 of 2 answers failed: lost"):
        speed_of([answer([0.1]), answer([0.1], error="lost")], users=2)


def test_a_single_gap_is_its_own_quantile() -> None:
    assert quantile([0.5], 99) == 500.0


def test_the_gap_of_a_swap_is_the_largest_that_touches_a_flip() -> None:
    heard = [answer([1.0, 1.1, 4.0, 4.2, 9.0])]
    # Around 5 s, from 4 to 6: the gap of 4.8 s from 4.2 touches it, that of 2.9 s which ended at 4.0 does not.
    assert largest_gap(heard, [5.0]) == pytest.approx(4.8)
    assert largest_gap(heard, [2.1]) == pytest.approx(2.9)
    assert largest_gap(heard, []) == 0.0


def test_an_answer_of_two_versions_is_found() -> None:
    pure, two = answer([1.0]), answer([1.0], fingerprints={"policy-1-abc", "policy-2-def"})
    other = answer([1.0], fingerprints={"policy-2-def"})
    nameless = answer([1.0], fingerprints=set())
    assert mixed([pure]) == 0
    assert mixed([pure, two, other]) == 2
    assert mixed([nameless]) == 1


def test_answers_are_counted_by_version_in_their_order() -> None:
    assert by_version([answer([1.0], version=version) for version in ("10", "9", "10")]) == "9:1 10:2"


def test_memory_is_told_before_after_the_fifth_and_the_last_swap_and_idle() -> None:
    # Before, after each of six swaps, idle.
    run = SwapRun(flips=[1.0] * 6, resident=[mebi * 2**20 for mebi in (100, 1, 2, 3, 4, 150, 160, 140)])
    assert memory(run) == "100 MiB before, 150 after swap 5, 160 after swap 6, 140 idle"
    few = SwapRun(flips=[1.0] * 2, resident=[mebi * 2**20 for mebi in (100, 110, 120, 90)])
    assert memory(few) == "100 MiB before, 120 after swap 2, 120 after swap 2, 90 idle"


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    directory = make_model(tmp_path_factory.mktemp("bench") / "model", SMALL_SHAPE, dtype=torch.float32)
    tokenizer = load_policy(directory).tokenizer
    return BenchModel("small", directory, tokenizer, 1, "float32", "float32", 256)


def test_the_made_model_has_a_text_for_every_token(small_model: BenchModel) -> None:
    assert len(small_model.tokenizer) == SMALL_SHAPE["vocab_size"]
    assert all(small_model.tokenizer.decode([token_id]) for token_id in range(300, 2_048))


def test_prompts_have_the_tokens_asked_for_and_differ_from_the_start(small_model: BenchModel) -> None:
    texts = list(islice(prompts(small_model.tokenizer, 100, seed=3), 50))
    sizes = [len(render_prompt(small_model.tokenizer, [Message("user", text)])) for text in texts]
    assert all(90 <= size <= 100 for size in sizes)
    assert len({" ".join(text.split()[:3]) for text in texts}) == 50
    assert texts == list(islice(prompts(small_model.tokenizer, 100, seed=3), 50))


def test_the_endless_copy_names_no_end(small_model: BenchModel, tmp_path: Path) -> None:
    endless = without_end(small_model, tmp_path / "endless")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((endless / name).read_text())["eos_token_id"] is None
    assert json.loads((small_model.directory / "config.json").read_text())["eos_token_id"] == 1


def test_a_rival_that_is_absent_or_fails_is_named_and_passed_over(
    small_model: BenchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = RIVALS[0]
    monkeypatch.setenv("VLLM", str(tmp_path / "nowhere"))
    report_rival(vllm, small_model, tmp_path, {1: 1}, 8, {1: 1.0})
    broken = tmp_path / "vllm"
    broken.write_text("#!/bin/sh\necho starting\necho 'ImportError: undefined symbol'\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("VLLM", str(broken))
    report_rival(vllm, small_model, tmp_path / "second", {1: 1}, 8, {1: 1.0})
    absent, failed = capsys.readouterr().out.splitlines()
    assert absent.split(None, 1) == ["vLLM", "not installed (looked for `vllm` and $VLLM)"]
    assert "ended with status 3: ImportError: undefined symbol" in failed


def test_a_server_that_ends_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(AttuneError, match="x ended with status 0: it said nothing"):
        with started("x", lambda _: ["true"], {"PATH": "/usr/bin:/bin"}, "/health", tmp_path / "log"):
            pass


def test_a_server_is_ready_once_it_says_so_even_without_a_word(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Quiet(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200 if self.path == '/health' else 404)\n"
        "        self.send_header('content-length', '0')\n"
        "        self.end_headers()\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), Quiet).serve_forever()\n"
    )

    def command(port: int) -> list[str]:
        return [sys.executable, "-c", program, str(port)]

    with started("x", command, {}, "/health", tmp_path / "log") as (_, process):
        assert process.poll() is None
    assert process.poll() is not None


def test_the_quick_bench_runs_every_section(small_model: BenchModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--no-rivals", "--model", str(small_model.directory)]) == 0
    told = capsys.readouterr().out
    assert "prompt of 240 tokens enters beside 8 streams" in told
    assert "2 swaps of full weights under 8 streams" in told
    assert "0 errors, 0 cut streams, 0 of mixed versions" in told


def test_a_model_that_is_none_ends_the_bench_with_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "/nowhere/at/all"]) == 2
    assert "neither `desk`, nor a directory" in capsys.readouterr().err
