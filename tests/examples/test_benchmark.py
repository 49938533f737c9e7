# Copyright 2026 The hf_twins team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The benchmark measures what it says, and says what could not be measured."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import benchmark
import pytest
import torch
from benchmark import Case

from hf_twins import TwinsConfig, TwinsForImageClassification
from hf_twins._utils import benchmarks


INFERENCE = Case("hf_twins", "twins-svt-small", "inference", "bfloat16", 8, 224)


@pytest.mark.parametrize(
    ("dtypes", "first"), [(["float32", "bfloat16"], "float32"), (["bfloat16"], "bfloat16"), (["int8"], "float32")]
)
def test_every_group_starts_with_timm_in_the_first_dtype(dtypes, first):
    for group in benchmark.all_cases(
        benchmark.parse_arguments(["--contenders", "hf_twins-optimized", "--dtypes", *dtypes])
    ):
        assert (group[0].contender, group[0].dtype) == ("timm", first)


def test_training_is_compared_with_and_without_checkpoints():
    arguments = ["--mode", "training", "--dtypes", "float32", "bfloat16", "--batch_sizes", "8", "--checkpoints"]
    groups = list(benchmark.all_cases(benchmark.parse_arguments(arguments)))
    assert [group[0] for group in groups] == [group[0].baseline for group in groups]
    assert {(case.contender, case.dtype, case.checkpoints) for case in groups[0]} == {
        ("timm", "float32", False),
        ("timm", "bfloat16", False),
        ("hf_twins", "float32", False),
        ("hf_twins", "float32", True),
        ("hf_twins", "bfloat16", False),
        ("hf_twins", "bfloat16", True),
    }
    assert len(groups) == 2


class Measured:
    def __init__(self, case: Case, seconds: list[list[float]], error: str | None = None):
        self.case, self.seconds, self.error, self.memory, self.flops = case, seconds, error, 3 * 2**20, 4 * 10**9


def test_ratio_is_the_median_of_pairs_of_a_turn():
    baseline = Measured(INFERENCE.baseline, [[0.4, 0.5], [0.8, 0.9], [0.6, 0.6]])
    contender = Measured(INFERENCE, [[0.2, 0.3], [0.5, 0.4], [0.4, 0.2]])
    row = benchmarks.row(contender, baseline)
    assert row["ratio"] == pytest.approx(2.0)
    assert row["ratio_quartiles"] == pytest.approx([2.0, 2.5])
    assert row["images_per_second"] == pytest.approx(8 / 0.2)
    assert row["percentiles"] == {50: 0.4, 95: 0.5, 99: 0.5}
    failed = benchmarks.row(Measured(INFERENCE, [], "RuntimeError: no kernel"), baseline)
    text = benchmarks.table_rows([row, failed], has_ceiling=False)
    assert {line.count("|") for line in [*text.splitlines(), *benchmarks.table_head(False).splitlines()]} == {11}
    assert "| **2.00** (2.00 - 2.50) | 40.0 | 400.0 / 500.0 / 500.0 | 3 MB | 20 |" in text
    assert "| RuntimeError: no kernel |" in text
    assert "ratio" not in benchmarks.row(contender, Measured(INFERENCE.baseline, [], "failed"))


class Timed(Measured):
    """Every call of it takes as long."""

    def __init__(self, seconds: float, error: str | None = None):
        super().__init__(INFERENCE.baseline, [], error)
        self.each = seconds

    def take_turn(self, count: int) -> None:
        self.seconds.append(count * [self.each])


@pytest.mark.parametrize(
    ("baseline", "calls"), [(Timed(0.07), 8), (Timed(0.4), 3), (Timed(0.07, "RuntimeError: no kernel"), 3)]
)
def test_short_calls_are_made_more_often(baseline, calls):
    options = benchmark.parse_arguments(["--calls", "3", "--seconds", "0.5"])
    assert benchmarks.calls_per_turn(baseline, options) == calls
    # Not measured.
    assert baseline.error or baseline.seconds == []


@pytest.mark.parametrize(("contender", "flops"), [("timm", 5.85e9), ("hf_twins-optimized", 5.85e9), ("matmul", 2**33)])
def test_flops_are_counted(contender, flops):
    case = Case(contender, "twins-svt-small", "inference", "bfloat16", 1, 224)
    assert benchmark.count_flops(case) == pytest.approx(flops, rel=0.02)


def test_training_step_has_some_three_times_the_flops():
    case = Case("hf_twins", "twins-svt-small", "inference", "float32", 2, 64)
    forward, step = (
        benchmark.count_flops(case),
        benchmark.count_flops(replace(case, mode="training", checkpoints=True)),
    )
    assert 2.9 * forward < step < 3.2 * forward


@pytest.mark.parametrize(
    ("contender", "mode"),
    [(contender, mode) for contender in ("timm", "hf_twins") for mode in benchmark.MODES]
    + [("hf_twins-optimized", "inference"), ("hf_twins-optimized", "pyramid")],
)
def test_twins_computes(contender, mode):
    benchmark.create_call(Case(contender, "twins-svt-small", mode, "float32", 1, 32), "cpu")()


