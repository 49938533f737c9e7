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
r"""Label a million images: in shards, in several processes, and with resuming after an interruption.

    accelerate launch examples/image_classification/batch_predict.py --model_name_or_path timm/twins_svt_small.in1k \
        --input_dir path/to/images --output_dir outputs/predictions

The input is a folder of images, .parquet or .tar files (WebDataset), or a dataset on the Hub. The output is a .parquet
file per shard with the columns `path`, `label` and `score`, `labels` and `scores` of the top few, and `error`, which
says why an image has no prediction. A file is complete if its SHA-256 is next to it. A rerun writes missing and
damaged files, so that every image is predicted exactly once. If the system fails to read a file, the run ends.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hf_twins._utils.command_line import run

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Image, load_dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_twins._utils.files import check_is_apart
from hf_twins._utils.fingerprints import model_fingerprint
from hf_twins._utils.image_folders import printable
from hf_twins._utils.images import log_applied_rules
from hf_twins._utils.progress import progress_bar
from hf_twins._utils.run_settings import record_settings
from hf_twins._utils.scores import class_scores
from hf_twins._utils.shards import (
    DatasetShard,
    Shard,
    ShardError,
    ShardImages,
    check_is_complete,
    find_shards,
    is_finished,
    shards_fingerprint,
    write_output,
)
from hf_twins.training.data import check_has_images, check_is_no_image_folder, only_column
from hf_twins.training.image_classification.arguments import TrainedModelArguments
from hf_twins.training.image_classification.data import Preparation, check_preparation, evaluation_transform, stacked
from hf_twins.training.image_classification.models import load_trained
from hf_twins.training.trainer import one_at_a_time


# Key of the fingerprint of the images, in the metadata of a file.
IMAGES = b"images"
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "label": pa.string(),
        "score": pa.float32(),
        "labels": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "error": pa.string(),
    }
)


@dataclass
class PredictionArguments:
    one_of: ClassVar = (("input_dir", "dataset_name"),)
    output_dir: str = field(metadata={"help": "Output folder."})
    input_dir: str | None = field(default=None, metadata={"help": "Folder of images, .parquet or .tar files."})
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id or folder of a dataset."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a dataset with several."}
    )
    split: str = field(default="train", metadata={"help": "Dataset split."})
    image_column_name: str | None = field(default=None, metadata={"help": "Image column; detected if not given."})
    shard_size: int = field(default=10_000, metadata={"help": "Images per output file, the unit of resuming."})
    top_k: int = field(default=5, metadata={"help": "Number of labels per image, the likeliest first."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size per process."})
    dataloader_num_workers: int = field(default=2, metadata={"help": "Data loading workers per process."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16."})


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    return run(predict, TrainedModelArguments, PredictionArguments, arguments=arguments)


@one_at_a_time
def predict(model_arguments: TrainedModelArguments, args: PredictionArguments) -> dict[str, Any]:
    """Predict the shards without a file, and print a summary."""
    for name in ("shard_size", "top_k", "per_device_eval_batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    # .parquet files in the input folder would be read by the next run. Those in its sub-folders would not.
    check_is_apart(args.output_dir, [args.input_dir, args.dataset_name], is_recursive=False, follow_links=False)
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=not torch.accelerator.is_available())
    model, processor = load_trained(model_arguments)
    model.to(accelerator.device)
    preparation = Preparation(evaluation_transform(processor), model.config.num_channels)
    check_preparation(preparation)

    def prepare(image: PIL.Image.Image) -> torch.Tensor:
        return preparation({"image": image, "label": -1})["pixel_values"]

    with accelerator.main_process_first():
        shards = load_shards(args)
    output_dir = Path(args.output_dir)
    files = [output_dir / f"predictions-{index:05}-of-{len(shards):05}.parquet" for index in range(len(shards))]
    if accelerator.is_main_process:
        settings = {
            "model": model_fingerprint(model, processor),
            "mixed_precision": accelerator.mixed_precision,
            "shard_size": args.shard_size,
            "top_k": min(args.top_k, model.config.num_labels),
            "images": shards_fingerprint(shards),
        }
        if model_arguments.code_revision is not None:
            settings["code_revision"] = model_arguments.code_revision
        record_settings(output_dir, settings, outputs="predictions-*.parquet")
    # The main process decides for all processes, because others might already see files that the first ones have
    # written.
    pending = [find_pending(shards, files) if accelerator.is_main_process else []]
    broadcast_object_list(pending)
    own = pending[0][accelerator.process_index :: accelerator.num_processes]

    started = time.perf_counter()
    applied: Counter[str] = Counter()
    broken: list[str] = []
    progress = progress_bar(desc="predicting", unit=" images", disable=not accelerator.is_local_main_process)
    for done, index in enumerate(own):
        progress.set_postfix_str(f"file {done + 1} of {len(own)}")
        images = shards[index].fingerprint()
        try:
            rows = predict_shard(accelerator, model, ShardImages(shards[index], prepare), args, progress, applied)
        except ShardError as error:
            # Predict the other files first.
            broken.append(str(error))
            continue
        table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({IMAGES: images}))
        write_output(files[index], partial(pq.write_table, table))
    progress.close()
    log_applied_rules(applied)
    accelerator.wait_for_everyone()
    seconds = time.perf_counter() - started
    broken = sorted(set(gather_object(broken)))
    if broken:
        raise ValueError(
            f"{len(broken)} files cannot be read to the end and have no predictions, but all others do: replace them, "
            f"and start again. {'; '.join(broken)}."
        )
    summary = summarize(files)
    if accelerator.is_main_process:
        now = sum(pq.read_metadata(files[index]).num_rows for index in pending[0])
        print(
            f"{summary['images']} images in {len(files)} files in {output_dir}; {now} of them now, {now / seconds:.1f} "
            f"images/s in {accelerator.num_processes} process(es). {summary['errors']} images cannot be used."
        )
    accelerator.end_training()
    return summary


def load_shards(args: PredictionArguments) -> list[Shard]:
    if (args.input_dir is None) == (args.dataset_name is None):
        raise ValueError("Give either --input_dir or --dataset_name.")
    if args.input_dir is not None:
        return find_shards(args.input_dir, args.shard_size, args.image_column_name, args.output_dir)
    check_is_no_image_folder(str(args.dataset_name), "--input_dir")
    split: Any = load_dataset(args.dataset_name, args.dataset_config_name, split=args.split)
    column = args.image_column_name or only_column(split.features, "image", (Image,))
    if column not in split.features:
        raise ValueError(f"--image_column_name must be one of {', '.join(split.features)}, got {column}.")
    check_has_images(column, split.features[column])
    if len(split) == 0:
        raise ValueError(f"The split {args.split} of {args.dataset_name} has no rows.")
    split = split.select_columns([column]).cast_column(column, Image(decode=False))
    starts = range(0, len(split), args.shard_size)
    return [DatasetShard(split, range(start, min(start + args.shard_size, len(split))), column) for start in starts]


def find_pending(shards: list[Shard], files: list[Path]) -> list[int]:
    """The indices of the shards whose files are missing or incomplete.

    Raises:
        ValueError: if images of a complete file have changed since.
    """
    pending = []
    for index, (shard, file) in enumerate(zip(shards, files)):
        if not is_finished(file):
            pending.append(index)
        elif (pq.read_schema(file).metadata or {}).get(IMAGES, b"").decode() != shard.fingerprint():
            raise ValueError(
                f"{file} has the predictions of images in {shard.name} that have changed since: remove it to have them predicted "
                "again, or give another --output_dir."
            )
    return pending


@torch.inference_mode()
def predict_shard(
    accelerator: Accelerator,
    model: Any,
    images: ShardImages,
    args: PredictionArguments,
    progress: tqdm,
    applied: Counter[str],
) -> list[dict[str, Any]]:
    """Predict the images of a shard, and return one row per image, in order.

    Raises:
        ReadError: if the system cannot read the images.
        ShardError: if the file that contains the images is damaged.
    """
    loader = DataLoader(
        images,
        args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    rows: dict[int, dict[str, Any]] = {}
    counts: list[int] = []
    top_k = min(args.top_k, model.config.num_labels)
    for batch in loader:
        for end in (example for example in batch if "place" not in example):
            if "failure" in end:
                raise end["failure"]
            counts.append(end["count"])
        examples = [example for example in batch if "place" in example]
        progress.update(len(examples))
        applied.update(rule for example in examples for rule in example.get("applied", ()))
        readable = [example for example in examples if example["pixel_values"] is not None]
        rows |= {
            example["place"]: {"path": printable(example["path"]), "error": printable(example["error"])}
            for example in examples
            if example["pixel_values"] is None
        }
        if not readable:
            continue
        pixel_values = stacked([torch.from_numpy(example["pixel_values"]) for example in readable]).to(
            accelerator.device
        )
        with accelerator.autocast():
            logits = model(pixel_values=pixel_values).logits
        scores, numbers = (values.tolist() for values in class_scores(logits.float(), model.config).topk(top_k))
        for example, image_scores, image_numbers in zip(readable, scores, numbers):
            labels = [model.config.id2label[number] for number in image_numbers]
            row = {"path": printable(example["path"]), "label": labels[0], "score": image_scores[0]}
            rows[example["place"]] = row | {"labels": labels, "scores": image_scores, "error": None}
    check_is_complete(sorted(rows), counts, args.dataloader_num_workers, images.shard)
    return [rows[place] for place in sorted(rows)]


def summarize(files: list[Path]) -> dict[str, Any]:
    """Count the images, and those without a prediction."""
    num_images = num_errors = 0
    for file in files:
        # `read_table` would load pyarrow.dataset with its threads, which takes 22 MB at the end of a run.
        with pq.ParquetFile(file) as shard:
            errors = shard.read(["error"])["error"]
        num_images += len(errors)
        num_errors += len(errors) - errors.null_count
    return {"images": num_images, "errors": num_errors}


if __name__ == "__main__":
    main()
