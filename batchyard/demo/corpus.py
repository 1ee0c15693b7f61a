"""Builds the demo model's corpus: `python -m batchyard.demo.corpus --docs DIR --out FILE --held-out FILE`.

Three kinds of document come of Python's standard library, each marked with its topic:

    source   the modules, and each of their functions alone
    docs     the documentation's pages, as plain text
    chat     conversations made from what the documentation and the docstrings say

A topic is what both a module's source and its documentation page are about ("json"). Two per cent of the text
is held out by topic, so neither what is asked about a held-out module nor its docstrings are trained on. The
most used modules are never held out: the demo model should know them.
"""

import argparse
import ast
import hashlib
import json
import sysconfig
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchyard.demo import rst, smalltalk
from batchyard.demo.chat import Author, Conversation
from batchyard.demo.entries import Entry, from_glossary, from_rst, from_source, read_text, unique


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


HELD_OUT_SHARE = 0.02
LARGEST_HELD_OUT = 0.15
"""A topic with more than this share of the held-out text would be most of what the perplexity says."""

OFTEN = _words("""
    os os.path json re sys pathlib collections itertools functools datetime time math random subprocess
    threading logging csv shutil glob string typing asyncio argparse dataclasses contextlib urllib.request
    hashlib pickle copy unittest sqlite3 tempfile io socket enum heapq bisect operator textwrap statistics
    struct uuid base64 queue abc concurrent.futures multiprocessing inspect warnings traceback zipfile
    decimal fractions builtins str list dict set bytes int float object
""")
"""The modules and types people ask about most."""

_ALWAYS_TRAINED = OFTEN | {"stdtypes", "functions", "exceptions", "glossary", "faq/programming", "constants"}
_DOC_FOLDERS = ("library", "reference", "tutorial", "howto", "faq", "using")
_SKIPPED_FOLDERS = _words("""
    site-packages test tests idle_test idlelib pydoc_data turtledemo lib2to3 lib-dynload __pycache__
    _bundled distutils ensurepip msilib
""")
_SKIPPED_FILES = (
    "encodings/",
    "_sysconfigdata",
    "config-",
    "_pydecimal",
    "turtle.py",
    "tkinter/tix",
    "__phello__",
)


@dataclass(frozen=True)
class Document:
    """One training document: plain `text`, or the `messages` of a conversation."""

    kind: str
    topic: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.text) + sum(len(message["content"]) for message in self.messages)


def topic_of_source(relative: Path) -> str:
    """The package or module: `json` for json/decoder.py, `os.path` for what implements it."""
    top = relative.parts[0].removesuffix(".py")
    return {"posixpath": "os.path", "ntpath": "os.path", "genericpath": "os.path"}.get(
        top, top.lstrip("_") or top
    )


def topic_of_page(relative: Path) -> str:
    """The module for a page of the library reference, the page itself for others."""
    name = relative.name.removesuffix(".rst.txt").removesuffix(".rst")
    if relative.parts[0] != "library":
        return f"{relative.parts[0]}/{name}" if len(relative.parts) > 1 else name
    return name if name == "os.path" else name.split(".")[0].split("-")[0]


def source_files(stdlib: Path) -> Iterator[Path]:
    """The standard library without its tests, generated tables and bundled packages, relative to `stdlib`."""
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not str(relative).startswith(_SKIPPED_FILES):
            yield relative


