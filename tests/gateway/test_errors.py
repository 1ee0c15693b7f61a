"""Every exception as a client sees it."""

import json

import pytest
from starlette.exceptions import HTTPException

from batchyard.errors import (
    InvalidRequest,
    ModelError,
    Overloaded,
    ProtocolError,
    RequestFailed,
    SchedulerLost,
    ServerFull,
    WorkerLost,
)
from gateway.errors import BadParameter, ModelNotFound, Unauthenticated, reply_to, shown


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidRequest("too long", "prompt"), 400, "invalid_request_error", "prompt", None),
        (BadParameter("bad", "n", "invalid_value"), 400, "invalid_request_error", "n", "invalid_value"),
        (ModelNotFound("x", "demo"), 404, "invalid_request_error", "model", "model_not_found"),
        (Unauthenticated("who?"), 401, "invalid_request_error", None, "invalid_api_key"),
        (Overloaded("full", 2.1), 429, "rate_limit_error", None, "overloaded"),
        (ServerFull("full", 2.1), 503, "service_unavailable_error", None, "overloaded"),
        (SchedulerLost("away"), 503, "service_unavailable_error", None, "service_unavailable"),
        (HTTPException(405), 405, "invalid_request_error", None, "method_not_allowed"),
        (HTTPException(413, "too much"), 413, "invalid_request_error", None, "request_entity_too_large"),
        (RequestFailed("It kills."), 500, "server_error", None, "request_failed"),
        (WorkerLost("gone"), 500, "server_error", None, "internal"),
        (ProtocolError("what?"), 500, "server_error", None, "internal"),
        (ModelError("no model"), 500, "server_error", None, "internal"),
        (ZeroDivisionError("secret"), 500, "server_error", None, "internal"),
    ],
)
def test_replies(error, status, kind, param, code):
    reply = reply_to(error)
    assert reply.status == status
    told = json.loads(reply.body())["error"]
    assert told == {"message": reply.message, "type": kind, "param": param, "code": code}


def test_what_is_our_fault_is_told_by_an_id_alone(capsys):
    reply = reply_to(ZeroDivisionError("secret"))
    assert "secret" not in reply.message
    error_id = reply.message.rsplit(" ", 1)[1].rstrip(".")
    logged = capsys.readouterr().out
    assert error_id in logged
    assert "secret" in logged


@pytest.mark.parametrize(("wait", "header"), [(None, "1"), (0.0, "1"), (2.1, "3"), (60.0, "60")])
def test_retry_after_is_whole_seconds(wait, header):
    assert reply_to(Overloaded("full", wait)).headers == {"Retry-After": header}


def test_a_401_says_how_to_authenticate():
    assert reply_to(Unauthenticated("who?")).headers == {"WWW-Authenticate": "Bearer"}


def test_an_error_can_repeat_any_words():
    reply = reply_to(ModelNotFound("\ud800" + "x" * 500, "demo"))
    assert len(reply.message) < 300
    json.loads(reply.body())


def test_long_words_are_cut():
    assert shown("x" * 101) == repr("x" * 100 + "…")
