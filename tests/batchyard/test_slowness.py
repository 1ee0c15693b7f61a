"""Where a request was slow, from spans made by hand, and from JSON as collectors give it."""

import json

import pytest

from batchyard.errors import TraceUnread
from batchyard.slowness import Place, SeenSpan, Share, shares, slowest
from batchyard.why import main, read

MS = 1_000_000


def span(name, start, end, id, parent="", events=(), **attributes):
    """Times in milliseconds."""
    told = {f"batchyard.{key}": value for key, value in attributes.items()}
    return SeenSpan(name, id, parent, start * MS, end * MS, told, events)


def chunk(at, step_ms, tokens, others=0, before=0):
    told = {"step_ms": step_ms, "tokens": tokens, "other_tokens": others, "tokens_before": before}
    return "chunk", at * MS, {f"batchyard.{key}": value for key, value in told.items()}


ROOT = span("POST /v1/completions", 0, 1000, "root", "client")


def trace(*spans, end=1000):
    return [span("POST /v1/completions", 0, end, "root", "client"), *spans]


def test_what_is_in_no_span_is_elsewhere():
    assert shares(trace(span("tokenize", 0, 10, "t", "root"))) == [
        Share(Place.ELSEWHERE, 990),
        Share(Place.TOKENIZER, 10),
    ]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("tokenize", Place.TOKENIZER),
        ("limits", Place.RATE_LIMIT),
        ("scheduler.away", Place.NO_SCHEDULER),
        ("scheduler.queue", Place.QUEUE),
        ("preempted", Place.PREEMPTION),
        ("retry", Place.WORKER_LOSS),
        ("migrate", Place.DRAIN),
    ],
)
def test_a_span_of_a_place(name, place):
    spans = trace(span("generate", 1, 1000, "g", "root"), span(name, 1, 901, "x", "g"))
    assert slowest(spans) == Share(place, 900)


def test_a_wait_for_a_row_while_others_prompts_were_computed():
    spans = trace(
        span("generate", 0, 1000, "g", "root"),
        span("scheduler.queue", 0, 900, "q", "g", prompt_ms=600.0),
    )
    assert shares(spans)[:2] == [Share(Place.OTHER_PROMPTS, 600), Share(Place.QUEUE, 300)]


def test_chunks_share_their_steps_with_other_prompts():
    events = [chunk(200, 100, 10, 90, before=512), chunk(400, 100, 50, 50)]
    spans = trace(
        span("generate", 0, 400, "g", "root"),
        span("scheduler.run", 0, 400, "r", "g"),
        span("prefill", 100, 400, "p", "r", events),
        end=400,
    )
    # Before the first chunk another prompt was computed; before the second, nothing.
    assert shares(spans) == [
        Share(Place.OTHER_PROMPTS, 100 + 90 + 50),
        Share(Place.PREFILL, 10 + 100 + 50),
    ]


@pytest.mark.parametrize(("name", "place"), [("preempted", Place.PREEMPTION), ("retry", Place.WORKER_LOSS)])
def test_what_is_computed_again_was_cost_by_the_loss(name, place):
    spans = trace(
        span("generate", 0, 1000, "g", "root"),
        span("scheduler.run", 0, 100, "r1", "g"),
        span("prefill", 0, 50, "p1", "r1", [chunk(50, 50, 10)]),
        span("decode", 50, 100, "d1", "r1"),
        span(name, 100, 300, "w", "g"),
        span("scheduler.run", 300, 1000, "r2", "g"),
        span("prefill", 310, 500, "p2", "r2", [chunk(500, 190, 10)]),
        span("decode", 500, 1000, "d2", "r2"),
    )
    assert shares(spans) == [Share(Place.DECODE, 550), Share(place, 400), Share(Place.PREFILL, 50)]
    # To decode is what it was there for; the loss is why it was slow.
    assert slowest(spans) == Share(place, 400)


def test_without_delays_it_is_the_work():
    spans = trace(
        span("generate", 0, 1000, "g", "root"),
        span("scheduler.run", 5, 1000, "r", "g"),
        span("decode", 20, 995, "d", "r"),
    )
    assert slowest(spans).place == Place.DECODE


def test_of_several_answers_the_last_counts():
    spans = trace(
        span("generate", 0, 900, "g1", "root"),
        span("scheduler.queue", 0, 800, "q1", "g1"),
        span("generate", 0, 1000, "g2", "root"),
        span("retry", 100, 900, "q2", "g2"),
    )
    assert slowest(spans).place == Place.WORKER_LOSS
    assert Place.QUEUE not in [share.place for share in shares(spans)]


def test_what_is_no_trace_of_ours():
    with pytest.raises(ValueError, match="no server span"):
        shares([span("step", 0, 1, "s")])


COLLECTED = [
    {
        "service": "batchyard-gateway",
        "name": "POST /v1/completions",
        "span_id": "aa",
        "parent_id": "",
        "start_ns": 0,
        "milliseconds": 100.0,
        "attributes": {},
        "events": [],
    },
    {
        "service": "batchyard-worker",
        "name": "prefill",
        "span_id": "bb",
        "parent_id": "aa",
        "start_ns": 10 * MS,
        "milliseconds": 80.0,
        "attributes": {"batchyard.row": 1},
        "events": [
            {
                "name": "chunk",
                "time_ns": 90 * MS,
                "batchyard.step_ms": 80.0,
                "batchyard.tokens": 1,
                "batchyard.other_tokens": 3,
                "batchyard.tokens_before": 0,
            }
        ],
    },
]


def fields(attributes):
    return [{"key": key, "type": "any", "value": value} for key, value in attributes.items()]


def as_jaeger(spans):
    return {
        "data": [
            {
                "spans": [
                    {
                        "operationName": each["name"],
                        "spanID": each["span_id"],
                        "references": [{"refType": "CHILD_OF", "spanID": each["parent_id"]}]
                        if each["parent_id"]
                        else [],
                        "startTime": each["start_ns"] // 1000,
                        "duration": round(each["milliseconds"] * 1000),
                        "tags": fields(each["attributes"]),
                        "logs": [
                            {
                                "timestamp": event["time_ns"] // 1000,
                                "fields": fields(
                                    {"event": event["name"]}
                                    | {k: v for k, v in event.items() if k.startswith("batchyard")}
                                ),
                            }
                            for event in each["events"]
                        ],
                    }
                    for each in spans
                ]
            }
        ]
    }


@pytest.mark.parametrize("document", [COLLECTED, as_jaeger(COLLECTED)], ids=["collector", "jaeger"])
def test_read_as_collectors_give_it(document, tmp_path, capsys):
    spans = read(document)
    assert [(each.name, each.span_id, each.parent_id, each.ms) for each in spans] == [
        ("POST /v1/completions", "aa", "", 100),
        ("prefill", "bb", "aa", 80),
    ]
    (event,) = spans[1].events
    assert (event[0], event[1], event[2]["batchyard.tokens"]) == ("chunk", 90 * MS, 1)
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(document))
    main([str(file)])
    first = capsys.readouterr().out.splitlines()[0]
    assert first.split(maxsplit=2) == ["60.0", "ms", "prefill behind other prompts"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"data": []}', "[1]", '{"data": [{"spans": [{}]}]}'])
def test_what_cannot_be_read(text, tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(text)
    with pytest.raises(TraceUnread, match=r"trace\.json"):
        main([str(file)])
    with pytest.raises(TraceUnread):
        main([str(tmp_path / "absent")])
