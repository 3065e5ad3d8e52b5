"""The command line of the benchmark, and what it prints."""

import argparse
import json
import sys

from stages.core.command import UserError
from stages.core.params import load_params
from tools.common.machine import machine
from tools.proof.bench import fits, floor, repro, stages
from tools.proof.bench.epochs import RAW, RESIZED
from tools.proof.bench.figures import Target, figures_table, targets_table

PARTS = {"fit": fits, "floor": floor, "stages": stages, "repro": repro}


def main() -> None:
    """Measure the parts that the command line names; print their tables and the targets."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure speed and memory on this machine.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--runs", default="3", metavar="N", help="default: 3")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.work:
            part, *rest = arguments.work
            print(json.dumps(PARTS[part].work(*rest)))
        else:
            bench(arguments.parts, arguments.runs)
    except (UserError, OSError) as error:
        sys.exit(f"bench: {error}")
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        sys.exit(130)


def bench(names: list[str], runs_text: str) -> None:
    """Measure ``names``, all parts if there is none; raise ``UserError`` for what cannot be measured."""
    for name in names:
        if name not in PARTS:
            raise UserError(f"expected parts from {', '.join(PARTS)}, got {name!r}")
    if not runs_text.isdecimal() or not 1 <= int(runs_text) <= 100:
        raise UserError(f"--runs: expected a whole number from 1 to 100, got {runs_text!r}")
    hyper, runs = load_params().train, int(runs_text)
    for folder in (RAW, RESIZED):
        if not folder.is_dir():
            raise UserError(f"{folder}: expected the data set, found nothing: run `dvc repro --quiet resize`")
    print(*machine(), f"runs: {runs}; {hyper}", "figures: median (minimum to maximum)", sep="\n")
    targets: list[Target] = []
    for name, part in PARTS.items():
        if name in (names or PARTS):
            print(flush=True)
            figures = part.measure(runs)
            print(figures_table(name, figures), flush=True)
            targets += part.targets(figures)
    print(f"\n{targets_table(targets)}")


if __name__ == "__main__":
    main()
