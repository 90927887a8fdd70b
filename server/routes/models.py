"""The policies that new answers can start on, under the names by which clients ask for them."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Response, get

from server.errors import UnknownModelError
from server.serving import Serving

LIVE = "live"


@get("/models")
async def list_models(serving: Serving) -> Response[bytes]:
    """The live alias first: load generators take the first name."""
    body = {"object": "list", "data": [_model(name, serving) for name in _names(serving)]}
    return Response(msgspec.json.encode(body), media_type="application/json")


@get("/models/{name:str}")
async def retrieve_model(name: str, serving: Serving) -> Response[bytes]:
    check_model(name, serving)
    return Response(msgspec.json.encode(_model(name, serving)), media_type="application/json")


def check_model(name: str | None, serving: Serving) -> None:
    """Raises UnknownModelError unless new answers can start under that name."""
    if name is not None and name not in _names(serving):
        listed = ", ".join(_names(serving))
        raise UnknownModelError(f"no model {name[:80]!r} is resident here; there are {listed}")


def check_answers(name: str | None, model: str) -> None:
    """A swap may come between the check and the first token: a version asked for by number is then gone."""
    if name not in (None, LIVE, model):
        raise UnknownModelError(f"the policy moved on to {model} before {name} could answer")


def _names(serving: Serving) -> tuple[str, str]:
    return LIVE, f"policy@{serving.policy.policy_version}"


def _model(name: str, serving: Serving) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "attune",
        "max_model_len": serving.max_context,
    }


ROUTES = (list_models, retrieve_model)
