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
r"""Extract frozen features of a folder of images: one vector per image, or feature maps of stages.

    python examples/feature_extraction/extract_features.py --model_name_or_path outputs/quickstart \
        --input_dir path/to/images --output_dir outputs/features
    ... --features stage3 stage4     # maps, instead of the vectors that a classifier's head receives

Images are read in the order of their paths, `--shard_size` per file. A file is complete if its SHA-256 is next to it.
After an interruption, the same command writes missing and damaged files. If the system fails to read a file, the run
ends; corrupt images are skipped and listed.
"""

import itertools
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hf_twins._utils.command_line import run

import PIL.Image
import pyarrow
import pyarrow.parquet
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from hf_twins._utils.features import POOLED, FeatureExtractor
from hf_twins._utils.files import check_is_apart, exclusive_folder, write_json
from hf_twins._utils.fingerprints import files_fingerprint
from hf_twins._utils.image_folders import list_folder
from hf_twins._utils.images import ImageError, log_applied_rules, read_image
from hf_twins._utils.progress import progress_bar
from hf_twins._utils.run_settings import record_settings
from hf_twins._utils.shards import is_finished, write_output


# Settings by which `search_features.py` finds the model and the images, relative to the output folder.
ORIGINS = ("model_name_or_path", "input_dir")
INDEX_NAME = "features.safetensors.index.json"


@dataclass
class ExtractionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a Twins model."})
    input_dir: str = field(metadata={"help": "Folder of images, with or without sub-folders."})
    output_dir: str = field(metadata={"help": "Output folder."})
    features: list[str] = field(
        default_factory=lambda: [POOLED],
        metadata={"help": "pooled for one vector per image, or stages such as stage1 stage4 for their maps."},
    )
    shard_size: int = field(default=256, metadata={"help": "Images per file, all held in memory."})
    batch_size: int = field(default=32, metadata={"help": "Images per step."})


def check_features(features: list[str]) -> None:
    """Raise a ValueError unless `features` is `pooled`, or stages in their order."""
    stages = [name for name in features if name.startswith("stage") and name[5:].isdecimal()]
    if features != [POOLED] and (stages != features or sorted(set(features)) != features or not features):
        raise ValueError(f"--features must be pooled, or stages in their order such as stage1 stage4, got {features}.")


def readable_images(
    folder: Path, paths: list[str], progress: tqdm, applied: Counter[str], mode: str = "RGB"
) -> Iterator[tuple[str, PIL.Image.Image]]:
    """Yield the images that can be decoded, with their paths, in this mode of Pillow."""
    for path in paths:
        progress.update()
        try:
            image = read_image(folder / path, mode, applied)
        except ImageError as error:
            tqdm.write(f"{path} is skipped: {error}", file=sys.stderr)
            continue
        yield path, image


def find_images(folder: Path, output_dir: Path | None = None) -> list[str]:
    """Return the sorted paths of all image files in the folder; check that the output cannot replace any of them."""
    if not folder.is_dir():
        raise ValueError(f"--input_dir must be a folder of images, but {folder} is not a folder.")
    listing = list_folder(folder)
    if output_dir is not None:
        # The output may be below the input folder, because files of features are not images.
        check_is_apart(output_dir, [listing], is_recursive=False)
    # Features are stored with the paths of their images, which must be valid text.
    listing.leave_out_unreadable_names()
    listing.warn()
    if not listing.files:
        raise ValueError(f"--input_dir must be a folder of images, but {folder} has none.")
    return listing.files


