"""Status, probes, metrics, keys."""

from __future__ import annotations

import httpx
import pytest
from litestar import Litestar, get
from litestar.testing import TestClient

from rlhf_core.records import Approval
from rlhf_core.settings import load_settings
from server.app import require_key, require_moderator
from server.errors import respond
from server.routes.status import approval_body
from tests.server.conftest import Site


def test_the_status_shows_the_loop(site: Site) -> None:
    before = site.http.get("/v1/status").json()
    rated = site.chat(user="counted").headers["x-interaction-id"]
    site.http.put(f"/v1/interactions/{rated}/rating", json={"value": "up"})
    status = site.http.get("/v1/status").json()
    assert status["live"]["policy_version"] == status["serving"]["policy_version"] == 1
    assert status["feedback"]["unread"] == before["feedback"]["unread"] + 1
    assert status["feedback"]["until_reward"] == before["feedback"]["until_reward"] - 1
    assert status["approval"][0]["up"] >= 1
    assert (status["training"], status["rejected"], status["reward"]) == (None, [], {})
    assert status["versions"][0]["actor"] == "server"
    assert site.policies.reference() == status["versions"][0]["checkpoint_id"]


def test_a_share_of_approval_has_wilsons_interval() -> None:
    body = approval_body(Approval(policy_version=2, up=8, down=2))
    # z = 1.96: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 1.96 * sqrt(0.016 + 0.0096036) / 1.38415 = 0.22658.
    assert (body["n"], body["value"]) == (10, 0.8)
    assert body["lo"] == pytest.approx(0.4902, abs=1e-4)
    assert body["hi"] == pytest.approx(0.9433, abs=1e-4)
    assert approval_body(Approval(policy_version=3, up=0, down=0))["value"] is None


def test_the_ledger_is_listed(site: Site) -> None:
    (first,) = site.http.get("/v1/policies").json()["policies"]
    assert (first["policy_version"], first["parent_version"]) == (1, None)


def test_probes_and_metrics_answer(site: Site) -> None:
    assert [site.http.get(f"/health{path}").status_code for path in ("", "/live", "/ready")] == [200, 200, 200]
    assert site.http.get("/version").json()["name"] == "attune"
    before = site.metric("generation_tokens_total")
    site.chat(ignore_eos=True, max_tokens=5)
    assert site.metric("generation_tokens_total") >= before + 5
    assert site.metric("policy_version") == 1.0
    assert site.metric("num_requests_running") == 0.0


def test_no_prompt_reaches_the_log(site: Site) -> None:
    site.chat("a very private question")
    site.http.post("/v1/chat/completions", content=b'{"messages": "a very private question"}')
    assert "private" not in site.server.log.read_text()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Basic right", 401),
        ("Bearer right", 200),
        ("bearer other", 200),
        ("Bearer ключ", 401),
    ],
)
def test_a_key_is_asked_for_where_there_are_keys(header: str | None, status: int) -> None:
    @get("/v1/models", guards=[require_key(frozenset({"right", "other"}))])
    async def models() -> str:
        return "models"

    app = Litestar([models], exception_handlers={Exception: respond}, openapi_config=None)
    with TestClient(app) as client:
        headers = {"authorization": header.encode()} if header else {}
        response: httpx.Response = client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("keys", "moderators", "sent", "status"),
    [
        ("", "", None, 200),
        ("chat", "", "chat", 403),
        ("chat", "mod", "chat", 401),
        ("chat", "mod, other", "mod", 200),
        ("", "mod", None, 401),
    ],
)
def test_only_moderators_moderate_where_there_are_keys(
    keys: str, moderators: str, sent: str | None, status: int
) -> None:
    settings = load_settings({"ATTUNE_API_KEYS": keys, "ATTUNE_MODERATOR_KEYS": moderators})

    @get("/v1/reports", guards=[require_moderator(settings)])
    async def reports() -> str:
        return "reports"

    app = Litestar([reports], exception_handlers={Exception: respond}, openapi_config=None)
    with TestClient(app) as client:
        response = client.get("/v1/reports", headers={"authorization": f"Bearer {sent}"} if sent else {})
    assert response.status_code == status
    if status == 403:
        assert "ATTUNE_MODERATOR_KEYS says who may" in response.json()["detail"]
