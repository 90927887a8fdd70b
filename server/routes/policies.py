"""The ledger of published policies. Publishing and rolling back stay on the command line."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import Response, get

from rlhf_core.store.policies import PolicyStore
from server.routes.feedback import as_json


@get("/policies")
async def list_policies(policies: PolicyStore) -> Response[bytes]:
    """Every publication, oldest first, with its gate report."""
    ledger = await asyncio.to_thread(policies.ledger)
    return as_json({"policies": [msgspec.to_builtins(version) for version in ledger]})


ROUTES = (list_policies,)
