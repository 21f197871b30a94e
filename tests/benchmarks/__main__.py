"""`python -m tests.benchmarks [NAME…]`: run benchmarks and print their tables."""

from __future__ import annotations

import sys

from tests.benchmarks import startup, trl_overhead

BENCHMARKS = {"startup": startup.run, "trl_overhead": trl_overhead.run}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        print(f"\n## {name}\n\n{BENCHMARKS[name].__doc__}\n", flush=True)
        BENCHMARKS[name]()
