"""The console in a real browser, in front of a real server."""

import asyncio
import json
from datetime import UTC, datetime

import httpx
import pytest

from gateway.keys.records import dump_records, new_key, record_for
from tests.end_to_end.stack import Stack
from tests.gateway.console.browser import chromium

# What a name must never become: an element, or a script that runs.
HOSTILE = "<img src=x onerror=window.hurt=1>\"'</script><script>window.hurt=1</script>"


@pytest.fixture(scope="module")
def keys():
    return {name: new_key() for name in ("alice", "ops")}


@pytest.fixture(scope="module")
def stack(tmp_path_factory, keys):
    """Keys are needed; model and worker have hostile names; nobody listens at the collector."""
    folder = tmp_path_factory.mktemp("console")
    now = datetime.now(UTC)
    records = [record_for(key, now, name, operator=name == "ops") for name, key in keys.items()]
    (folder / "keys.json").write_bytes(dump_records(tuple(records)))
    more = ["--api-keys", str(folder / "keys.json"), "--served-model-name", HOSTILE]
    more += ["--trace-url", "http://jaeger.test/trace/{trace_id}", "--otlp", "http://127.0.0.1:1"]
    with Stack(folder, worker=["--worker-id", HOSTILE], gateway=more) as stack:
        yield stack


@pytest.fixture
async def page(tmp_path):
    async with chromium(tmp_path / "profile") as page:
        await page.resize(1280, 900)
        yield page
        assert await page.js("window.hurt") is None
        assert page.complaints == []


async def sign_in(page, stack, key):
    await page.visit(f"{stack.base_url}/console")
    await type_key(page, key)


async def type_key(page, key):
    await page.until("!document.querySelector('#key-form').hidden")
    # That is the answer to a request without a key, not a fault of the page.
    assert all("401" in complaint for complaint in page.complaints)
    page.complaints.clear()
    await page.type("#key", key)
    await page.enter()
    await page.until("!document.querySelector('#main').hidden")


