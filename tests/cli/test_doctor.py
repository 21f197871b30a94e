"""What a machine can do is tried, what is missing is told with its hint, and nothing that is broken ends in a trace."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rlhf_cli.cli import doctor_checks
from rlhf_cli.cli.doctor_checks import CheckResult
from tests.support.command import Rlhf

SECRET = "hf_secret_of_a_person"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model of 3 MB, nobody logged in, and a hub that is not to be asked."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    model = folder / "models--org--small"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "blobs").mkdir()
    (model / "blobs" / "b").write_bytes(b"0" * 3_000_000)
    (model / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (model / "snapshots" / ("0" * 40) / "model.safetensors").symlink_to("../../blobs/b")
    for name, value in (("HF_HUB_CACHE", folder), ("HF_TOKEN_PATH", tmp_path / "token")):
        monkeypatch.setattr(constants, name, str(value))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


def by_name(found: Iterator[CheckResult]) -> dict[str, CheckResult]:
    return {one.name: one for one in found}


def test_a_sound_machine_exits_0_and_tells_all_in_one_object(rlhf: Rlhf, tmp_path: Path) -> None:
    ended = rlhf("doctor", "--json")
    assert ended.code == 0, ended.err
    assert {name: ended.json[name] for name in ("status", "stage")} == {"status": "ok", "stage": "doctor"}
    found = {one["name"]: one for one in ended.json["findings"]}
    for name in doctor_checks.PACKAGES:
        assert (found[name]["state"], found[name]["found"]) == ("ok", metadata.version(name))
    assert (
        found["cpu"]["state"] == found["nf4"]["state"] == found["int8"]["state"] == found["bfloat16"]["state"] == "ok"
    )
    assert found["runs folder"]["found"].startswith(f"{tmp_path}/runs: ")
    assert "HF_HUB_OFFLINE is set" in found["reach"]["found"]
    assert found["cached models"]["found"] == "org/small (3.0 MB)"
    assert found["token"]["state"] == "missing"
    assert all(one["hint"] for one in ended.json["findings"] if one["state"] != "ok")
    assert not (tmp_path / "runs").exists()


def test_people_get_a_line_each_and_a_verdict(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    ended = rlhf("doctor")
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert f"ok       packages  torch          {metadata.version('torch')}" in lines
    assert "ok       hub       token          HF_TOKEN is set" in lines
    assert lines[-1] == "what every stage needs is here"
    assert SECRET not in ended.out + ended.err


def test_bitsandbytes_that_cannot_be_loaded_is_told_with_the_way_around(
    rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # importing it then raises ImportError
    ended = rlhf("doctor", "--json")
    assert ended.code == 0
    found = {one["name"]: one for one in ended.json["findings"]}
    assert found["bitsandbytes"]["state"] == "wrong"
    assert "but it fails: ModuleNotFoundError" in found["bitsandbytes"]["found"]
    assert found["bitsandbytes"]["hint"].endswith("or leave `base.quantize` at none.")
    assert found["nf4"]["state"] == found["int8"]["state"] == "wrong"
    assert "`base.quantize: none`" in found["nf4"]["hint"]
    assert found["bfloat16"]["state"] == "ok"
    assert "Traceback" not in ended.err


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What is installed, where it is to be another version than it is; None: it is absent."""
    changed: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        found = changed.get(name, real(name))
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: ["trl<2,>=1.16", "bitsandbytes>=0.50", "x; extra == 'dev'"])
    return changed


