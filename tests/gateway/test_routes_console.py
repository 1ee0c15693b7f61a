"""The console over HTTP: who sees what, and the headers that keep the page from running anything else."""

import re
from datetime import UTC, datetime

import httpx
import pytest

from batchyard.errors import SchedulerLost
from gateway.console.assets import load_assets
from gateway.errors import KeysUnread
from gateway.keys.records import dump_records, new_key, record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys
from gateway.limits.limiter import LocalLimiter
from gateway.readiness import Watch
from protos.scheduling_pb2 import Description, StepState, TenantState, WorkerState
from tests.gateway.api_fakes import FakeGenerator, in_process, make_app, on_a_port

CHAT = {"model": "demo", "messages": [{"role": "user", "content": "a secret question"}]}


def description() -> Description:
    return Description(
        ready=True,
        running=3,
        waiting=2,
        queue_tokens=70,
        num_tenants=2,
        tenants=[
            TenantState(name="alice", weight=2, running=2, waiting=2),
            TenantState(name="bob", weight=1, running=1),
        ],
        workers=[
            WorkerState(
                worker_id="w0",
                address="unix:/w0",
                connected=True,
                device="cpu",
                weight=1,
                rows=3,
                max_rows=8,
                num_blocks=10,
                held_blocks=5,
                cached_blocks=3,
                free_blocks=2,
                steps=9,
                tokens_per_second=12.345,
                last_step=StepState(rows=3, tokens=20, prompt_tokens=18, busy_us=4560),
            ),
            WorkerState(worker_id="w1", draining=True),
            WorkerState(worker_id="w2"),
            WorkerState(worker_id="w3", connected=True, steps_in_flight=1, seconds_since_step=6),
        ],
    )


async def looked() -> Watch:
    async def describe() -> Description:
        return description()

    watch = Watch(describe)
    await watch.look()
    return watch


class Keys:
    """A ring with keys of alice, bob and an operator."""

    def __init__(self, folder) -> None:
        now = datetime.now(UTC)
        self.keys = {name: new_key() for name in ("alice", "bob", "ops")}
        records = [
            record_for(key, now, name, operator=name == "ops", requests_per_minute=1000)
            for name, key in self.keys.items()
        ]
        (folder / "keys.json").write_bytes(dump_records(tuple(records)))
        self.ring = KeyRing(FileKeys(folder / "keys.json"), fixed="the server's own")

    def headers(self, name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.keys.get(name, name)}"}


async def test_what_is_told_where_there_are_no_keys():
    watch = await looked()
    app = make_app(watch=watch, trace_url="http://jaeger/{trace_id}")
    async with in_process(app) as client:
        await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
        response = await client.get("/console/state")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    state = response.json()
    assert (state["model"], state["key"], state["ready"], state["reason"]) == ("demo", None, True, None)
    totals = {"tokens_per_second": 12.3, "running": 3, "waiting": 2, "queue_tokens": 70}
    assert state["totals"] == totals
    assert state["workers"][0] == {
        "id": "w0",
        "address": "unix:/w0",
        "device": "cpu",
        "state": "busy",
        "weight": 1.0,
        "rows": 3,
        "max_rows": 8,
        "blocks": {"total": 10, "held": 5, "cached": 3, "free": 2},
        "tokens_per_second": 12.3,
        "steps": 9,
        "step": {"rows": 3, "tokens": 20, "prompt_tokens": 18, "duration": 4.56, "ago": 0},
    }
    assert [worker["state"] for worker in state["workers"]] == ["busy", "draining", "away", "stalled"]
    assert state["tenants"][0] == {"name": "alice", "weight": 2.0, "waiting": 2, "running": 2}
    assert state["history"] == {"tokens_per_second": [12.3], "running": [3], "waiting": [2]}
    (request,) = state["requests"]
    assert (request["id"], request["route"], request["status"]) == ("mine", "/v1/chat/completions", 200)
    assert request["completion_tokens"] == 4
    assert [name for name, _, _ in request["segments"]] == ["tokenize", "wait", "decode"]
    assert request["duration"] >= sum(length for _, _, length in request["segments"])
    assert state["latency"]["ttft"]["count"] == 1
    assert state["latency"]["itl"]["count"] == 3
    assert "secret question" not in response.text


