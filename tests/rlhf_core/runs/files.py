"""Small data files for the tests of the commands."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def demonstration(question: str = "hello", answer: str = "hi there", **more: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        **more,
    }


def demonstrations(path: Path, count: int = 24) -> Path:
    """Conversations of different lengths."""
    words = ["the", "router", "is", "slow", "again", "and", "my", "order", "waits"]
    return write_jsonl(
        path,
        (demonstration(" ".join(words[: 1 + at % 7]), " ".join(words[at % 3 : 4 + at % 5])) for at in range(count)),
    )


VOWELS = "tests.rlhf_core.runs.files:reward"
"""`--reward` as the tests type it."""


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(response.count("e")) for response in responses]


def write_prompts(directory: Path) -> Path:
    prompts = ("why is my order late", "is the router slow", "is the fox quick")
    return write_jsonl(directory / "prompts.jsonl", ({"prompt": prompt} for prompt in prompts))


def metrics(out: Path) -> list[dict[str, float]]:
    """What a run logged."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
