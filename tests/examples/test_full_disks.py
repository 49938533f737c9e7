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
"""Full disks, and runs that write to the same folder."""

from pathlib import Path

from hf_twins._utils.command_line import run

import batch_predict
import evaluate_classification
import pytest
import run_accelerate
import run_trainer
from classification_utils import options
from testing_utils import small_file_system

from hf_twins._utils.files import exclusive_folder


TRAININGS = {"trainer": run_trainer.main, "accelerate": run_accelerate.main}


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("script", [*TRAININGS, "evaluate", "predict"])
def test_full_disk_gives_one_sentence_and_the_next_run_succeeds(script, digits, start, tmp_path):
    model = ["--model_name_or_path", str(start)]
    with small_file_system(tmp_path / "disk") as set_options:
        output_dir = tmp_path / "disk" / "output"
        main, arguments, result = {
            "trainer": (run_trainer.main, options(digits, start, output_dir), "all_results.json"),
            "accelerate": (run_accelerate.main, options(digits, start, output_dir), "all_results.json"),
            "evaluate": (
                evaluate_classification.main,
                [*model, "--dataset_name", str(digits), "--split", "train", "--output_dir", str(output_dir)],
                "all_results.json",
            ),
            "predict": (
                batch_predict.main,
                [
                    *model,
                    "--input_dir",
                    str(digits),
                    "--image_column_name",
                    "photo",
                    "--output_dir",
                    str(output_dir),
                ],
                "predictions-00000-of-00001.parquet",
            ),
        }[script]
        if script not in TRAININGS:
            # For training, the disk need not be filled, because a model does not fit anyway.
            fill(tmp_path / "disk" / "other")
        with pytest.raises(SystemExit, match=r"^error: .*No space left on device"):
            main(arguments)
        assert not (output_dir / result).exists()

        set_options("size=64m")
        (tmp_path / "disk" / "other").unlink(missing_ok=True)
        # A folder with files of a training run can only be used to resume the run.
        main(arguments + (["--resume_from_checkpoint", "latest"] if script in TRAININGS else []))
        assert (output_dir / result).is_file()
        assert not list(output_dir.rglob("*.partial-*"))


def fill(file: Path) -> None:
    """Write a file that fills the disk to its last byte."""
    with file.open("wb", buffering=0) as opened:
        try:
            while True:
                opened.write(bytes(1024))
        except OSError:
            pass


def test_other_errors_are_not_mistaken_for_a_full_disk():
    def fail() -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")

    def fail_otherwise() -> None:
        raise RuntimeError("something else")

    with pytest.raises(SystemExit, match="is the disk full"):
        run(fail, arguments=[])
    with pytest.raises(RuntimeError, match=r"^something else$"):
        run(fail_otherwise, arguments=[])


@pytest.mark.parametrize("main", TRAININGS.values(), ids=TRAININGS)
def test_second_training_in_a_folder_is_refused(main, digits, start, tmp_path):
    with (
        exclusive_folder(tmp_path),
        pytest.raises(SystemExit, match=r"^error: Another run is writing to .*: wait for it"),
    ):
        main(options(digits, start, tmp_path))
