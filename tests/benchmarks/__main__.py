"""Run benchmarks and print their tables: `python -m tests.benchmarks [NAME [WORD…]]…`. Words select cases of a NAME."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping

from tests.benchmarks import annotation, data, memory, ppo, startup, trl_overhead

BENCHMARKS: Mapping[str, Callable[..., None]] = {
    "startup": startup.run,
    "data": data.run,
    "trl_overhead": trl_overhead.run,
    "memory": memory.run,
    "ppo": ppo.run,
    "annotation": annotation.run,
}

if __name__ == "__main__":
    chosen: list[tuple[str, list[str]]] = []
    for word in sys.argv[1:] or BENCHMARKS:
        if word in BENCHMARKS:
            chosen.append((word, []))
        elif chosen:
            chosen[-1][1].append(word)
        else:
            sys.exit(f"unknown benchmark {word!r}; expected {', '.join(BENCHMARKS)}")
    for name, words in chosen:
        print(f"\n## {name}\n\n{inspect.getdoc(BENCHMARKS[name])}\n", flush=True)
        BENCHMARKS[name](*words)
