"""`bench.gpu` before it meets a GPU: the published sizes, and the whole run with tiny configs on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.__main__ import Bench
from bench.gpu.architectures import ARCHITECTURES, Architecture
from bench.gpu.plan import FULL, TINY, plan
from bench.gpu.report import Report, knee

ROOT = Path(__file__).parents[1]
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)


def named(name: str) -> Architecture:
    (found,) = (architecture for architecture in ARCHITECTURES if architecture.name == name)
    return found


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def in_process(architecture: Architecture, folder: Path, seconds: float) -> None:
    scale = replace(TINY, architectures=[architecture])
    Bench(scale, Report(folder), time.monotonic() + seconds).run()


@each_architecture
def test_configs_have_the_published_number_of_parameters(architecture: Architecture) -> None:
    model = architecture.build("meta", torch.bfloat16)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e9 == pytest.approx(architecture.parameters, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        # Latents of a UNet; text + output + reference of a transformer.
        ("instruct-pix2pix", 512, 64 * 64),
        ("sdxl", 1024, 128 * 128),
        ("flux2-klein-4b", 1024, 512 + 2 * 64 * 64),
        ("flux1-kontext", 512, 512 + 2 * 32 * 32),
        ("qwen-image-edit", 512, 256 + 32 * 32 + 64 * 64),
    ],
)
def test_a_full_size_forward_has_the_tokens_of_an_edit(name: str, side: int, tokens: int) -> None:
    architecture = named(name)
    assert architecture.tokens(side) == tokens
    model = architecture.build("meta", torch.bfloat16)
    inputs = architecture.inputs(model, 3, side)
    if "sample" in inputs:
        assert inputs["sample"].shape[2:].numel() == tokens
    else:
        assert inputs["hidden_states"].shape[1] + architecture.text == tokens


@pytest.mark.parametrize(
    ("name", "blocks", "weights"),
    [
        # Of each block, in widths squared per token: 4 around attention, and 8 or, gated and of ratio 3, 9 in the MLP.
        ("flux2-klein-4b", 5 + 20, 4 + 9),
        ("flux1-kontext", 19 + 38, 4 + 8),
        ("qwen-image-edit", 60, 4 + 8),
    ],
)
def test_counted_work_is_what_one_gets_by_hand(name: str, blocks: int, weights: int) -> None:
    architecture, width = named(name), 24 * 128
    tokens = architecture.tokens(1024)
    by_hand = blocks * (2 * weights * width**2 * tokens + 4 * tokens**2 * width)
    assert architecture.flops(1024) == pytest.approx(by_hand, rel=0.01)


@each_architecture
def test_tiny_forwards_in_the_dtype_of_the_gpu(architecture: Architecture) -> None:
    tiny = architecture.shrunk()
    model = tiny.build("cpu", torch.bfloat16)
    with torch.inference_mode():
        (output,) = model(**tiny.inputs(model, 2, 64))
    assert output.dtype == torch.bfloat16
    assert output.shape[0] == 2
    assert output.isfinite().all()
    assert output.std() > 0


def test_the_whole_run_on_tiny_configs(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--tiny", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    (machine,) = records(tmp_path, "machine")
    assert machine["matmul_tflops"] >= machine["matmul_tflops_median"] > 0
    assert machine["copy_gbps"] > 0
    cells = records(tmp_path, "cell")
    assert len(cells) == len(plan(TINY)) == len(ARCHITECTURES) * 2 * 2
    for cell in cells:
        assert "reason" not in cell
        assert cell["ms"] == pytest.approx(cell["ms_per_row"] * cell["rows"])
        assert cell["ms"] > 0
        assert 0 < cell["of_matmul"] < 1
    for overhead in records(tmp_path, "overhead"):
        assert overhead["ratio"] == overhead["engine_ms"] / overhead["bare_ms"] > 0
    assert len(records(tmp_path, "overhead")) == len(ARCHITECTURES)
    assert len(records(tmp_path, "budget")) == len(ARCHITECTURES) * 2
    table = (tmp_path / "gpu.txt").read_text()
    assert table in run.stdout
    assert table.count("compiled") == len(cells) // 2 + len(ARCHITECTURES)


def test_without_time_everything_has_its_reason(tmp_path: Path) -> None:
    in_process(ARCHITECTURES[0].shrunk(), tmp_path, seconds=0)
    left_out = records(tmp_path, "cell") + records(tmp_path, "overhead")
    assert len(left_out) == 2 * 2 + 1
    assert all(record["reason"].startswith("no time") for record in left_out)
    assert "no time" in (tmp_path / "gpu.txt").read_text()


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    def fails_for_two(*given: Any) -> dict[str, Any]:
        if given[2] == 2:
            raise torch.OutOfMemoryError("2 GiB wanted\nand a page of advice")
        return ARCHITECTURES[-1].arguments(*given)

    in_process(replace(ARCHITECTURES[-1].shrunk(), arguments=fails_for_two), tmp_path, seconds=200)
    for cell in records(tmp_path, "cell"):
        if cell["rows"] == 2:
            assert cell["reason"] == "OutOfMemoryError: 2 GiB wanted"
        else:
            assert cell["ms"] > 0


def test_a_model_that_does_not_fit_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.gpu.__main__.free_bytes", lambda device: 40 * 2**30)
    monkeypatch.setattr(Architecture, "build", lambda *given: pytest.fail("it was built"))
    in_process(ARCHITECTURES[-1], tmp_path, seconds=200)  # float32 here
    assert {cell["reason"] for cell in records(tmp_path, "cell")} == {
        "MemoryError: 82 GiB needed, 40 GiB free"
    }


def test_everything_is_measured_eager_before_anything_is_compiled() -> None:
    cells = plan(FULL)
    assert len(cells) == len(ARCHITECTURES) * 2 * 2 * 4
    assert len({tuple(cell.about.values()) for cell in cells}) == len(cells)
    modes = [cell.mode for cell in cells]
    assert modes == sorted(modes, reverse=True)
    compiled = [cell for cell in cells if cell.mode == "compiled"]
    assert [cell.edits for cell in compiled[: 2 * len(ARCHITECTURES)]] == [1] * 10


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 10.0)], 1),
        ([(1, 10.0), (2, 5.0), (4, 2.5)], 4),
        ([(1, 10.0), (2, 5.0), (4, 4.6)], 2),
        ([(1, 4.0), (2, 5.0), (4, 6.0)], 1),
    ],
)
def test_knee(points: list[tuple[int, float]], expected: int) -> None:
    assert knee(points) == expected
