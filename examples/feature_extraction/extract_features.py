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
r"""Frozen features of a folder of images: one vector an image, or the feature maps of some stages.

    python examples/feature_extraction/extract_features.py --model_name_or_path outputs/quickstart \
        --input_dir path/to/images --output_dir outputs/features
    ... --features stage3 stage4     # maps, instead of the vectors that a classifier's head is given

Images are taken in the order of their paths, `--shard_size` of them to a file. A file is there only when it is whole, so
that the same command after an interruption does what is missing.
"""

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow
import pyarrow.parquet
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoImageProcessor

from hf_twins import TwinsBackbone, TwinsModel
from hf_twins._utils.command_line import run
from hf_twins._utils.digests import model_digest
from hf_twins._utils.files import write_atomically, write_json
from hf_twins._utils.images import is_image_file, open_image


SETTINGS_NAME = "settings.json"
INDEX_NAME = "features.safetensors.index.json"


@dataclass
class ExtractionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a Twins model."})
    input_dir: str = field(metadata={"help": "Folder of images, in sub-folders or not."})
    output_dir: str = field(metadata={"help": "Where the features are written."})
    features: list[str] = field(
        default_factory=lambda: ["pooled"],
        metadata={"help": "Either pooled, one vector an image, or stages such as stage1 stage4, their maps."},
    )
    shard_size: int = field(default=256, metadata={"help": "Images in a file, all held in memory."})
    batch_size: int = field(default=32, metadata={"help": "Images in a step."})


@dataclass
class Settings:
    """What the features in a folder depend on; all of them must be made with the same."""

    model_name_or_path: str
    model_digest: str
    input_dir: str
    images: str
    features: list[str]
    shard_size: int


class FeatureExtractor:
    """A model and its image processor, and what the two make of pictures.

    Args:
        model_name_or_path: folder or Hub id.
        features: `["pooled"]`, or names of stages.

    Raises:
        OSError: if there is no such model or no image processor with it.
        ValueError: if the features are not the model's.
    """

    def __init__(self, model_name_or_path: str, features: list[str]):
        self.features = features
        model_class: Any = TwinsModel if features == ["pooled"] else TwinsBackbone
        out_features = {} if features == ["pooled"] else {"out_features": features}
        try:
            self.processor = AutoImageProcessor.from_pretrained(model_name_or_path)
            self.model = model_class.from_pretrained(model_name_or_path, dtype=torch.float32, **out_features).eval()
        except OSError as error:
            # transformers does not always say which.
            raise OSError(f"cannot load the model {model_name_or_path}: {error}") from error
        self.model.to(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")

    @torch.inference_mode()
    def __call__(self, images: list[PIL.Image.Image]) -> list[dict[str, torch.Tensor]]:
        """For each image, each feature under its name: `(hidden_size,)`, or `(hidden_size, height, width)` of a stage."""
        inputs = [self.processor(image, return_tensors="pt")["pixel_values"] for image in images]
        results = []
        # A processor that crops makes all images of one size; others go through the model with neighbours of theirs.
        for _, batch in itertools.groupby(inputs, key=lambda pixel_values: pixel_values.shape):
            outputs = self.model(torch.cat(list(batch)).to(self.model.device))
            values = [outputs.pooler_output] if self.features == ["pooled"] else outputs.feature_maps
            results += [dict(zip(self.features, of_image)) for of_image in zip(*(value.cpu() for value in values))]
        return results


def check_features(features: list[str]) -> None:
    """Raise a ValueError if they are neither the vector nor stages in their order."""
    stages = [name for name in features if name.startswith("stage") and name[5:].isdecimal()]
    if features != ["pooled"] and (stages != features or sorted(set(features)) != features or not features):
        raise ValueError(f"--features must be pooled, or stages in their order such as stage1 stage4, got {features}.")


def read_image(path: Path) -> PIL.Image.Image:
    """The picture the right way up, as RGB."""
    return open_image(path).convert("RGB")


def readable_images(folder: Path, paths: list[str], progress: tqdm) -> Iterator[tuple[str, PIL.Image.Image]]:
    """The images that can be decoded, with their paths."""
    for path in paths:
        progress.update()
        try:
            image = read_image(folder / path)
        except Exception as error:
            # Pillow's decoders raise all kinds of errors.
            tqdm.write(f"{path} cannot be decoded and is left out: {error}", file=sys.stderr)
            continue
        yield path, image


def find_images(folder: Path) -> list[str]:
    """Paths in the folder of all files that are images by their names, sorted."""
    if not folder.is_dir():
        raise ValueError(f"--input_dir must be a folder of images, {folder} is none.")
    paths = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if is_image_file(file))
    if not paths:
        raise ValueError(f"--input_dir must be a folder of images, {folder} has none.")
    return paths


