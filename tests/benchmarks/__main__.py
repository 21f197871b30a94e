"""`python -m tests.benchmarks [NAME [WORD…]]…`: run benchmarks and print their tables; a WORD picks among its cases."""

from __future__ import annotations

import inspect
import sys

from tests.benchmarks import data, memory, ppo, startup, trl_overhead

BENCHMARKS = {
    "startup": startup.run,
    "data": data.run,
    "trl_overhead": trl_overhead.run,
    "memory": memory.run,
    "ppo": ppo.run,
}

if __name__ == "__main__":
    asked: list[tuple[str, list[str]]] = []
    for word in sys.argv[1:] or BENCHMARKS:
        if word in BENCHMARKS:
            asked.append((word, []))
        elif asked:
            asked[-1][1].append(word)
        else:
            sys.exit(f"no benchmark {word}; there is {', '.join(BENCHMARKS)}")
    for name, words in asked:
        print(f"\n## {name}\n\n{inspect.getdoc(BENCHMARKS[name])}\n", flush=True)
        BENCHMARKS[name](*words)
