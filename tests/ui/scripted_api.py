"""The HTTP API as a script: real sockets, real event streams, canned answers. For tests of the client and the tabs.

`python -m tests.ui.scripted_api PORT` serves it by hand, to look at the screens without a model.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "Please restart your router, then test the speed again. I have refreshed your line from here."
CHECKS = [
    {
        "name": "win_rate",
        "value": 0.64,
        "bound": 0.5,
        "passed": True,
        "reason": "wins 64 % of held-out prompts",
    },
    {"name": "kl", "value": 3.1, "bound": 10.0, "passed": True, "reason": "3.1 nats from the first policy"},
]
T1, T2, T3 = 1.76e9, 1.7600036e9, 1.7600072e9
FAILED = [{"name": "end_rate", "value": 0.71, "bound": 0.95, "passed": False, "reason": "only 71 % of answers end"}]


class ScriptedApi(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Answering)
        self.pause = 0.0
        """Seconds between two words."""
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        """Method, path, headers (lower case) and body of each request."""
        self.refuse: dict[str, tuple[int, dict[str, Any]]] = {}
        """Path ending to (status, body): refusals."""
        self.break_with: dict[str, Any] | None = None
        """What a chat stream sends instead of its last words, and ends; {} for just ending."""
        self.turns: list[dict[str, Any]] = []
        self.ratings: dict[str, dict[str, Any]] = {}
        self.reports: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] = status()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    server: ScriptedApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, method: str) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((method, self.path, headers, body))
        for ending, (code, refusal) in self.server.refuse.items():
            if self.path.endswith(ending):
                return self._send(code, refusal)
        parts = self.path.strip("/").split("/")
        return self._route(method, parts, body)

    def _route(self, method: str, parts: list[str], body: Any) -> None:
        match (method, *parts[1:]):
            case ("POST", "chat", "completions"):
                self._chat(body)
            case ("GET", "conversations", conversation_id):
                self._send(200, self._conversation(conversation_id))
            case (_, "interactions", interaction_id, "rating"):
                self._rating(method, interaction_id, body)
            case ("POST", "interactions", interaction_id, "reports"):
                self.server.reports[interaction_id] = body
                self._send(202, body)
            case ("DELETE", "interactions", interaction_id, "reports"):
                self.server.reports.pop(interaction_id, None)
                self._send(204, None)
            case ("POST", "comparisons"):
                self._send(201, {"comparison_id": "cmp-1", "slots": ["left", "right"]})
            case ("GET", "comparisons", _, "events"):
                self._compare()
            case ("PUT", "comparisons", _, "choice"):
                sides = {
                    "left": {"interaction_id": "a", "policy_version": 3},
                    "right": {"interaction_id": "b", "policy_version": 2},
                }
                self._send(200, {"event_id": "e1", "choice": body["choice"], "revealed": sides})
            case ("GET", "status"):
                self._send(200, self.server.status)
            case _:
                self._send(404, {"title": "Not Found", "status": 404, "detail": f"no such thing: {self.path}"})

    def _chat(self, body: dict[str, Any]) -> None:
        interaction_id = f"chatcmpl-{len(self.server.turns):04d}"
        prompt = body["messages"][-1]["content"]
        answer = prompt.removeprefix("say ") if prompt.startswith("say ") else ANSWER
        turn: dict[str, Any] = {
            "interaction_id": interaction_id, "messages": body["messages"], "response": answer, "status": "done",
            "policy_version": 3, "created_at": 1.0, "cid": body.get("metadata", {}).get("conversation_id"),
        }  # fmt: skip
        self.server.turns.append(turn)
        head = {"id": interaction_id, "model": "policy@3"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": answer}
            return self._send(200, head | {"choices": [{"message": message, "finish_reason": "stop"}]})
        pieces = [piece for word in answer.split(" ") for piece in (word, " ")][:-1]
        chunks: list[dict[str, Any]] = [
            head | {"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces
        ]
        chunks.append(head | {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        if self.server.break_with is not None:
            chunks = [chunks[0], *([self.server.break_with] if self.server.break_with else [])]
        extra = {"x-interaction-id": interaction_id, "x-policy-version": "3"}
        return self._stream([*map(json.dumps, chunks), "[DONE]"], extra)

    def _conversation(self, conversation_id: str) -> dict[str, Any]:
        mine = [turn for turn in self.server.turns if turn["cid"] == conversation_id]
        none: dict[str, Any] = {"state": None, "reasons": [], "comment": ""}
        rated: list[dict[str, Any]] = [
            turn
            | {
                "rating": self.server.ratings.get(turn["interaction_id"], none),
                "report": self.server.reports.get(turn["interaction_id"]),
            }
            for turn in mine
        ]
        return {"conversation_id": conversation_id, "interactions": rated}

    def _rating(self, method: str, interaction_id: str, body: Any) -> None:
        ratings = self.server.ratings
        if method == "PUT":
            first = interaction_id not in ratings
            ratings[interaction_id] = {
                "state": body["value"], "reasons": body.get("reasons", []), "comment": body.get("comment", ""),
                "event_id": "e1",
            }  # fmt: skip
            counted = {"training": True, "stats": True}
            reply = {"event_id": "e1", "state": body["value"], "policy_version": 3, "counted": counted}
            self._send(201 if first else 200, reply)
        elif method == "DELETE":
            ratings.pop(interaction_id, None)
            self._send(204, None)
        else:
            none: dict[str, Any] = {"state": None, "reasons": [], "comment": "", "event_id": None}
            self._send(200, ratings.get(interaction_id, none))

    def _compare(self) -> None:
        events: list[dict[str, Any]] = []
        for word in ANSWER.split():
            events += [{"slot": "left", "delta": word + " "}, {"slot": "right", "delta": word.upper() + " "}]
        events += [{"slot": side, "finish_reason": "stop"} for side in ("left", "right")] + [{"done": True}]
        self._stream([json.dumps(event) for event in events], {})

    def _send(self, code: int, body: Any) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, events: list[str], headers: dict[str, str]) -> None:
        self.close_connection = True
        self.send_response(200)
        for name, value in ({"content-type": "text/event-stream", "connection": "close"} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for event in events:
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
                time.sleep(self.server.pause)
        except OSError:
            return


def status() -> dict[str, Any]:
    """Three versions, one rejected candidate, no training running."""
    gate = {"accepted": True, "checks": CHECKS, "metrics": {"ref_kl": 3.1, "reward_accuracy": 0.81}}
    versions = [
        {"policy_version": 1, "checkpoint_id": "desk", "published_at": T1, "reason": "first start"},
        {"policy_version": 2, "checkpoint_id": "c2", "published_at": T2, "reason": "accepted", "served_at": T2 + 2,
         "last_feedback_at": T2 - 100, "gate": gate},
        {"policy_version": 3, "checkpoint_id": "c3", "published_at": T3, "reason": "accepted", "served_at": T3 + 2,
         "last_feedback_at": T3 - 60, "gate": gate, "metrics": {"ref_kl": 4.9, "reward_accuracy": 0.84}},
    ]  # fmt: skip
    approval = [
        {"policy_version": 1, "up": 61, "down": 59, "n": 120, "value": 0.508, "lo": 0.42, "hi": 0.596},
        {"policy_version": 2, "up": 80, "down": 40, "n": 120, "value": 0.667, "lo": 0.578, "hi": 0.745},
        {"policy_version": 3, "up": 3, "down": 1, "n": 4, "value": 0.75, "lo": 0.3, "hi": 0.954},
    ]
    needed = {
        "unread": 37,
        "reward_min": 120,
        "until_reward": 83,
        "since_policy": 37,
        "ppo_min": 240,
        "until_policy": 203,
    }
    rejected = {
        "job_id": "j3", "kind": "policy", "state": "rejected", "started_at": 1.76001e9, "finished_at": 1.76001e9 + 95,
        "gate": {"accepted": False, "checks": FAILED},
    }  # fmt: skip
    live = {"policy_version": 3, "checkpoint_id": "c3", "published_at": T3, "since": T3 + 2}
    return {
        "live": live, "serving": {"policy_version": 3}, "feedback": needed, "training": None, "last_job": rejected,
        "approval": approval, "versions": versions, "reward": {"accuracy": 0.84}, "rejected": [rejected],
    }  # fmt: skip


@contextmanager
def scripted_api(port: int = 0) -> Iterator[ScriptedApi]:
    server = ScriptedApi(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


if __name__ == "__main__":
    with scripted_api(int(sys.argv[1])) as running:
        running.pause = 0.03
        threading.Event().wait()
