"""`python -m thermokron.rtl.formal`: prove, print a table, fail if anything does."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from thermokron.rtl.formal.solver import missing


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    if reason := missing():
        print(reason, file=sys.stderr)
        return 2
    from thermokron.rtl.formal.proofs import PROOFS
    from thermokron.rtl.formal.prove import prove
    from thermokron.rtl.formal.table import lines, statement

    parser = argparse.ArgumentParser(prog="python -m thermokron.rtl.formal", description=__doc__)
    known = [proof.name for proof in PROOFS]
    parser.add_argument("names", nargs="*", metavar="proof", help=f"of {', '.join(known)}")
    parser.add_argument("--long", action="store_true", help="those too that take minutes")
    parser.add_argument("--list", action="store_true", help="say what is proved, and prove nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("build/formal"), metavar="DIR")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(known):
        parser.error(f"no proof is called {sorted(unknown)}; there are {', '.join(known)}")
    chosen = [p for p in PROOFS if p.name in options.names or not options.names]
    if options.list:
        print(statement(chosen))
        return 0
    good = True
    for proof in chosen:
        if proof.long and not options.long and proof.name not in options.names:
            continue
        try:
            report = prove(proof, options.output)
        except (ValueError, RuntimeError) as error:
            print(f"{proof.name}: {error}", file=sys.stderr)
            good = False
            continue
        print("\n".join(lines(report)), flush=True)
        good &= report.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
