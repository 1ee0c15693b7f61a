import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stopping import StopStrings

# Two letters make borders and overlaps likely.
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
CHUNKS = st.lists(st.tuples(st.text("abc", max_size=6), st.booleans()), max_size=8)


def naive(chunks: list[tuple[str, bool]], stops: list[str]) -> tuple[str, str | None]:
    """The text before the first stop string that is complete at an armed character, by trying every end."""
    text = "".join(chunk for chunk, _ in chunks)
    armed = [flag for chunk, flag in chunks for _ in chunk]
    for end in range(1, len(text) + 1):
        for stop in stops:
            if armed[end - 1] and text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


def run(chunks: list[tuple[str, bool]], stops: list[str], include: bool) -> tuple[str, str | None]:
    stopper = StopStrings(stops, include)
    shown = ""
    for chunk, armed in chunks:
        emitted, stop = stopper.add(chunk, armed)
        shown += emitted
        if stop is not None:
            return shown, stop
    return shown + stopper.flush(), None


@given(chunks=CHUNKS, stops=STOPS)
def test_it_finds_what_a_search_of_the_whole_text_finds(
    chunks: list[tuple[str, bool]], stops: list[str]
) -> None:
    expected, stop = naive(chunks, stops)
    assert run(chunks, stops, include=False) == (expected, stop)
    assert run(chunks, stops, include=True) == (expected + (stop or ""), stop)


@given(text=st.text("abc", max_size=30), size=st.integers(1, 7), stops=STOPS)
def test_chunks_make_no_difference(text: str, size: int, stops: list[str]) -> None:
    chunks = [(text[at : at + size], True) for at in range(0, len(text), size)]
    assert run(chunks, stops, include=False) == run([(text, True)], stops, include=False)


@given(chunks=CHUNKS, stops=STOPS)
def test_it_holds_back_what_may_begin_a_stop_string_and_no_more(
    chunks: list[tuple[str, bool]], stops: list[str]
) -> None:
    stopper = StopStrings(stops, include=False)
    text = shown = ""
    for chunk, armed in chunks:
        emitted, stop = stopper.add(chunk, armed)
        if stop is not None:
            return
        text, shown = text + chunk, shown + emitted
        beginnings = {stop[:length] for stop in stops for length in range(len(stop))}
        assert text.removeprefix(shown) == max(
            (b for b in beginnings if text.endswith(b)), key=len, default=""
        )


def test_a_stop_string_spread_over_chunks() -> None:
    stopper = StopStrings(["\nUser:"], include=False)
    assert [stopper.add(chunk) for chunk in ("Hi", "\n", "Us", "ing it", "\nUser", ": x")] == [
        ("Hi", None),
        ("", None),
        ("", None),
        ("\nUsing it", None),
        ("", None),
        ("", "\nUser:"),
    ]


def test_nothing_is_held_back_of_a_text_that_keeps_its_stop_string() -> None:
    stopper = StopStrings(["abc"], include=True)
    assert [stopper.add(chunk) for chunk in ("xa", "b", "cd")] == [("xa", None), ("b", None), ("c", "abc")]


def test_of_stop_strings_complete_at_once_the_first_named_counts() -> None:
    assert StopStrings(["b", "ab"], include=False).add("xab") == ("xa", "b")
    assert StopStrings(["ab", "b"], include=False).add("xab") == ("x", "ab")


def test_a_stop_string_may_begin_before_it_counts() -> None:
    stopper = StopStrings(["ab"], include=False)
    assert stopper.add("ab a", armed=False) == ("ab ", None)
    assert stopper.add("b") == ("", "ab")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""], include=False)
