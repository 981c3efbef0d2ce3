"""A part of the benchmarks that measures nothing: python -m tests.bench.stand_in [--fail]."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import charts
from benchmarks.document import Table
from benchmarks.run import Run, parser_of


def main(given: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10])
    arguments = parser.parse_args(given)
    run = Run.begin("stand_in", __doc__, arguments)
    if arguments.fail:
        raise SystemExit(3)
    columns = [("case", "{}", str), ("ratio", "{:.2f}x", lambda each: each / 700)]
    figures = charts.ratios(list(map(str, arguments.sizes)), {"one": arguments.sizes}, "times")
    run.end([Table.of("Nothing", arguments.sizes, columns)], ("At least 1.",), lambda: figures)


if __name__ == "__main__":
    main()
