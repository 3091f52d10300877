"""Run the benchmarks, keep their results and say which goals do not hold.

A benchmark whose result is there and whose inputs did not change is not run again.
``--quick`` runs take at most a minute each and keep nothing.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from benchmarks import _results as results
from benchmarks._report import progress

# A benchmark that takes longer counts as crashed.
LONGEST, LONGEST_QUICK = 1800.0, 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; return 1 if a benchmark crashed, else 0."""
    names = results.available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--quick", action="store_true", help="short, keeps nothing")
    parser.add_argument("--force", action="store_true", help="run unchanged ones too")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.names) - set(names):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: {', '.join(names)}")
    found: dict[str, results.Result] = {}
    crashed = []
    for name in asked.names or names:
        result = one(name, quick=asked.quick, force=asked.force)
        if result is None:
            crashed.append(name)
        else:
            found[name] = result
    if not asked.quick:
        kept = {name: results.read(name) for name in names}
        results.write_table({n: r for n, r in kept.items() if r is not None})
    report(found, crashed)
    return 1 if crashed else 0


def one(name: str, *, quick: bool, force: bool) -> results.Result | None:
    """Return the result of one benchmark, kept or new; None if it crashed."""
    inputs = results.inputs_hash(name)
    kept = None if quick or force else results.read(name)
    if kept is not None and kept["inputs"] == inputs:
        progress(f"{name}: nothing changed since {kept['date']}, not run again")
        return kept
    module = ["-m", f"benchmarks.{name}", *(["--quick"] if quick else [])]
    progress(f"{name}: python {' '.join(module)}")
    machine, begin = results.machine(), time.monotonic()
    output = run([sys.executable, *module], LONGEST_QUICK if quick else LONGEST)
    if output is None:
        return None
    result: results.Result = {
        "command": f"python {' '.join(module)}",
        "commit": results.commit(),
        "inputs": inputs,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "seconds": round(time.monotonic() - begin, 1),
        "machine": machine,
        # Libraries print to standard output, too (TenSEAL's warnings do).
        "lines": [json.loads(x) for x in output.splitlines() if x.startswith("{")],
    }
    if not quick:
        results.write(name, result)
    return result


def run(command: Sequence[str], longest: float) -> str | None:
    """Return what a benchmark prints; None if it fails or takes too long."""
    with subprocess.Popen(
        command, cwd=results.ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=longest)
        except subprocess.TimeoutExpired:
            progress(f"stopped after {longest:g} s")
            process.send_signal(signal.SIGINT)  # so that it ends its own processes
            try:
                process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            return None
    return output if process.returncode == 0 else None


def report(found: dict[str, results.Result], crashed: Sequence[str]) -> None:
    """Print every line, then the goals that do not hold and what crashed."""
    for result in found.values():
        for line in result["lines"]:
            print(json.dumps(line))
    total = sum(x["holds"] is not None for r in found.values() for x in r["lines"])
    missed = results.missed(found)
    progress(f"\n{total - len(missed)} of {total} goals hold.")
    for text in missed:
        progress(f"does not hold: {text}")
    for name in crashed:
        progress(f"crashed: {name}")


if __name__ == "__main__":
    sys.exit(main())
