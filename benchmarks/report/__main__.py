"""Tables and pages from records: ``python -m benchmarks.report``.

    python -m benchmarks.report                      the README's blocks, printed
    python -m benchmarks.report --readme             written into the README, with its plots
    python -m benchmarks.report --html report.html   everything, as one page that opens offline

What the gate refuses is not reported (``benchmarks.gate``), and the page says why.
"""

import argparse
from pathlib import Path

from benchmarks.report import html, readme
from benchmarks.report.results import FOLDER, read


def main() -> None:
    """Read the records, write what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--readme", action="store_true", help="write the README's blocks")
    args = parser.parse_args()
    results = read(args.results)
    if args.html:
        args.html.write_text(html.render(results), encoding="utf-8")
    if args.readme:
        readme.write(results)
    if not args.html and not args.readme:
        for name, block in readme.blocks(results).items():
            print(f"{name}\n\n{block}")


if __name__ == "__main__":
    main()
