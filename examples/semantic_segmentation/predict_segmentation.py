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
r"""Segment an image or a folder of images: draw the mask with a legend on top of each, and write the mask.

    python examples/semantic_segmentation/predict_segmentation.py --model_name_or_path outputs/mine \
        --images street.jpg --output_dir outputs/street

writes `street_overlay.png` and `street_mask.png`, whose pixels are class numbers. An existing folder is
accepted only for the same images, model and options (`settings.json`).
"""

import logging
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import run

from hf_twins import load_model
from hf_twins._utils.devices import default_device
from hf_twins._utils.drawing import mask_image
from hf_twins._utils.files import check_name_lengths, exclusive_folder, write_atomically
from hf_twins._utils.fingerprints import files_fingerprint, model_fingerprint
from hf_twins._utils.image_folders import find_images, printable
from hf_twins._utils.images import ImageError, convert_image, log_applied_rules, mode_of_model, read_image
from hf_twins._utils.labels import label_names
from hf_twins._utils.progress import progress_bar
from hf_twins._utils.run_settings import record_settings
from hf_twins.training.semantic_segmentation.drawing import class_shares, draw_prediction, visible_shares
from hf_twins.training.semantic_segmentation.inference import InferenceArguments, segment


logger = logging.getLogger(__name__)


@dataclass
class PredictionArguments:
    model_name_or_path: str = field(metadata={"help": "Folder or Hub id of a segmentation model."})
    images: str = field(metadata={"help": "An image, or a folder of images."})
    output_dir: str = field(metadata={"help": "Output folder."})
    device: str | None = field(default=None, metadata={"help": "PyTorch device; the accelerator, if any."})


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    return run(predict, PredictionArguments, InferenceArguments, arguments=arguments)


def predict(options: PredictionArguments, how: InferenceArguments) -> dict[str, dict[str, float]]:
    """Write an overlay and a mask of each image, and return the shares of its classes by image name.

    Images that cannot be read are counted and listed.
    """
    files = find_images(Path(options.images), options.output_dir)
    check_names(files)
    model, processor = load_model(options.model_name_or_path, "semantic-segmentation")
    settings = {
        "model": model_fingerprint(model, processor),
        "images": files_fingerprint(files[0].parent, [file.name for file in files]),
        **vars(how),
    }
    model.to(options.device or default_device())
    output_dir = Path(options.output_dir)
    with exclusive_folder(output_dir):
        record_settings(output_dir, settings, outputs="*_mask.png")
        return segment_files(model, processor, files, how, output_dir)


def segment_files(
    model: Any, processor: Any, files: list[Path], how: InferenceArguments, output_dir: Path
) -> dict[str, dict[str, float]]:
    """Write an overlay and a mask of each image; see `predict`."""
    names, mode = label_names(model.config), mode_of_model(model.config)
    shares, visible, unreadable = {}, {}, []
    applied: Counter[str] = Counter()
    for file in progress_bar(files, desc="Segmenting", disable=len(files) == 1):
        try:
            image = read_image(file, mode, applied)
        except ImageError as error:
            logger.warning(str(error))
            unreadable.append(file.name)
            continue
        mask = segment(model, processor, image, how).cpu().numpy()
        write_atomically(output_dir / f"{file.stem}_mask.png", partial(mask_image(mask, names).save, format="PNG"))
        write_atomically(
            output_dir / f"{file.stem}_overlay.png", partial(draw_prediction, convert_image(image), mask, names)
        )
        shares[file.name] = class_shares(mask, names)
        visible[file.name] = visible_shares(mask, names)
    for name, classes in visible.items():
        print(f"{printable(name)}: {', '.join(f'{label} {100 * share:.1f} %' for label, share in classes.items())}")
    log_applied_rules(applied)
    if unreadable:
        logger.warning(
            f"{len(unreadable)} of {len(files)} images cannot be used and are skipped: {', '.join(unreadable)}."
        )
    return shares


def check_names(files: list[Path]) -> None:
    """Raise a ValueError if two images have the same name without the extension, because their outputs would be one file.

    Names that are too long for the names of their outputs raise one, too.
    """
    check_name_lengths(files, lambda file: f"{file.stem}_overlay.png")
    stems = [file.stem for file in files]
    repeated = sorted({stem for stem in stems if stems.count(stem) > 1})
    if repeated:
        raise ValueError(f"Two images have the same name except for its extension: {', '.join(repeated)}.")


if __name__ == "__main__":
    main()