def write_settings(settings: Settings, output_dir: Path) -> None:
    """Raise a ValueError if what is in the folder was made with others."""
    path = output_dir / SETTINGS_NAME
    if path.exists():
        written = json.loads(path.read_text())
        others = [name for name, value in asdict(settings).items() if written.get(name) != value]
        if others:
            raise ValueError(
                f"{output_dir} holds features made with other {', '.join(others)}: give another --output_dir, or remove it."
            )
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(settings))


def write_shard(
    extractor: FeatureExtractor, folder: Path, paths: list[str], batch_size: int, shard: Path, progress: tqdm
) -> None:
    """The features of these images as one file, .parquet or .safetensors."""
    features: dict[str, dict[str, torch.Tensor]] = {}
    images = readable_images(folder, paths, progress)
    while batch := list(itertools.islice(images, batch_size)):
        features.update(zip([path for path, _ in batch], extractor([image for _, image in batch])))
    if shard.suffix == ".parquet":
        vectors = torch.cat([torch.empty(0), *(of_image["pooled"] for of_image in features.values())])
        array = pyarrow.FixedSizeListArray.from_arrays(vectors.numpy(), extractor.model.config.hidden_size)
        table = pyarrow.table({"path": pyarrow.array(features, pyarrow.string()), "feature": array})
        write_atomically(shard, lambda temporary: pyarrow.parquet.write_table(table, temporary))
    else:
        tensors = {
            f"{path}/{name}": value.contiguous() for path, maps in features.items() for name, value in maps.items()
        }
        write_atomically(shard, lambda temporary: save_file(tensors, temporary))


def read_paths(shard: Path) -> list[str]:
    """The images whose features are in a file."""
    if shard.suffix == ".parquet":
        return pyarrow.parquet.read_table(shard, columns=["path"])["path"].to_pylist()
    return sorted({name.rpartition("/")[0] for name in read_names(shard)})


def read_names(shard: Path) -> list[str]:
    """The tensors in a .safetensors file: path of the image / name of the stage."""
    with safe_open(shard, framework="pt") as tensors:
        return list(tensors.keys())


def write_index(shards: list[Path], output_dir: Path) -> None:
    """Which file each map is in, as transformers says it of weights."""
    weight_map = {name: shard.name for shard in shards for name in read_names(shard)}
    write_json(output_dir / INDEX_NAME, {"metadata": {}, "weight_map": weight_map})


def extract_features(arguments: ExtractionArguments) -> None:
    for name in ("shard_size", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}.")
    check_features(arguments.features)
    input_dir, output_dir = Path(arguments.input_dir), Path(arguments.output_dir)
    paths = find_images(input_dir)
    extractor = FeatureExtractor(arguments.model_name_or_path, arguments.features)
    settings = Settings(
        model_name_or_path=arguments.model_name_or_path,
        model_digest=model_digest(extractor.model, extractor.processor),
        input_dir=str(input_dir.resolve()),
        images=hashlib.sha256("\n".join(paths).encode()).hexdigest(),
        features=arguments.features,
        shard_size=arguments.shard_size,
    )
    write_settings(settings, output_dir)
    suffix = "parquet" if arguments.features == ["pooled"] else "safetensors"
    chunks = [paths[start : start + arguments.shard_size] for start in range(0, len(paths), arguments.shard_size)]
    shards = [
        output_dir / f"features-{number:05}-of-{len(chunks):05}.{suffix}" for number in range(1, len(chunks) + 1)
    ]
    with tqdm(total=len(paths), desc="Extracting features", unit="image") as progress:
        for shard, chunk in zip(shards, chunks):
            if shard.exists():
                progress.update(len(chunk))
            else:
                write_shard(extractor, input_dir, chunk, arguments.batch_size, shard, progress)
    if suffix == "safetensors":
        write_index(shards, output_dir)

    # From the files, because some may be an earlier run's.
    left_out = sorted(set(paths).difference(*(read_paths(shard) for shard in shards)))
    print(f"{len(paths) - len(left_out)} of {len(paths)} images have their features in {output_dir}.")
    if left_out:
        print(f"Left out, because they cannot be decoded, {len(left_out)}: {', '.join(left_out)}.")


def main() -> None:
    run(extract_features, ExtractionArguments)


if __name__ == "__main__":
    main()