async def ask(stack, key, tokens=8, **headers):
    body = {"model": HOSTILE, "messages": [{"role": "user", "content": "What is a list?"}]}
    body |= {"max_tokens": tokens, "ignore_eos": True}
    headers["Authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(base_url=stack.base_url, headers=headers, timeout=30) as client:
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text


ROW = "document.querySelector('#request-rows tr')"


async def test_an_operator_sees_workers_and_requests_with_their_waterfalls(page, stack, keys):
    await sign_in(page, stack, keys["ops"])
    await page.until("document.querySelector('#health').innerText === 'Ready'")
    assert await page.text("#workers h3") == HOSTILE
    assert await page.text("#model") == HOSTILE
    await ask(stack, keys["alice"], **{"x-request-id": "of-alice"})
    await page.until(f"{ROW}?.innerText.includes('of-alice')")
    row = await page.js(f"{ROW}.innerText")
    assert "alice" in row
    assert "200" in row
    assert "→ 8" in row
    told = await page.js(f"{ROW}.querySelector('.waterfall-cell').innerText")
    assert [part.split()[0] for part in told.split(" · ")][:3] == ["tokenize", "queue", "prefill"]
    assert f"on {HOSTILE}" in told
    assert await page.js(f"{ROW}.querySelectorAll('.waterfall span').length") >= 4
    link = await page.js(f"{ROW}.querySelector('a').href")
    assert link.startswith("http://jaeger.test/trace/")
    assert len(link.rsplit("/", 1)[1]) == 32
    await page.until("document.querySelector('#workers .bar').ariaLabel.includes('cached')")
    await page.until("document.querySelector('#workers dd').innerText.startsWith('1 row')")
    assert await page.js("document.querySelectorAll('.spark svg polyline').length") == 3


async def test_an_ordinary_key_sees_its_own_and_nothing_that_another_one_saw(page, stack, keys):
    await ask(stack, keys["ops"], **{"x-request-id": "of-ops"})
    await ask(stack, keys["alice"], **{"x-request-id": "also-of-alice"})
    await sign_in(page, stack, keys["ops"])
    await page.until("document.querySelector('#request-rows').innerText.includes('of-ops')")
    await page.click("#forget-key")
    await type_key(page, keys["alice"])
    await page.until(f"{ROW}?.innerText.includes('also-of-alice')")
    assert "of-ops" not in await page.js("document.documentElement.outerHTML")
    assert not await page.js("document.querySelector('#workers-section').checkVisibility()")
    assert await page.text("#whose") == "Key alice"


async def test_a_wrong_key_is_said_to_be_wrong(page, stack):
    await page.visit(f"{stack.base_url}/console")
    await page.until("!document.querySelector('#key-form').hidden")
    await page.type("#key", "by-nobody")
    await page.enter()
    await page.until("document.querySelector('#key-problem').checkVisibility()")
    assert await page.text("#key-problem") == "The API key is wrong."
    page.complaints.clear()  # 401, twice


async def test_the_playground_streams_with_the_time_of_each_token(page, stack, keys):
    await sign_in(page, stack, keys["alice"])
    await page.type("#message", "What does os.path.join do?")
    await page.type("#max-tokens", "40")
    await page.type("#temperature", "0")
    await page.click("#send")
    await page.until("!document.querySelector('#send').disabled")
    assert len(await page.text("#answer")) > 20
    bars = await page.js("document.querySelectorAll('#strip rect').length")
    assert 5 < bars <= 40
    timings = await page.js(
        "[...document.querySelectorAll('[data-timing]')].map(node => [node.dataset.timing, node.innerText])"
    )
    assert all(value[0].isdigit() for _, value in timings), timings
    await page.js(STOP_SOON)
    await page.type("#max-tokens", "1000")
    await page.click("#send")
    await page.until("document.querySelector('#ask-status').innerText === 'Stopped.'")
    await page.until(f"{ROW}.innerText.includes('499') || {ROW}.innerText.includes('client_gone')")
    await page.type("#max-tokens", "1000000")
    await page.click("#send")
    await page.until("document.querySelector('#ask-status').innerText.includes('maximum context length')")
    assert all("400" in complaint for complaint in page.complaints)
    page.complaints.clear()


# At the fourth part of the answer, however fast they come.
STOP_SOON = """new MutationObserver((_, observer) => {
  if (document.querySelectorAll("#strip rect").length < 4) return;
  observer.disconnect();
  document.querySelector("#stop").click();
}).observe(document.querySelector("#strip"), {childList: true}) || true"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_nothing_is_scrolled_sideways_and_all_can_be_read(page, stack, keys, scheme):
    await page.resize(390, 844)
    await page.scheme(scheme)
    await ask(stack, keys["alice"], **{"x-request-id": "a" * 128})
    await sign_in(page, stack, keys["ops"])
    await page.until(f"{ROW}?.innerText.includes('aaaa')")
    assert await page.js("document.documentElement.scrollWidth") == 390
    # Whoever uses a keyboard sees where they are, and every field has a name.
    named = "[...document.querySelectorAll('input, textarea')].every(field => field.labels.length === 1)"
    assert await page.js(named)
    assert json.loads(await page.js(CONTRASTS)) == []


# Texts whose contrast with what is behind them is below 4.5 (https://www.w3.org/TR/WCAG22/#contrast-minimum).
CONTRASTS = """(() => {
  const parts = (color) => {
    const numbers = color.match(/[\\d.]+/g).map(Number);
    return color.startsWith("color(srgb") ? numbers.map((n, i) => i < 3 ? n * 255 : n) : numbers;
  };
  const over = ([r, g, b, a = 1], back) => [r, g, b].map((c, i) => c * a + back[i] * (1 - a));
  const ground = (node) => {
    if (!node) return [255, 255, 255];
    return over(parts(getComputedStyle(node).backgroundColor), ground(node.parentElement));
  };
  const light = (color) => {
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = color.map(c => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("svg, :disabled")) continue;
    const back = ground(node), front = over(parts(getComputedStyle(node).color), back);
    const [low, high] = [light(back), light(front)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) bad.push(`${contrast.toFixed(2)} ${node.className} ${node.textContent.trim()}`);
  }
  return JSON.stringify(bad);
})()"""


async def test_what_is_lost_is_said(page, stack, keys):
    """Last, for it takes the server apart: first the worker, then the gateway, which comes back."""
    await sign_in(page, stack, keys["ops"])
    stack.kill("worker")
    await page.until("document.querySelector('#health').innerText === 'Not ready'")
    assert "No worker is connected" in await page.text("#banner")
    await page.until("document.querySelector('#workers .pill').innerText === 'away'")
    await asyncio.to_thread(stack.kill, "gateway")
    await page.until("document.querySelector('#health').innerText === 'Connection lost'")
    assert "Trying again" in await page.text("#banner")
    stack.start("gateway")
    await page.until("document.querySelector('#health').innerText === 'Not ready'")
    page.complaints.clear()  # what was refused meanwhile
