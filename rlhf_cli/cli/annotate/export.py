"""`rlhf annotate export`: write the judgments in the store as a version of preference data."""

from __future__ import annotations

from rlhf_cli.cli.stage_commands import stage_command

export = stage_command("feedback")
