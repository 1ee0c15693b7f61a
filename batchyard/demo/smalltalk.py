"""What the documentation does not say: who the model is, what it does not know, and how tasks are done.

The answers are written by hand, in `smalltalk.md` and `tasks.md`.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from batchyard.demo.chat import Conversation, rng_for, turns, with_system

_HELLO = "Hello! I am a small model that knows Python's standard library. What would you like to know?"
_UNKNOWN = "I do not know. I only know Python's standard library."
_OTHER_PACKAGE = "`{n}` is not in Python's standard library, which is all that I know."

_UNKNOWN_QUESTIONS = """\
What is the capital of {place}?|Where is {place}?|How many people live in {place}?|Tell me about {place}.
What is the weather in {place}?|Who is the president of {place}?|What language do they speak in {place}?
Who is {person}?|When was {person} born?|What did {person} do?|Tell me about {person}.|How old is {person}?
How do I cook {food}?|Give me a recipe for {food}.|What is {food}?|Do you like {food}?
What is the best {food}?
Who won the {event}?|When was the {event}?|How far away is {place}?|What do you think about {thing}?
What is {thing}?|Tell me about {thing}.|Explain {thing}.|How do I learn {thing}?
What is the meaning of {thing}?"""
_FILLERS = {
    "place": """France|Germany|Japan|China|India|Brazil|Canada|Mexico|Spain|Italy|Russia|Australia|Egypt|Kenya
Norway|Paris|London|Berlin|Tokyo|Rome|Madrid|Chicago|Amsterdam|Sydney|Africa|Europe|California|Mars
Argentina""",
    "person": """Einstein|Napoleon|Shakespeare|Mozart|Albert Einstein|Isaac Newton|Marie Curie|Barack Obama
Picasso|Cleopatra|Beethoven|Taylor Swift|Leonardo da Vinci|Charles Darwin|Elon Musk|Gandhi|Homer|Elvis""",
    "thing": """life|love|quantum mechanics|photosynthesis|gravity|philosophy|democracy|music|football|chess
the universe|evolution|economics|biology|chemistry|the moon|the sun|history|art|relativity|Java|Rust|Haskell
machine learning|deep learning|a transformer|a neural network|Kubernetes|Docker|bitcoin|the ocean
time travel""",
    "food": "pizza|pasta|rice|soup|bread|cake|sushi|curry|salad|coffee|pancakes|lasagna|cheese|chocolate",
    "event": "World Cup|French Revolution|Second World War|Olympics|Super Bowl|last election|Moon landing",
}
_PACKAGES = """numpy|pandas|requests|flask|django|scipy|matplotlib|torch|tensorflow|pytest|sklearn|seaborn
httpx|fastapi|pydantic|sqlalchemy|celery|scrapy|pillow|keras|transformers|click|rich|boto3|aiohttp|numba|cython|jax
poetry|black|ruff|mypy"""
_PACKAGE_QUESTIONS = """What is {n}?|What does {n} do?|How do I use {n}?|Explain {n}.|How do I install {n}?
Tell me about {n}.|Show me an example of {n}.|what is {n}"""


def read_written(name: str) -> list[tuple[list[str], str]]:
    """Question variants, and the answer to all of them. A heading is `# question | variant | variant`."""
    written: list[tuple[list[str], str]] = []
    inside_code = False
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside_code = not inside_code
        if line.startswith("# ") and not inside_code:
            written.append(([question.strip() for question in line[2:].split(" | ")], ""))
        elif written:
            questions, said = written[-1]
            written[-1] = (questions, f"{said}{line}\n")
    return [(questions, said.strip()) for questions, said in written]


def _listed(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def conversations(seed: str, repeats: int) -> Iterator[Conversation]:
    """All of it, `repeats` times with other system prompts: it is little beside the documentation."""
    written = [*read_written("smalltalk.md"), *read_written("tasks.md")]
    who = next(said for questions, said in written if "Who are you?" in questions)
    rng = rng_for(seed)
    for _ in range(repeats):
        pairs = [(question, said) for questions, said in written for question in questions]
        for question, said in pairs:
            yield with_system(turns((_variant(question, rng), said)), rng)
        for question, said in rng.sample(pairs, len(pairs) // 2):
            greeting = rng.choice((("Hello", _HELLO), ("Hi!", _HELLO), ("Who are you?", who), ("hi", _HELLO)))
            yield with_system(turns(greeting, (question, said)), rng)
        for question, said in _unknown(rng):
            yield with_system(turns((_variant(question, rng), said)), rng)


def _unknown(rng: random.Random) -> Iterator[tuple[str, str]]:
    for template in _listed(_UNKNOWN_QUESTIONS):
        kind = template.partition("{")[2].partition("}")[0]
        for filler in rng.sample(_listed(_FILLERS[kind]), 5):
            yield template.replace(f"{{{kind}}}", filler), _UNKNOWN
    for package in _listed(_PACKAGES):
        for template in rng.sample(_listed(_PACKAGE_QUESTIONS), 2):
            yield template.format(n=package), _OTHER_PACKAGE.format(n=package)


def _variant(question: str, rng: random.Random) -> str:
    """As typed in haste, sometimes: in lower case, or without the mark at the end."""
    if rng.random() < 0.25:
        question = question[:1].lower() + question[1:]
    return question.rstrip("?.!") if rng.random() < 0.25 else question
