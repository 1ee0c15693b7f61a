"""A reader for the reStructuredText that Python's documentation is written in.

It is not a full parser. It splits a page into blocks (headings, paragraphs, code, directives), enough
to print a page as plain text (`to_text`) and find what each function, class and module is for (`entries.py`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DROPPED = _words("""
    index sectionauthor moduleauthor toctree tabularcolumns highlight include only image contents
    program role testsetup testcleanup audit-event audit-event-table literalinclude raw default-domain
    impl-detail-table availability sidebar figure list-table csv-table cssclass productionlist
""")
_CODE = _words("""
    code-block code sourcecode doctest testcode testoutput parsed-literal
""")

_DIRECTIVE = re.compile(r"\.\. ([\w:-]+?)::(?:\s+(.*))?$")
_OPTION = re.compile(r":([\w-]+):\s*(.*)$")
_BULLET = re.compile(r"(?:[*-]|\d+[.)]|\(\d+\)|#\.)\s+")
_RULE = re.compile(r"([=\-~^\"'`#*+.:])\1{2,}$")

_LITERAL = re.compile(r"``(.+?)``")
_ROLE = re.compile(r":([a-zA-Z:+-]+):`([^`]+)`")
_TITLED = re.compile(r"^(.*?)\s*<([^<>]*)>$", re.DOTALL)
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]+>`__?")
_PHRASE_LINK = re.compile(r"`([^`<]+)`__?")
_STRONG = re.compile(r"\*\*([^*]+)\*\*")
_EMPHASIS = re.compile(r"(?<![\w*`])\*((?:\\\*)*[A-Za-z_][^*`]*?)\*(?![\w*])")
_PROSE_ROLES = _words("""
    ref term dfn pep rfc issue gh doc abbr menuselection guilabel newsgroup sup sub title
