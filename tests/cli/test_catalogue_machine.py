"""Every error of the machine, through a stage: exit code 5 or 6, the hint, no traceback, and no new run."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from rlhf_cli.runs.layout import claim
from rlhf_cli.runs.lock import acquire_lock
from tests.support.command import Rlhf

VERSION = Path("runs/bot/sft/v0001")


def sft_issue(rlhf: Rlhf, *words: str, code: int) -> dict[str, str]:
    """Return the only issue of an sft stage that ends with exit code `code`."""
    result = rlhf("sft", "-r", "r.yaml", *words, "--json")
    assert result.code == code
    assert "Traceback" not in result.err
    return result.issue


@pytest.mark.parametrize(
    ("setting", "code", "location", "hint"),
    [
        ("base.dtype=float16", "hardware.unsupported-dtype", "base.dtype", "float32"),
        ("base.attention=flash_attention_2", "hardware.missing-kernel", "base", "base.attention: auto"),
    ],
)
@pytest.mark.usefixtures("base")
def test_stage_on_machine_without_the_feature_exits_5_and_creates_no_run(
    rlhf: Rlhf, setting: str, code: str, location: str, hint: str
) -> None:
    issue = sft_issue(rlhf, "--set", setting, code=5)
    assert issue["code"] == code
    assert location in issue["location"]
    assert hint in issue["hint"]
    assert not VERSION.exists()


@pytest.mark.parametrize("bits", ["nf4", "int8"])
@pytest.mark.usefixtures("base")
def test_quantized_base_without_bitsandbytes_exits_5(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch, bits: str) -> None:
    from transformers.quantizers import quantizer_bnb_4bit, quantizer_bnb_8bit

    for module, name in ((quantizer_bnb_4bit, "Bnb4BitHfQuantizer"), (quantizer_bnb_8bit, "Bnb8BitHfQuantizer")):

        def fail(*_args: object, **_kwargs: object) -> None:
            raise ImportError("Using `bitsandbytes` requires it to be installed.")

        monkeypatch.setattr(getattr(module, name), "validate_environment", fail)
    issue = sft_issue(rlhf, "--set", f"base.quantize={bits}", code=5)
    assert issue["code"] == "hardware.missing-kernel"
    assert "bitsandbytes" in issue["message"] + issue["hint"]
    assert "base.quantize: none" in issue["hint"]
    assert not VERSION.exists()


@pytest.mark.usefixtures("base")
def test_runs_directory_that_cannot_be_created_exits_6(rlhf: Rlhf) -> None:
    Path("file").touch()
    issue = sft_issue(rlhf, "--runs-dir", "file/runs", code=6)
    assert issue["code"] == "disk.not-writable"
    assert "--runs-dir" in issue["hint"]


@pytest.mark.usefixtures("base")
def test_read_only_disk_exits_6_with_its_reason(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(path: Path, *_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    issue = sft_issue(rlhf, code=6)
    assert issue["code"] == "disk.not-writable"
    assert "ead-only" in issue["message"]
    assert "--runs-dir" in issue["hint"]


@pytest.mark.skipif(sys.platform == "win32", reason="locks use flock")
@pytest.mark.usefixtures("base")
def test_lock_of_a_dead_process_blocks_neither_a_new_run_nor_removal(rlhf: Rlhf) -> None:
    child = os.fork()
    if child == 0:
        acquire_lock(claim(Path("runs").absolute(), "bot", "sft"), new=True)
        os._exit(0)  # without releasing the lock
    os.waitpid(child, 0)
    assert (VERSION / ".lock").exists()
    result = rlhf("sft", "-r", "r.yaml", "--json")
    assert result.code == 0
    assert result.json["path"].endswith("v0002")
    assert rlhf("runs", "rm", "sft@v0001").code == 0
    assert not VERSION.exists()
