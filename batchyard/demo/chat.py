"""Conversations about documented things, made from `Entry` records by templates.

The random choices of an entry depend on its name alone, so adding an entry changes no other conversation.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from batchyard.demo.entries import Entry

Message = dict[str, str]
Conversation = list[Message]

MAX_ANSWER = 480
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful Python assistant.",
    "You are an expert on Python's standard library.",
    "Answer briefly.",
    "You are a concise and friendly assistant.",
)
_WHAT = (
    "What does {n} do?",
    "What does {n} do?",
    "what does {n} do",
    "What does {n}() do?",
    "What does `{n}` do?",
    "What does the {n} {k} do?",
    "What is {n}?",
    "What is {n}?",
    "what is {n}",
    "What is `{n}` in Python?",
    "Explain {n}.",
    "Explain {n}",
    "Explain what {n} does.",
    "Can you explain {n}?",
    "Tell me about {n}.",
    "Describe {n}.",
    "How does {n} work?",
    "What is {n} for?",
    "What is {n} used for?",
    "In Python, what does {n} do?",
    "{n}?",
    "{n}",
    "help({n})",
)
_WHAT_NOUN = tuple(q for q in _WHAT if "do" not in q.split() and "do?" not in q and "()" not in q)
_RAISED = (
    "When is {n} raised?",
    "What raises {n}?",
    "What does {n} mean?",
    "Why do I get {n}?",
    "I got a {n}. Why?",
)
_USE = (
    "How do I use {n}?",
    "How to use {n}?",
    "how do i use {n}",
    "How can I use {n}?",
    "How do I call {n}?",
    "use of {n}",
)
_ARGUMENTS = (
    "What are the arguments of {n}?",
    "What arguments does {n} take?",
    "What are the parameters of {n}?",
    "what parameters does {n} take",
    "What is the signature of {n}?",
)
_WHERE = (
    "What module has {s}?",
    "Which module has {s}?",
    "Where is {s}?",
    "How do I import {s}?",
    "which module is {s} in",
)
_EXAMPLE = (
    "Show me an example of {n}.",
    "Give me an example of {n}.",
    "example of {n}",
    "Can you show an example of {n}?",
)
_THEN_EXAMPLE = (
    "Show me an example.",
    "Can you give an example?",
    "Example please",
    "Show an example of it.",
)
_THEN_ARGUMENTS = ("What are its arguments?", "What arguments does it take?", "And its parameters?")
_TERM = (
    "What is {a} {n}?",
    "What is {a} {n}?",
    "what is {a} {n}",
    "What is {a} {n} in Python?",
    "Explain {n}.",
    "Explain what {a} {n} is.",
    "Define {n}.",
    "What does {n} mean?",
    "Tell me about {n}.",
    "{n}?",
)
_SECTION = ("Tell me about {n}.", "Explain {n}.", "What can you tell me about {n}?", "{n}", "What about {n}?")
_DULL_SECTIONS = re.compile(
    r"(?i)\b(examples?|introduction|overview|notes?|summary|usage|functions|objects|constants|"
    r"module contents|see also|history|methods|classes|exceptions|basic|other|references|preface|"
    r"features|recipes)\b"
)
_SENTENCE_END = re.compile(r"(?<=[.!?)])\s+(?=[A-Z`\"'(])")


def rng_for(name: str) -> random.Random:
    """A generator seeded by the name: `random.Random(str)` hashes with SHA-512, the same everywhere."""
    return random.Random(f"batchyard:{name}")


def shorten(paragraphs: Sequence[str], limit: int = MAX_ANSWER) -> str:
    """The first paragraphs, whole sentences only, up to about `limit` characters; at least one sentence."""
    kept = ""
    for paragraph in paragraphs[:3]:
        if kept and (len(kept) > limit // 3 or paragraph.startswith(("* ", "- ", "See ", "|"))):
            break
        if "```" in paragraph:
            kept += ("\n\n" if kept else "") + paragraph
            continue
        for at, sentence in enumerate(_SENTENCE_END.split(paragraph)):
            if kept and len(kept) + len(sentence) > limit:
                return _finish(kept)
            kept += (("\n\n" if at == 0 else " ") if kept else "") + sentence
    return _finish(kept)


def _finish(text: str) -> str:
    text = text.rstrip()
    text = re.sub(
        r"(?:^|(?<=[.!?] ))(?:[^.!?]{0,60}(?:the following|as follows|[Ff]or example|[Ee]xample)):$", "", text
    ).rstrip()
    return re.sub(r"[:;,]$", ".", text) if not text.endswith("```") else text


def answer(entry: Entry) -> str:
    """What the entry is: its signature first, then its description."""
    text = shorten(entry.paragraphs)
    if entry.kind == "module":
        return f"`{entry.name}` is a module of Python's standard library. {text}"
    if entry.kind in ("term", "question", "section"):
        return text
    return f"`{entry.signature}`\n\n{text}"


def _use(entry: Entry) -> str:
    text = shorten(entry.paragraphs, 220)
    if entry.kind == "module":
        return f"Import it with `import {entry.name}`. {text}"
    how = {"class": "Create one with", "exception": "Raise or catch", "decorator": "Decorate with"}.get(
        entry.kind, "Write" if entry.kind in ("constant", "attribute") else "Call"
    )
    start = f"First `import {entry.module}`, then {how[0].lower()}{how[1:]}" if entry.module else how
    return f"{start} `{entry.signature}`. {text}"


def _arguments(entry: Entry) -> str | None:
    inner = entry.signature.partition("(")[2].rpartition(")")[0]
    if "(" not in entry.signature:
        return None
    if not inner.strip():
        return f"`{entry.signature}` takes no arguments."
    if "[" in inner or "=(" in inner:
        return f"The signature is `{entry.signature}`."
    needed: list[str] = []
    optional: list[str] = []
    for part in (p.strip() for p in inner.split(",")):
        if part in ("*", "/") or not part:
            continue
        name, equals, default = part.partition("=")
        name = name.split(":")[0].strip()
        if equals:
            optional.append(f"`{name}` (`{default.strip()}` by default)")
        else:
            (optional if name.startswith("*") else needed).append(f"`{name}`")
    said = f"The signature is `{entry.signature}`."
    if needed:
        said += f" It needs {_listed(needed)}."
    if optional:
        said += f" Optional: {_listed(optional)}."
    return said


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _where(entry: Entry) -> str | None:
    if not entry.module or entry.kind not in ("function", "class", "exception", "decorator", "constant"):
        return None
    if "." in entry.short_name:
        return None
    name = entry.short_name
    return f"`{name}` is in the `{entry.module}` module: `from {entry.module} import {name}`."


def _example(entry: Entry) -> str | None:
    example = next((e for e in entry.examples if 20 <= len(e) <= 500), None)
    return f"Here is an example:\n\n```python\n{example}\n```" if example else None


class Author:
    """Writes the conversations. It needs all entries at once to know which short names are unambiguous."""

    def __init__(self, entries: Sequence[Entry], often: frozenset[str]) -> None:
        """`often` names the modules people ask about most; things in them get twice the questions."""
        self._entries = entries
        self._often = often
        self._short = Counter(alias for entry in entries for alias in self._aliases(entry))

    @staticmethod
    def _aliases(entry: Entry) -> set[str]:
        """Names by which the entry might be meant, beside its full one."""
        aliases = {entry.short_name}
        if entry.kind in ("function", "class", "exception", "decorator"):
            aliases.add(entry.name.rsplit(".", 1)[-1])
        return aliases - {entry.name}

    def names(self, entry: Entry) -> list[str]:
        """The full name, and the shorter ones that mean this entry only."""
        return [entry.name, *sorted(a for a in self._aliases(entry) if self._short[a] == 1)]

    def exchanges(self, entry: Entry, rng: random.Random) -> list[tuple[str, str]]:
        """Question and answer pairs about the entry."""
        if entry.kind == "question":
            name = entry.name.rstrip("?")
            return [(entry.name, answer(entry)), (name, answer(entry)), (f"{name.lower()}?", answer(entry))]
        if entry.kind == "section":
            return [(q.format(n=entry.name), answer(entry)) for q in rng.sample(_SECTION, 2)]
        if entry.kind == "term":
            article = "an" if entry.name[0] in "aeiou" else "a"
            return [(q.format(n=entry.name, a=article), answer(entry)) for q in _TERM]
        return self._about_object(entry, rng)

    def _about_object(self, entry: Entry, rng: random.Random) -> list[tuple[str, str]]:
        names = self.names(entry)
        often = 2 if (entry.module or entry.name.split(".")[0]) in self._often or not entry.module else 1
        callable_ = entry.kind in ("function", "method", "decorator")
        asked = [(q, answer(entry)) for q in rng.sample(_WHAT if callable_ else _WHAT_NOUN, 5 * often)]
        asked += [(q, _use(entry)) for q in rng.sample(_USE, often)]
        if entry.kind == "module":
            asked += [
                (f"What is the {{n}} module{end}", answer(entry)) for end in ("?", " for?", " used for?")
            ]
            asked += [
                ("What does the {n} module do?", answer(entry)),
                ("Tell me about the {n} module.", answer(entry)),
            ]
        if entry.kind == "exception":
            asked += [(q, answer(entry)) for q in rng.sample(_RAISED, 2)]
        if callable_ and (said := _arguments(entry)):
            asked += [(q, said) for q in rng.sample(_ARGUMENTS, often)]
        if (said := _where(entry)) and self._short[entry.short_name] == 1:
            asked += [(q.replace("{s}", entry.short_name), said) for q in rng.sample(_WHERE, often)]
        if said := _example(entry):
            asked += [(q, said) for q in rng.sample(_EXAMPLE, 2)]
        pairs = []
        for question, said in asked:
            name = rng.choice(names) if rng.random() < 0.5 else names[0]
            pairs.append((question.replace("{n}", name).replace("{k}", entry.kind), said))
        return pairs

    def follow_up(self, entry: Entry, rng: random.Random) -> Conversation | None:
        """A second turn that says "it" instead of the name."""
        choices: list[tuple[tuple[str, ...], str | None]] = [(_THEN_EXAMPLE, _example(entry))]
        if entry.kind in ("function", "method"):
            choices.append((_THEN_ARGUMENTS, _arguments(entry)))
        possible = [(questions, said) for questions, said in choices if said]
        if not possible or entry.kind in ("term", "question", "section"):
            return None
        questions, said = rng.choice(possible)
        first = rng.choice(_WHAT_NOUN).format(n=rng.choice(self.names(entry)), k=entry.kind)
        return turns((first, answer(entry)), (rng.choice(questions), said))

    def conversations(self, entry: Entry) -> list[Conversation]:
        """All conversations about one entry, some with a system prompt."""
        rng = rng_for(entry.name)
        if entry.kind == "section" and (len(entry.name) < 8 or _DULL_SECTIONS.search(entry.name)):
            return []
        if len(shorten(entry.paragraphs)) < 12:
            return []
        made = [turns(pair) for pair in self.exchanges(entry, rng)]
        follow_up = self.follow_up(entry, rng)
        if follow_up and rng.random() < 0.6:
            made.append(follow_up)
        return [with_system(conversation, rng) for conversation in made]

    def mixed(self, entries: Sequence[Entry], count: int, seed: str) -> Iterable[Conversation]:
        """Conversations of two or three turns about unrelated things."""
        rng = rng_for(seed)
        asked = [entry for entry in entries if entry.kind not in ("section", "question")]
        for _ in range(count):
            chosen = rng.sample(asked, rng.choice((2, 2, 3)))
            pairs = [rng.choice(self.exchanges(entry, rng)) for entry in chosen]
            yield with_system(turns(*pairs), rng)


def turns(*pairs: tuple[str, str]) -> Conversation:
    """Question and answer pairs as messages."""
    return [
        message
        for question, said in pairs
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": said})
    ]


def with_system(conversation: Conversation, rng: random.Random) -> Conversation:
    """Four in ten conversations start with a system prompt."""
    if rng.random() >= 0.4:
        return conversation
    return [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}, *conversation]
