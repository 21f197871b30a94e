"""Whether the registry describes the metrics that are reported."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rlhf_cli.evaluation.metric_types import Metric


def undescribed(names: Iterable[str], metrics: Iterable[Metric]) -> list[str]:
    """Return the names that no metric describes; `<slice>` and the like stand for one part of a name or more."""
    described = [re.sub("<[a-z]+>", ".+", re.escape(name)) for metric in metrics for name in metric.names()]
    return sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in described))