async def test_a_key_sees_what_is_its_own_and_an_operator_sees_all(tmp_path):
    keys = Keys(tmp_path)
    await keys.ring.read()
    app = make_app(keys=keys.ring, watch=await looked(), limiter=LocalLimiter())
    async with in_process(app) as client:
        for name in ("alice", "bob", "bob"):
            await client.post("/v1/chat/completions", json=CHAT, headers=keys.headers(name))
        states = {
            name: (await client.get("/console/state", headers=keys.headers(name))).json()
            for name in ("alice", "bob", "ops", "the server's own")
        }
    assert states["alice"]["totals"] == {"running": 2, "waiting": 2}
    assert states["bob"]["totals"] == {"running": 1, "waiting": 0}
    assert [request["tenant"] for request in states["bob"]["requests"]] == ["bob", "bob"]
    assert [name for name, _, _ in states["bob"]["requests"][0]["segments"]][:2] == ["tokenize", "limits"]
    for name, other in (("alice", "bob"), ("bob", "alice")):
        assert states[name]["key"] == name
        assert states[name]["latency"]["ttft"]["count"] == len(states[name]["requests"])
        assert not {"workers", "tenants", "history"} & states[name].keys()
        assert other not in str(states[name])
    for name in ("ops", "the server's own"):
        assert [r["tenant"] for r in states[name]["requests"]] == ["bob", "bob", "alice"]
        assert len(states[name]["workers"]) == 4


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
async def test_without_a_key_there_is_a_page_and_no_state(headers):
    async with in_process(make_app(api_key="right")) as client:
        assert (await client.get("/console", headers=headers)).status_code == 200
        refused = await client.get("/console/state", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error"]["code"] == "invalid_api_key"


async def test_while_keys_are_unread_there_is_no_state(tmp_path):
    keys = Keys(tmp_path)
    async with in_process(make_app(keys=keys.ring)) as client:
        refused = await client.get("/console/state", headers=keys.headers("alice"))
    assert (refused.status_code, refused.json()["error"]["message"]) == (503, str(KeysUnread()))


async def test_however_many_look_the_scheduler_is_asked_once_a_second():
    asked = []

    async def describe() -> Description:
        asked.append(1)
        return description()

    watch = Watch(describe)
    await watch.look()
    async with in_process(make_app(watch=watch)) as client:
        for _ in range(20):
            assert (await client.get("/console/state")).json()["totals"]["running"] == 3
    assert len(asked) == 1


async def test_a_scheduler_that_is_away_is_said_to_be(tmp_path):
    async def describe() -> Description:
        raise SchedulerLost("lost the scheduler at 10.0.0.7")

    watch, keys = Watch(describe), Keys(tmp_path)
    await watch.look()
    await keys.ring.read()
    async with in_process(make_app(keys=keys.ring, watch=watch)) as client:
        seen = [
            (await client.get("/console/state", headers=keys.headers(name))).json()
            for name in ("ops", "alice")
        ]
    assert [state["ready"] for state in seen] == [False, False]
    assert seen[0]["reason"] == "lost the scheduler at 10.0.0.7"
    assert "10.0.0.7" not in str(seen[1])
    assert (seen[0]["workers"], seen[0]["history"]["running"]) == ([], [None])


async def test_what_failed_is_kept_and_what_is_no_request_is_not():
    app = make_app(FakeGenerator(fails_with=SchedulerLost("gone")))
    async with in_process(app) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={**CHAT, "model": "<b>other</b>"})
        await client.get("/v1/models")
        await client.get("/v1/nothing")
        requests = (await client.get("/console/state")).json()["requests"]
    assert [(each["status"], each["error"]) for each in requests] == [
        (404, "model_not_found"),
        (503, "service_unavailable"),
    ]
    assert [name for name, _, _ in requests[1]["segments"]] == ["tokenize", "wait"]


async def test_files_and_methods():
    async with on_a_port(make_app()) as url, httpx.AsyncClient(base_url=url) as client:
        for path, kind in (
            ("/console", "text/html"),
            ("/console/main.js", "text/javascript"),
            ("/console/console.css", "text/css"),
            ("/console/icon.svg", "image/svg+xml"),
        ):
            response = await client.get(path)
            assert response.status_code == 200
            assert response.headers["content-type"].startswith(kind)
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cache-control"] == "no-cache"
            again = await client.get(path, headers={"If-None-Match": response.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-length"] == response.headers["content-length"]
        assert (await client.head("/console/state")).status_code == 200
        slash = await client.get("/console/", follow_redirects=True)
        assert (slash.status_code, slash.url.path) == (200, "/console")
        for path in (
            "/console/nothing.js",
            "/console/index.html",
            "/console/../app.py",
            "/console/%2e%2e%2fstate.py",
        ):
            assert (await client.get(path)).status_code == 404
        for path in ("/console", "/console/state", "/console/main.js"):
            refused = await client.post(path)
            assert refused.status_code == 405
            assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}


async def test_the_policy_lets_nothing_in_from_elsewhere():
    async with in_process(make_app()) as client:
        policy = (await client.get("/console")).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[f"{what}-src"] for what in ("script", "style", "img", "connect")} == {"'self'"}
    assert rules["frame-ancestors"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"


REFERENCE = re.compile(
    r"""(?:src|href)="(.*?)"|url\((.*?)\)|import .*?"(.*?)"|from "(.*?)"|fetch\("(.*?)\""""
)


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere():
    assets = {name: asset.content.decode() for name, asset in load_assets().items()}
    for name, text in assets.items():
        used = {"".join(groups) for groups in REFERENCE.findall(text)}
        known = {f"console/{other}" for other in assets} | {f"./{other}" for other in assets}
        assert used <= known | {"console/state", "v1/chat/completions"}, name
        assert "innerHTML" not in text
    assert not re.search(r"<[^>]* (style|on\w+)=|<script(?![^>]* src=)|<style", assets["index.html"])
    assert len(REFERENCE.findall(assets["main.js"])) >= 8
