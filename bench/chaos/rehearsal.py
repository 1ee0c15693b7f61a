"""What the answers are while nothing is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.chaos.clients import Clients
from bench.chaos.questions import Answer, Question, differences, stopped


@dataclass(frozen=True, slots=True)
class Script:
    """Questions and their answers. Left out, with the reason, is what has two answers without any fault."""

    questions: Sequence[Question]
    answers: Sequence[Answer]
    left_out: Sequence[str]


async def rehearse(rpc: Mapping[str, str], questions: Sequence[Question], streams: int) -> Script:
    """Asks every question among many others, and again among few.

    In another batch float32 rounds otherwise, and where two tokens are as likely, that decides. A question
    that comes to such a place tells nothing of faults.
    """
    few = max(3, streams // 8)
    stopping = [n for n, question in enumerate(questions) if question.kind == "stop"]
    unstopped = await _answers(rpc, [questions[n] for n in stopping], streams)
    questions = list(questions)
    for n, answer in zip(stopping, unstopped, strict=True):
        questions[n] = stopped(questions[n], answer)
    one, other = await _answers(rpc, questions, streams), await _answers(rpc, questions, few)
    found = ["; ".join(differences(a, b)) for a, b in zip(one, other, strict=True)]
    steady = [n for n, what in enumerate(found) if not what]
    return Script(
        [questions[n] for n in steady],
        [one[n] for n in steady],
        [f"{question.kind}: {what}" for question, what in zip(questions, found, strict=True) if what],
    )


async def _answers(rpc: Mapping[str, str], questions: Sequence[Question], at_once: int) -> list[Answer]:
    clients = Clients(rpc, questions)
    try:
        return [stream.answer for stream in await clients.ask_all(at_once)]
    finally:
        await clients.close()
