"""What Python's documentation says about each thing, as records that questions can be made from."""

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from batchyard.demo import rst
from batchyard.demo.rst import Block, blocks, clean_inline

_KINDS = {
    "function": "function",
    "coroutinefunction": "function",
    "decorator": "decorator",
    "class": "class",
    "exception": "exception",
    "method": "method",
    "coroutinemethod": "method",
    "abstractmethod": "method",
    "classmethod": "method",
    "staticmethod": "method",
    "attribute": "attribute",
    "data": "constant",
}
_MEMBERS = frozenset(("method", "attribute"))


@dataclass
class Entry:
    """One documented thing. `kind` is function, class, module, term, question, section...

    `topic` is what the held-out split goes by: everything of one topic is on one side.
    """

    kind: str
    name: str
    topic: str
    module: str = ""
    signature: str = ""
    paragraphs: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def short_name(self) -> str:
        """The name without its module: `deque.append` of `collections.deque.append`."""
        prefix = f"{self.module}."
        return self.name.removeprefix(prefix) if self.module else self.name


@dataclass
class _Open:
    """A directive whose body is being read; `entry` is None for a note and its like."""

    indent: int
    entry: Entry | None


class _Page:
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.module = ""
        self.open: list[_Open] = []
        self.found: list[Entry] = []

    def read(self, block: Block) -> None:
        while self.open and (
            block.indent <= self.open[-1].indent or (block.kind == "heading" and block.text)
        ):
            if self.open[-1].indent < 0 and block.kind != "heading" and not self._starts_entry(block):
                break
            self.open.pop()
        if block.kind == "directive":
            self._directive(block)
        elif block.kind == "heading" and block.text:
            self._heading(clean_inline(block.text, parameters=False))
        elif self.open and (entry := self.open[-1].entry) is not None:
            self._append(entry, block)

    def _starts_entry(self, block: Block) -> bool:
        return block.kind == "directive" and block.directive in _KINDS

    def _append(self, entry: Entry, block: Block) -> None:
        if block.kind == "paragraph":
            described = entry.kind not in ("section", "question", "module", "term")
            text = clean_inline(block.text, parameters=described)
            if text and not text.startswith(("Source code:", ":param")):
                entry.paragraphs.append(text)
        elif block.kind == "code":
            if entry.kind in ("question", "section") and len(entry.paragraphs) == 1:
                entry.paragraphs[0] += f"\n\n```python\n{block.text}\n```"
            entry.examples.append(block.text)

    def _directive(self, block: Block) -> None:
        argument = block.arguments[0] if block.arguments else ""
        if block.directive in ("module", "currentmodule"):
            self.module = argument
            if block.directive == "module":
                entry = Entry("module", argument, self.topic, argument)
                if synopsis := block.options.get("synopsis"):
                    entry.paragraphs.append(clean_inline(synopsis))
                self._start(-1, entry)
        elif block.directive in _KINDS and argument:
            self._start(block.indent, self._entry(_KINDS[block.directive], argument, block))
        else:
            self.open.append(_Open(block.indent, None))

    def _entry(self, kind: str, argument: str, block: Block) -> Entry:
        signature = rst.signature(argument)
        name = re.split(r"[(\s\[]", signature.removeprefix("await "), maxsplit=1)[0]
        owner = next((o.entry for o in reversed(self.open) if o.entry is not None and o.indent >= 0), None)
        if owner is not None and owner.kind == "class" and kind in _MEMBERS and "." not in name:
            name = f"{owner.short_name}.{name}"
            signature = f"{owner.short_name}.{signature}"
        module = block.options.get("module", self.module)
        qualified = name.startswith(f"{module}.") and not (kind in _MEMBERS and name.count(".") == 1)
        if module in ("", "builtins") or qualified:
            module = "" if module == "builtins" else module
            return Entry(kind, name, self.topic, module, signature)
        return Entry(kind, f"{module}.{name}", self.topic, module, f"{module}.{signature}")

    def _heading(self, text: str) -> None:
        kind = "question" if text.endswith("?") else "section"
        self._start(-1, Entry(kind, text, self.topic))

    def _start(self, indent: int, entry: Entry) -> None:
        self.found.append(entry)
        self.open.append(_Open(indent, entry))


def from_rst(source: str, topic: str) -> list[Entry]:
    """Everything the page describes: objects, modules, questions and sections, in order."""
    page = _Page(topic)
    for block in blocks(source):
        page.read(block)
    return [entry for entry in page.found if entry.paragraphs]


def from_glossary(source: str, topic: str) -> list[Entry]:
    """The terms of the glossary: a line indented by three, then its definition indented by six."""
    found: list[Entry] = []
    inside = False
    for block in blocks(source):
        inside = inside or block.directive == "glossary"
        if inside and block.kind == "paragraph" and block.indent == 3:
            found.append(Entry("term", clean_inline(block.text), topic))
        elif found and block.kind == "paragraph" and block.indent == 6:
            found[-1].paragraphs.append(clean_inline(block.text, parameters=False))
        elif found and block.kind == "code" and block.indent >= 6:
            found[-1].examples.append(block.text)
    return [entry for entry in found if entry.paragraphs]


def from_source(source: str, module: str, topic: str) -> Iterator[Entry]:
    """The public functions, classes and methods of a module that have a docstring."""
    tree = ast.parse(source)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        yield from _described(node, "", module, topic)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and member.name[0] != "_":
                    yield from _described(member, f"{node.name}.", module, topic)


def _described(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, owner: str, module: str, topic: str
) -> Iterator[Entry]:
    docstring = ast.get_docstring(node)
    if not docstring or len(docstring) < 20:
        return
    name = f"{module}.{owner}{node.name}"
    if isinstance(node, ast.ClassDef):
        kind, signature = "class", name
    else:
        kind = "method" if owner else "function"
        arguments = ast.unparse(node.args)
        if owner:
            arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
        signature = f"{name}({arguments})"
    paragraphs = [
        " ".join(part.split())
        for part in inspect.cleandoc(docstring).split("\n\n")
        if not re.search(r"^\s*>>>|\n {2,}\S", part)
    ]
    if paragraphs and len(paragraphs[0]) >= 15:
        yield Entry(kind, name, topic, module, signature, paragraphs)


def unique(entries: Iterable[Entry]) -> list[Entry]:
    """One entry of each name: the first, unless it says little and a later one says more."""

    def told(entry: Entry) -> int:
        return min(sum(map(len, entry.paragraphs)), 300)

    best: dict[str, Entry] = {}
    for entry in entries:
        if entry.name not in best or told(entry) > told(best[entry.name]):
            best[entry.name] = entry
    return list(best.values())


def read_text(path: Path) -> str:
    """A source file, tolerant of the few that are not UTF-8."""
    return path.read_text(encoding="utf-8", errors="replace")