@pytest.mark.slow
@pytest.mark.parametrize("contender", benchmark.PEERS)
@pytest.mark.parametrize("mode", ["inference", "pyramid"])
def test_peer_computes(contender, mode):
    benchmark.create_call(Case(contender, "twins-svt-small", mode, "float32", 1, 224), "cpu")()


@pytest.mark.slow
def test_contender_that_fails_is_named():
    (failed,) = benchmarks.compete(
        benchmark.create_call,
        benchmark.count_flops,
        [Case("timm", "twins-of-mine", "inference", "float32", 1, 64)],
        benchmark.parse_arguments(["--threads", "1", "--rounds", "1"]),
    )
    assert "twins_of_mine" in failed["error"]


@pytest.mark.slow
def test_exported_model_computes(monkeypatch):
    # Each block takes seconds to export.
    shallow = TwinsConfig.from_variant("twins-svt-small", depths=[1, 1, 1, 1])
    monkeypatch.setattr(benchmark, "create_model", lambda case: TwinsForImageClassification(shallow))
    call = benchmark.create_call(Case("openvino", "twins-svt-small", "inference", "int8", 2, 64), "cpu", 1)
    assert call().shape == (2, 1000)


def test_runtime_says_what_it_does_not_do():
    for case in (
        Case("onnxruntime", "twins-svt-small", "inference", "bfloat16", 1, 64),
        Case("openvino", "twins-svt-small", "training", "float32", 1, 64),
    ):
        with pytest.raises(ValueError, match=f"{case.contender} is measured only in inference on CPUs, in float32"):
            benchmark.create_call(case, "cpu")


def test_what_a_contender_cannot_do_is_left_out():
    arguments = [
        "--contenders",
        "timm",
        "hf_twins-optimized",
        "onnxruntime",
        "--dtypes",
        "float32",
        "bfloat16",
        "int8",
    ]
    group = next(benchmark.all_cases(benchmark.parse_arguments(arguments)))
    assert [(case.contender, case.dtype) for case in group] == [
        ("timm", "float32"),
        ("hf_twins-optimized", "float32"),
        ("onnxruntime", "float32"),
        ("timm", "bfloat16"),
        ("hf_twins-optimized", "bfloat16"),
        ("hf_twins-optimized", "int8"),
        ("onnxruntime", "int8"),
    ]


@pytest.mark.slow
def test_results_are_written(tmp_path, capsys):
    arguments = ["--variants", "twins-svt-small", "--batch_sizes", "1", "--image_sizes", "64", "--rounds", "2"]
    arguments += ["--contenders", "hf_twins", "matmul", "--json", str(tmp_path / "out" / "results.json")]
    rows = benchmark.main([*arguments, "--plot", str(tmp_path / "out" / "results.png")])
    assert [row["contender"] for row in rows] == ["timm", "hf_twins", "matmul"]
    assert 0 < rows[1]["share_of_ceiling"] < 1
    assert rows[2]["share_of_ceiling"] == 1
    assert (tmp_path / "out" / "results.png").is_file()
    assert rows[0]["ratio"] == 1
    assert rows[1]["memory"] > 2**20
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["results"][1]["ratio"] == rows[1]["ratio"]
    assert "| twins-svt-small | inference | 1 x 64 | hf_twins | float32 |" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_benchmark_has_printed_what_it_measured():
    words = ["--variants", "twins-svt-small", "--image_sizes", "32", "--batch_sizes", "1", "8", "--rounds", "1"]
    with subprocess.Popen([sys.executable, benchmark.__file__, *words], stdout=subprocess.PIPE, text=True) as process:
        rows = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert [row.split("|")[3:5] for row in rows[2:]] == [[" 1 x 32 ", " timm "], [" 1 x 32 ", " hf_twins "]]
    assert rest == ""
    assert process.returncode != 0


def test_unknown_variants_are_named_before_anything_is_measured():
    with pytest.raises(SystemExit, match=r"--variants must be among twins-pcpvt-small, .*, got twins-of-mine"):
        benchmark.main(["--variants", "twins-svt-small", "twins-of-mine"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_named():
    with pytest.raises(SystemExit, match="--device cuda needs a GPU"):
        benchmark.main(["--device", "cuda"])


def test_wrong_options_are_named(capsys):
    for arguments, message in (
        (["--batch_sizes", "0"], "--batch_sizes must be at least 1, got 0"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--seconds", "nan"], "--seconds must be a finite number of at least 0, got nan"),
        (["--contenders", "resnet"], "invalid choice: 'resnet'"),
        (["--plot", "results.txt"], "--plot must end in .png, .jpg, .pdf, .svg, .webp, got results.txt"),
        (["--json", "."], "--json must be a file, got the folder ."),
    ):
        with pytest.raises(SystemExit):
            benchmark.parse_arguments(arguments)
        assert message in capsys.readouterr().err
