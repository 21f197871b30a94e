"""A disk that is full: the earlier version stays whole, the run ends with 6, and goes on where there is space again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_processes import folder as folder  # a recipe with data and a base
from .test_processes import losses, start

IN_A_SMALL_DISK = """
mount -t tmpfs -o size=3m none runs
rlhf() {{ {python} -m rlhf_cli "$@" --json; echo "ended with $?"; }}
rlhf sft -r recipe.yaml --set launch.processes=1
dd if=/dev/zero of=runs/filler bs=1024 count="$(($(df --output=avail runs | tail -1) - 60))" status=none
rlhf sft -r recipe.yaml --set launch.processes=1 --set seed=1
rlhf runs verify
rlhf runs list
rm runs/filler
rlhf sft -r recipe.yaml --set launch.processes=1 --set seed=1
rlhf runs verify
"""


def can_mount() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="this machine lets nobody mount a small disk of their own")
def test_a_full_disk_ends_a_run_with_6_and_leaves_the_earlier_version_whole(folder: Path) -> None:
    (folder / "runs").mkdir()
    script = IN_A_SMALL_DISK.format(python=sys.executable)
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    ended = subprocess.run(
        words, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    lines = ended.stdout.splitlines()
    codes = [int(line.removeprefix("ended with ")) for line in lines if line.startswith("ended with ")]
    told = [json.loads(line) for line in lines if line.startswith("{")]
    assert codes == [0, 6, 0, 0, 0, 0], ended.stderr
    (issue,) = told[1]["issues"]
    assert "space" in issue["message"].lower()
    assert "Free space" in issue["hint"] or "--runs-dir" in issue["hint"]
    assert "Traceback" not in ended.stderr
    complete = [(run["version"], run["state"]) for run in told[3]["runs"] if run["state"] == "complete"]
    assert complete == [("v0001", "complete")]
    assert told[4]["status"] == "ok"


def test_two_that_start_at_the_same_moment_make_two_versions(folder: Path) -> None:
    processes = [start(folder, "sft", "--set", "launch.processes=1") for _ in range(2)]
    told = [json.loads(process.communicate(timeout=200)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    runs = folder / "runs/t/sft"
    assert {Path(one["path"]).name for one in told} == {"v0001", "v0002"}
    assert losses(runs / "v0001", "loss") == losses(runs / "v0002", "loss")
    assert (runs / "latest").resolve().name == "v0002"