def functions_of(source: str) -> Iterator[str]:
    """The functions of a module, each as a text of its own, so that a bare `def` is a good beginning."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        found = node.body if isinstance(node, ast.ClassDef) else [node]
        for function in found:
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = textwrap.dedent("".join(lines[function.lineno - 1 : function.end_lineno]))
            if 3 <= text.count("\n") <= 60:
                yield text


def read_sources(stdlib: Path) -> tuple[list[Document], list[Entry]]:
    """The source documents, and what the docstrings describe."""
    documents: list[Document] = []
    entries: list[Entry] = []
    for relative in source_files(stdlib):
        text, topic = read_text(stdlib / relative), topic_of_source(relative)
        documents.append(Document("source", topic, text))
        documents += [Document("function", topic, function) for function in functions_of(text)]
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        if not any(part.startswith("_") for part in module.split(".")):
            entries += from_source(text, module, topic)
    return documents, entries


def read_docs(docs: Path) -> tuple[list[Document], list[Entry]]:
    """The documentation pages, and what they describe."""
    paths = [path for folder in _DOC_FOLDERS for path in sorted((docs / folder).rglob("*.rst*"))]
    paths += sorted(docs.glob("glossary.rst*"))
    titles: dict[str, str] = {}
    for path in paths:
        titles |= rst.labels(read_text(path))
    documents: list[Document] = []
    entries: list[Entry] = []
    for path in paths:
        topic = topic_of_page(path.relative_to(docs))
        text = rst.resolve_references(read_text(path), titles)
        documents.append(Document("docs", topic, rst.to_text(text)))
        entries += from_glossary(text, topic) if topic == "glossary" else from_rst(text, topic)
    return documents, entries


def held_out_topics(documents: list[Document]) -> frozenset[str]:
    """Topics in the order of their hash, until they hold `HELD_OUT_SHARE` of the text."""
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.topic] += document.size
    wanted = HELD_OUT_SHARE * sum(sizes.values())
    chosen: set[str] = set()
    for topic in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if topic in _ALWAYS_TRAINED or sizes[topic] > LARGEST_HELD_OUT * wanted:
            continue
        if sum(sizes[name] for name in chosen) + sizes[topic] <= wanted:
            chosen.add(topic)
    return frozenset(chosen)


def chat_documents(entries: list[Entry], held_out: frozenset[str]) -> Iterator[Document]:
    """Conversations. Of a held-out topic there is one for each entry: variants would only repeat it."""
    author = Author(entries, OFTEN)
    by_side: dict[bool, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_side[entry.topic in held_out].append(entry)
        conversations = author.conversations(entry)
        if entry.topic in held_out:
            conversations = conversations[:1]
        for conversation in conversations:
            yield _chat(entry.topic, conversation)
    for conversation in author.mixed(by_side[False], 4000, "mixed"):
        yield _chat("conversation", conversation)
    for conversation in smalltalk.conversations("smalltalk", repeats=6):
        yield _chat("conversation", conversation)


def _chat(topic: str, conversation: Conversation) -> Document:
    return Document("chat", topic, messages=tuple(conversation))


def build(stdlib: Path, docs: Path) -> tuple[list[Document], list[Document]]:
    """The documents to train on, and those held out."""
    sources, described = read_sources(stdlib)
    pages, documented = read_docs(docs)
    entries = unique([*documented, *described])
    # The functions repeat the sources: they do not count as text, and are held out with their module.
    held_out = held_out_topics([document for document in (*sources, *pages) if document.kind != "function"])
    documents = [*sources, *pages, *chat_documents(entries, held_out)]
    training = [document for document in documents if document.topic not in held_out]
    kept_back = [d for d in documents if d.topic in held_out and d.kind != "function"]
    return training, kept_back


def as_json(document: Document) -> dict[str, object]:
    """The form of a document in a file."""
    named: dict[str, object] = {"kind": document.kind, "topic": document.topic}
    return named | ({"messages": list(document.messages)} if document.messages else {"text": document.text})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--docs", type=Path, required=True, help="the documentation's sources, *.rst or *.rst.txt"
    )
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument(
        "--out", type=Path, required=True, help="the training documents, one JSON object a line"
    )
    parser.add_argument("--held-out", type=Path, required=True, help="the held-out documents, a JSON list")
    arguments = parser.parse_args()
    training, held_out = build(arguments.stdlib, arguments.docs)
    with arguments.out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_json(document), ensure_ascii=False) + "\n" for document in training)
    rows = ",\n".join(json.dumps(as_json(document), ensure_ascii=False) for document in held_out)
    arguments.held_out.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    for name, documents in (("training", training), ("held out", held_out)):
        sizes: Counter[str] = Counter()
        for document in documents:
            sizes[document.kind] += document.size
        print(f"{name}: {len(documents)} documents, characters {dict(sizes)}")
    print("held-out topics:", ", ".join(sorted({document.topic for document in held_out})))


if __name__ == "__main__":
    main()
