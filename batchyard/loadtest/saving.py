"""Writes results: JSON, one HTML page and PNGs."""

from collections.abc import Sequence
from pathlib import Path

from batchyard.errors import ConfigError
from batchyard.loadtest.options import Parser
from batchyard.loadtest.page import render
from batchyard.loadtest.results import Result, load_result, write_text


def save_all(result: Result, stem: Path) -> list[str]:
    """Writes STEM.json, STEM.html and STEM*.png; lines that say so. Raises ConfigError."""
    path = Path(f"{stem}.json")
    result.save(path)
    return [f"wrote {path}", *draw_all([result], stem)]


def draw_all(results: Sequence[Result], stem: Path) -> list[str]:
    """The page and the PNGs; without matplotlib the last line says so."""
    from batchyard.loadtest.plots import write_plots

    page = Path(f"{stem}.html")
    write_text(page, render(results))
    try:
        pictures = write_plots(results, stem)
    except ConfigError as error:
        return [f"wrote {page}", str(error)]
    return [f"wrote {path}" for path in (page, *pictures)]


def main(argv: Sequence[str]) -> None:
    """`batchyard bench plot A.json [B.json ...] --save NAME`. Raises ConfigError."""
    parser = Parser(
        prog="batchyard bench plot", description="Draws saved results together.", allow_abbrev=False
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of batchyard bench --save")
    parser.add_argument(
        "--save", type=Path, required=True, metavar="NAME", help="writes NAME.html and NAME*.png"
    )
    given = parser.parse_args(list(argv))
    results = [load_result(path) for path in given.files]
    print(*draw_all(results, given.save), sep="\n")