def test_what_every_stage_needs_and_is_not_there_exits_5_with_all_findings(
    rlhf: Rlhf, versions: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions |= {"trl": "1.12.0", "peft": None}
    monkeypatch.setattr(doctor_checks, "_kernels", lambda: iter(()))
    ended = rlhf("doctor", "--json")
    assert ended.code == 5
    assert (ended.json["status"], ended.json["exit_code"]) == ("error", 5)
    assert [error["location"] for error in ended.json["issues"]] == ["peft", "trl"]
    assert [error["hint"] for error in ended.json["issues"]] == [
        '`pip install "peft"`.',
        '`pip install "trl<2,>=1.16"`.',
    ]
    assert len(ended.json["findings"]) > 10
    assert "error  trl  1.12.0, expected <2,>=1.16." in ended.err


def test_bitsandbytes_that_is_not_installed_is_no_failure(versions: dict[str, str | None]) -> None:
    versions["bitsandbytes"] = None
    one = by_name(doctor_checks._packages())["bitsandbytes"]
    assert (one.state, one.needed) == ("missing", False)
    assert 'pip install "bitsandbytes>=0.50"' in one.hint


@pytest.mark.usefixtures("stand_ins")
def test_a_stage_needs_no_bitsandbytes(rlhf: Rlhf, recipe_file: Path, versions: dict[str, str | None]) -> None:
    """As the finding says."""
    versions["bitsandbytes"] = None
    ended = rlhf("sft", "-r", recipe_file, "--json")
    assert ended.code == 0, ended.err
    manifest = json.loads((Path(ended.json["path"]) / "manifest.json").read_text())
    assert manifest["packages"]["bitsandbytes"] is None
    assert manifest["packages"]["torch"] == metadata.version("torch")


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with bitsandbytes' bfloat16 kernel, whose output is right and whose gradient is not there."""
    import torch

    class Halved(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            right = super().forward(input)
            return right.detach() + 0.5 * (right - right.detach())

    def wrong(weight: torch.Tensor) -> torch.nn.Module:
        layer = Halved(64, 64, bias=False)
        layer.weight = torch.nn.Parameter(weight)
        return layer

    def fails(weight: torch.Tensor) -> torch.nn.Module:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(doctor_checks, "_nf4", wrong)
    monkeypatch.setattr(doctor_checks, "_int8", fails)
    found = by_name(doctor_checks._kernels())
    assert found["nf4"].state == "wrong"
    assert "within 50.0 % of float32, expected 15 % at most" in found["nf4"].found
    assert (found["int8"].state, found["int8"].found) == ("wrong", "fails on cpu: RuntimeError: no kernel image")
    assert found["bfloat16"].state == "ok"


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_tolerance_lets_rounding_pass_and_no_other_rounding(kind: str) -> None:
    """Of 20 draws the kernel's error is inside, and twice the smallest of them outside."""
    import torch

    make = {"nf4": doctor_checks._nf4, "int8": doctor_checks._int8}[kind]
    errors = []
    for seed in range(20):
        weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        given = torch.randn(8, 64, generator=torch.Generator().manual_seed(99))
        true = given @ weight.T
        errors.append(float((make(weight).to("cpu")(given) - true).norm() / true.norm()))
    assert max(errors) < doctor_checks.TOLERANCE[kind]
    assert doctor_checks.TOLERANCE[kind] < 4 * min(errors)


def test_an_nvidia_driver_that_torch_does_not_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    without, broken = doctor_checks._no_accelerator(None), doctor_checks._no_accelerator("12.9")
    assert without.state == broken.state == "wrong"
    assert "built without CUDA" in without.found
    assert "built for CUDA 12.9 and finds no GPU" in broken.found
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert doctor_checks._no_accelerator(None).state == "missing"


def test_a_runs_folder_that_cannot_be_written_to_exits_5(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "_kernels", lambda: iter(()))
    monkeypatch.setattr(doctor_checks, "_packages", lambda: iter(()))
    ended = rlhf("doctor", "--runs-dir", "r.yaml/runs")
    assert ended.code == 5
    assert "r.yaml/runs cannot be written to. Choose another one with --runs-dir" in ended.err
    assert "what every stage needs is here" not in ended.out


def test_little_space_is_told_and_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    one = doctor_checks._room("runs folder", tmp_path, "Elsewhere.", needed=True)
    assert (one.state, one.needed, one.hint) == ("wrong", False, "Free space. Elsewhere.")
    assert "1.00 GB free" in one.found


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client refuses to ask at all where the tests' HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("status", [200, 503])
def test_the_hub_is_asked_at_its_endpoint_whose_password_is_not_shown(
    status: int,
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        one = doctor_checks._reached(f"http://me:{SECRET}@127.0.0.1:{hub.server_port}", offline=False)
        hub.shutdown()
        thread.join()
    assert one.state == ("ok" if status == 200 else "missing")
    assert one.found.startswith(f"http://127.0.0.1:{hub.server_port} answers")
    assert SECRET not in str(one)


@pytest.mark.usefixtures("online")
def test_a_hub_that_cannot_be_reached_is_no_failure() -> None:
    one = doctor_checks._reached("http://127.0.0.1:9", offline=False)  # the discard port, where nothing listens
    assert (one.state, one.needed) == ("missing", False)
    assert one.found.startswith("http://127.0.0.1:9 cannot be reached (ConnectError): only what is cached")
    assert "HF_HUB_OFFLINE=1" in one.hint


def test_a_damaged_cache_is_told_and_hides_no_model(cache: Path) -> None:
    (cache / "models--org--broken").mkdir()
    found = list(doctor_checks._cached())
    assert [one.state for one in found] == ["ok", "wrong"]
    assert "models--org--broken" in found[1].found


def test_a_part_that_cannot_be_looked_at_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: Any) -> Any:
        raise AttributeError("no such thing")

    for name in ("_packages", "_devices", "_kernels"):
        monkeypatch.setattr(doctor_checks, name, broken)
    found = by_name(doctor_checks.findings(tmp_path))
    assert found["devices"].found == "cannot be looked at: AttributeError: no such thing"
    assert {"runs folder", "reach"} <= found.keys()