""")


@dataclass(frozen=True)
class Block:
    """One piece of a page. `kind` is heading, paragraph, code, table or directive."""

    kind: str
    indent: int
    text: str
    directive: str = ""
    arguments: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


def clean_inline(text: str, parameters: bool = True) -> str:
    """Inline markup to plain text, with code in single backticks.

    What is *emphasised* is a parameter inside the description of a function, and just a word elsewhere;
    `parameters` says which.
    """
    saved: list[str] = []

    def save(shown: str) -> str:
        saved.append(shown)
        return f"\0{len(saved) - 1}\0"

    def role(match: re.Match[str]) -> str:
        name, target = match[1].rsplit(":", 1)[-1], " ".join(match[2].split())
        titled = _TITLED.match(target)
        if titled and titled[1]:
            target = titled[1]
        elif name == "abbr":
            target = target.split(" (")[0]
        target = target.lstrip("!")
        if target.startswith("~"):
            target = target.rsplit(".", 1)[-1]
        if name in ("pep", "rfc"):
            return f"{name.upper()} {target}"
        if name in ("issue", "gh"):
            return f"issue {target}"
        if name in ("func", "meth") and not target.endswith(")"):
            target += "()"
        return save(target if name in _PROSE_ROLES else f"`{target}`")

    text = _LITERAL.sub(lambda m: save(f"`{m[1]}`"), text)
    text = _ROLE.sub(role, text)
    text = _LINK.sub(r"\1", text)
    text = _PHRASE_LINK.sub(r"\1", text)
    text = _STRONG.sub(r"\1", text)
    text = _EMPHASIS.sub(lambda m: save(f"`{m[1]}`" if parameters else m[1]), text)
    text = re.sub(r"\[#?[\w-]*\]_", "", text).replace("|version|", "3.11")
    text = re.sub(r"\\(.)", r"\1", text)
    while "\0" in text:
        text = re.sub(r"\0(\d+)\0", lambda m: saved[int(m[1])], text)
    return re.sub(r"(?<=\S)  +", " ", re.sub(r"\\([*_])", r"\1", text)).strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


class _Reader:
    """A cursor over the lines of one page."""

    def __init__(self, source: str) -> None:
        self.lines = [line.rstrip() for line in source.expandtabs(8).splitlines()]
        self.at = 0

    def body(self, indent: int) -> list[str]:
        """Consumes every line deeper than `indent`, and the blank ones between them."""
        start = end = self.at
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if line and _indent(line) <= indent:
                break
            self.at += 1
            if line:
                end = self.at
        return self.lines[start:end]

    def blocks(self) -> Iterator[Block]:
        literal_below: int | None = None
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if not line:
                self.at += 1
                continue
            indent = _indent(line)
            if literal_below is not None and indent > literal_below:
                yield _code(self.body(literal_below), indent)
                literal_below = None
                continue
            literal_below = None
            if line.lstrip().startswith((".. ", "__ ")) or line.strip() == "..":
                yield from self._explicit(line, indent)
            elif (heading := self._heading(line)) is not None:
                yield heading
            else:
                block = self._paragraph(line, indent)
                if block.kind == "paragraph" and block.text.endswith("::"):
                    literal_below = indent
                    text = (
                        block.text[:-1] if len(block.text) > 2 and block.text[-3] != " " else block.text[:-3]
                    )
                    block = Block("paragraph", indent, text)
                if block.text:
                    yield block

    def _explicit(self, line: str, indent: int) -> Iterator[Block]:
        """A directive; or a comment, a target or a substitution, none of which a reader sees."""
        self.at += 1
        match = _DIRECTIVE.match(line.strip())
        if match is None or match[1] in _DROPPED:
            self.body(indent)
            return
        name = match[1]
        arguments = [match[2]] if match[2] else []
        options: dict[str, str] = {}
        while self.at < len(self.lines) and self.lines[self.at] and _indent(self.lines[self.at]) > indent:
            text = self.lines[self.at].strip()
            option = _OPTION.match(text)
            if option and not text.startswith(":class:`"):
                options[option[1]] = option[2]
            elif arguments and arguments[-1].endswith("\\"):
                arguments[-1] = f"{arguments[-1][:-1].rstrip()} {text}"
            elif (
                arguments
                and name not in _CODE
                and not options
                and "note" not in name
                and "version" not in name
            ):
                arguments.append(text)
            else:
                break
            self.at += 1
        if name in _CODE:
            body = self.body(indent)
            if body:
                yield _code(body, indent)
            return
        yield Block("directive", indent, "", name, tuple(arguments), options)

    def _heading(self, line: str) -> Block | None:
        following = self.lines[self.at + 1 : self.at + 3]
        if _RULE.match(line):
            if len(following) == 2 and following[1] == line and following[0]:
                self.at += 3
                return Block("heading", 0, following[0].strip())
            self.at += 1
            return Block("heading", 0, "")
        if not line.startswith(" ") and following and _RULE.match(following[0]) and len(following[0]) >= 3:
            self.at += 2
            return Block("heading", 0, line)
        return None

    def _paragraph(self, line: str, indent: int) -> Block:
        if line.lstrip().startswith(("+-", "+=", "===")):
            return Block("table", indent, "\n".join(self._run(lambda other: True)))
        if line.lstrip().startswith(">>>"):
            return _code(self._run(lambda other: True), indent)
        bullet = _BULLET.match(line.lstrip())
        inner = indent + len(bullet[0]) if bullet else indent
        first = self.lines[self.at].strip()
        self.at += 1
        rest = self._run(lambda other: _indent(other) == inner and not _BULLET.match(other.lstrip()))
        return Block("paragraph", indent, " ".join([first, *(other.strip() for other in rest)]))

    def _run(self, belongs: Callable[[str], bool]) -> list[str]:
        start = self.at
        while self.at < len(self.lines) and self.lines[self.at] and belongs(self.lines[self.at]):
            if self.lines[self.at].lstrip().startswith(".. ") or (self.at > start and self._is_heading()):
                break
            self.at += 1
        return self.lines[start : self.at]

    def _is_heading(self) -> bool:
        after = self.lines[self.at + 1] if self.at + 1 < len(self.lines) else ""
        line = self.lines[self.at]
        return not line.startswith((" ", "+", "=")) and bool(_RULE.match(after)) and len(after) >= len(line)


def _code(lines: list[str], indent: int) -> Block:
    least = min((_indent(line) for line in lines if line), default=0)
    return Block("code", indent, "\n".join(line[least:] for line in lines).strip("\n"))


def blocks(source: str) -> list[Block]:
    """The page as blocks, in order."""
    return list(_Reader(source).blocks())


_LABELLED = re.compile(
    r"^\.\. _([\w.-]+):\n\n(?:\.\. .*\n\n)*([^\s.].*)\n([=\-~^\"'`#*+])\3{2,}$", re.MULTILINE
)


def labels(source: str) -> dict[str, str]:
    """The headings that other pages refer to by a label."""
    return {label.lower(): title.strip() for label, title, _ in _LABELLED.findall(source)}


def resolve_references(source: str, titles: dict[str, str]) -> str:
    """Writes the heading into references that give only its label."""

    def titled(match: re.Match[str]) -> str:
        title = titles.get(match[1].lower())
        return (
            f":ref:`{clean_inline(title, parameters=False).replace('`', '')} <{match[1]}>`"
            if title
            else match[0]
        )

    return re.sub(r":ref:`([\w.-]+)`", titled, source)


def to_text(source: str) -> str:
    """The page as plain text: `#` headings, one line a paragraph, code indented by four."""
    parts: list[str] = []
    for block in blocks(source):
        pad = " " * min(block.indent, 8)
        if block.kind == "heading":
            if block.text:
                parts.append(f"# {clean_inline(block.text)}")
        elif block.kind == "code":
            parts.append("\n".join(f"{pad}    {line}".rstrip() for line in block.text.splitlines()))
        elif block.kind == "table":
            parts.append(block.text)
        elif block.kind == "paragraph":
            parts.append(pad + clean_inline(block.text, parameters=block.indent > 0))
        elif shown := _directive_text(block):
            parts.append(pad + shown)
    return "\n\n".join(parts) + "\n"


def _directive_text(block: Block) -> str:
    argument = clean_inline(" ".join(block.arguments))
    match block.directive:
        case "versionadded":
            return f"New in version {argument}"
        case "versionchanged":
            return f"Changed in version {argument}"
        case "deprecated" | "deprecated-removed":
            return f"Deprecated since version {argument}"
        case "note" | "warning" | "important" | "caution" | "seealso" | "tip":
            return f"{block.directive.capitalize().replace('Seealso', 'See also')}: {argument}".rstrip()
        case "module" | "currentmodule":
            return f"module {argument}"
        case "rubric" | "topic" | "describe" | "option" | "cmdoption" | "envvar" | "opcode":
            return argument
        case "glossary" | "testcode" | "doctest":
            return ""
    joined = "\n".join(
        " " * min(block.indent, 8) + f"{block.directive} {signature(a)}" for a in block.arguments
    )
    return joined.lstrip()


def signature(argument: str) -> str:
    """A directive's argument as Python: on one line, without the markup's backslashes."""
    return re.sub(r"\\([*_\\])", r"\1", " ".join(argument.split()))
