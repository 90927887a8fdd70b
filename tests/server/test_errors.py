"""The table from exceptions to HTTP."""

from __future__ import annotations

import pytest
from litestar.exceptions import MethodNotAllowedException, NotFoundException

from rlhf_core import errors as core
from server.errors import (
    ClientGoneError,
    DrainingError,
    GenerationFailedError,
    UnknownModelError,
    fault_of,
    openai_body,
    problem_body,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (core.InvalidRequestError("no", param="n", code="unsupported_parameter"), 400, "unsupported_parameter"),
        (core.ContextOverflowError(9, 8), 400, "context_length_exceeded"),
        (core.NotFoundError("no"), 404, "not_found"),
        (UnknownModelError("no"), 404, "model_not_found"),
        (core.GoneError("no"), 410, "gone"),
        (core.ConflictError("no"), 409, "conflict"),
        (core.OverloadedError("no"), 429, "rate_limit_exceeded"),
        (DrainingError(), 503, "server_draining"),
        (core.StoreUnavailableError("no"), 503, "store_unavailable"),
        (ClientGoneError("no"), 499, "client_closed_request"),
        (GenerationFailedError("no"), 500, "generation_failed"),
        (core.ModelError("no"), 500, "internal_error"),
        (ValueError("a secret"), 500, "internal_error"),
        (NotFoundException(), 404, "unknown_path"),
        (MethodNotAllowedException(), 405, "method_not_allowed"),
    ],
)
def test_every_error_has_a_status_and_a_string_code(error: Exception, status: int, code: str) -> None:
    fault = fault_of(error)
    assert (fault.status, fault.code) == (status, code)
    assert isinstance(openai_body(fault)["error"]["code"], str)


def test_what_nobody_foresaw_shows_nothing_of_itself() -> None:
    assert "secret" not in str(openai_body(fault_of(ValueError("a secret"))))


def test_what_may_be_tried_again_says_when() -> None:
    assert fault_of(DrainingError()).headers["retry-after"] == "1"
    assert fault_of(core.OverloadedError("full")).headers["retry-after-ms"] == "1000"
    assert fault_of(core.ConflictError("streaming")).headers == {"x-should-retry": "false"}


def test_a_problem_names_the_field_where_there_is_one() -> None:
    problem = problem_body(fault_of(core.InvalidRequestError("bad", param="value")), 422, "/v1/x")
    assert (problem["param"], problem["title"], problem["instance"]) == ("value", "Unprocessable Content", "/v1/x")
    assert "param" not in problem_body(fault_of(core.NotFoundError("none")), 404, "/v1/x")