def write_shard(
    extractor: FeatureExtractor,
    folder: Path,
    paths: list[str],
    batch_size: int,
    shard: Path,
    progress: tqdm,
    applied: Counter[str],
) -> None:
    """Write the features of these images to one .parquet or .safetensors file."""
    features: dict[str, dict[str, torch.Tensor]] = {}
    images = readable_images(folder, paths, progress, applied, extractor.mode)
    while batch := list(itertools.islice(images, batch_size)):
        features.update(zip([path for path, _ in batch], extractor([image for _, image in batch])))
    if shard.suffix == ".parquet":
        vectors = torch.cat([torch.empty(0), *(of_image[POOLED] for of_image in features.values())])
        array = pyarrow.FixedSizeListArray.from_arrays(vectors.numpy(), extractor.model.config.hidden_size)
        table = pyarrow.table({"path": pyarrow.array(features, pyarrow.string()), "feature": array})
        write_output(shard, lambda temporary: pyarrow.parquet.write_table(table, temporary))
    else:
        tensors = {
            f"{path}/{name}": value.contiguous() for path, maps in features.items() for name, value in maps.items()
        }
        write_output(shard, lambda temporary: save_file(tensors, temporary))


def read_paths(shard: Path) -> list[str]:
    """Read the paths of the images whose features are in a file."""
    if shard.suffix == ".parquet":
        return pyarrow.parquet.read_table(shard, columns=["path"])["path"].to_pylist()
    return sorted({name.rpartition("/")[0] for name in read_names(shard)})


def read_names(shard: Path) -> list[str]:
    """Read the names of the tensors in a .safetensors file: path of the image / name of the stage."""
    with safe_open(shard, framework="pt") as tensors:
        return list(tensors.keys())


def write_index(shards: list[Path], output_dir: Path) -> None:
    """Write an index that maps each feature map to its file, as in transformers' weight index."""
    weight_map = {name: shard.name for shard in shards for name in read_names(shard)}
    write_json(output_dir / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})


def extract_features(arguments: ExtractionArguments) -> None:
    for name in ("shard_size", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    check_features(arguments.features)
    input_dir, output_dir = Path(arguments.input_dir), Path(arguments.output_dir)
    paths = find_images(input_dir, output_dir)
    extractor = FeatureExtractor(arguments.model_name_or_path, arguments.features)
    settings = {
        "model": extractor.fingerprint,
        "images": files_fingerprint(input_dir, paths),
        "features": arguments.features,
        "shard_size": arguments.shard_size,
    }
    with exclusive_folder(output_dir):
        origins = {name: relative_path(getattr(arguments, name), output_dir) for name in ORIGINS}
        record_settings(output_dir, settings, origins, outputs="features-*-of-*")
        write_features(extractor, arguments, paths)


def relative_path(path: str, start: Path) -> str:
    """A folder's path relative to another one, so that both can be moved; a Hub id unchanged."""
    if not Path(path).exists():
        return path
    try:
        return os.path.relpath(Path(path).resolve(), start.resolve())
    # On Windows, the folders may be on different drives.
    except ValueError:
        return str(Path(path).resolve())


def write_features(extractor: FeatureExtractor, arguments: ExtractionArguments, paths: list[str]) -> None:
    """Write the missing shards, and print a summary."""
    input_dir, output_dir = Path(arguments.input_dir), Path(arguments.output_dir)
    suffix = "parquet" if arguments.features == [POOLED] else "safetensors"
    chunks = [paths[start : start + arguments.shard_size] for start in range(0, len(paths), arguments.shard_size)]
    shards = [
        output_dir / f"features-{number:05}-of-{len(chunks):05}.{suffix}" for number in range(1, len(chunks) + 1)
    ]
    applied: Counter[str] = Counter()
    with progress_bar(total=len(paths), desc="Extracting features", unit="image") as progress:
        for shard, chunk in zip(shards, chunks):
            if is_finished(shard):
                progress.update(len(chunk))
            else:
                write_shard(extractor, input_dir, chunk, arguments.batch_size, shard, progress, applied)
    if suffix == "safetensors":
        write_index(shards, output_dir)
    log_applied_rules(applied)

    # Count the images in the files, because earlier runs may have written some.
    left_out = sorted(set(paths).difference(*(read_paths(shard) for shard in shards)))
    print(f"{len(paths) - len(left_out)} of {len(paths)} images have their features in {output_dir}.")
    if left_out:
        print(f"Skipped {len(left_out)} images that cannot be used: {', '.join(left_out)}.")


def main() -> None:
    run(extract_features, ExtractionArguments)


if __name__ == "__main__":
    main()
