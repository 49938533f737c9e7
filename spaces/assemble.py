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
"""Assemble a self-contained Space from one of the folders here, and optionally publish it.

It contains the folder, the Spaces' shared code and the hf_twins package, because a Space on the Hub has nothing else.

    python spaces/assemble.py image_classification --output_dir outputs/space
    python spaces/assemble.py image_classification --output_dir outputs/space --model outputs/my_model
    python spaces/assemble.py image_classification --output_dir outputs/space --push_to_hub --repo_id ORG/NAME
    python spaces/assemble.py browser --output_dir outputs/browser_space --model outputs/quickstart

`browser` is a static page instead, combined with a model exported to ONNX.
"""

import shutil
import sys
from pathlib import Path

from hf_twins._utils.command_line import ArgumentParser

from browser_model import DEFAULT_MODEL, export_model
from huggingface_hub import HfApi, RepoCard, constants
from huggingface_hub.utils import httpx
from twins_space.models import MODEL_LIST, OWN_MODELS

import hf_twins
from hf_twins import load_model
from hf_twins._utils.files import check_is_new, new_output
from hf_twins._utils.publishing import create_repository


HERE = Path(__file__).resolve().parent
SPACES = sorted(file.parent.name for file in HERE.glob("*/README.md"))
# The Space whose page runs its model in the browser.
BROWSER = "browser"
# The files that convert published checkpoints, for a Space that offers these.
CONVERSION = ("checkpoint_formats.py", "checkpoint_sources.py", "downloads.py", "ade20k_classes.txt")
THUMBNAIL = "thumbnail.png"
LEFT_OUT = ("__pycache__", "*.pyc", "*.tmp", ".*")


def assemble(space: str, output: Path, model: str | None = None, repo_id: str | None = None) -> None:
    """Write a Space's folder atomically.

    Args:
        space: one of `SPACES`.
        output: output folder, new or empty.
        model: folder, file or Hub id of the Space's default model.
        repo_id: Hub id to publish the Space as, for the URL of its thumbnail.

    Raises:
        ImportError: if a package needed to export the model of `BROWSER` is missing.
        OSError: if the model cannot be loaded.
        ValueError: if `output` exists at the start or at the end, or the model is of another kind.
    """
    check_is_new(output)
    package = Path(hf_twins.__file__).parent
    with new_output(output) as partial:
        shutil.copytree(HERE / space, partial, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        shutil.copy(HERE.parent / "LICENSE", partial)
        shutil.copy(HERE / THUMBNAIL, partial)
        if repo_id is not None:
            card = RepoCard.load(partial / "README.md")
            card.data.thumbnail = f"{constants.ENDPOINT}/spaces/{repo_id}/resolve/main/{THUMBNAIL}"
            card.save(partial / "README.md")
        if space == BROWSER:
            export_model(partial, model or DEFAULT_MODEL, HERE / "image_classification" / "examples")
            return
        # Their README pages are for developers.
        for folder in (HERE / "twins_space", package):
            ignore = shutil.ignore_patterns(*LEFT_OUT, "README.md")
            shutil.copytree(folder, partial / folder.name, ignore=ignore)
        if space == "semantic_segmentation":
            (partial / "conversion").mkdir()
            for name in CONVERSION:
                shutil.copy(HERE.parent / "conversion" / name, partial / "conversion")
        if model is not None:
            add_model(space, model, partial)


def add_model(space: str, model: str, folder: Path) -> None:
    """Make a model the default of a Space: copy it to the folder, or have it downloaded when the Space is built."""
    loaded, processor = load_model(model, space.replace("_", "-"), dtype="auto")
    card = RepoCard.load(folder / "README.md")
    if Path(model).exists():
        # Any model is saved as a complete model folder, because an adapter or another library's checkpoint may need files
        # that are elsewhere.
        source = Path(model).resolve()
        # A folder's name has no suffix, even with a point in it, as in twins-v1.5.
        name = f"{OWN_MODELS}/{source.name if source.is_dir() else source.stem}"
        loaded.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        if (Path(model) / "README.md").is_file():
            shutil.copy(Path(model) / "README.md", folder / name)
        card.data.pop("preload_from_hub", None)
    else:
        name = model
        card.data.preload_from_hub = [model]
        card.data.models = [model, *(each for each in card.data.get("models") or [] if each != model)]
    (folder / MODEL_LIST).write_text(f"{name}\n", encoding="utf-8")
    card.save(folder / "README.md")


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Make the Space on the Hub match the folder, and return its URL.

    Raises:
        OSError: if the Hub cannot be reached, or refuses.
        ValueError: if the Hub rejects the folder's card or `repo_id`, or the Space should be private but is public.
    """
    api = HfApi()
    try:
        card = RepoCard.load(folder / "README.md")
        card.validate(repo_type="space")
        url = create_repository(api, repo_id, private, repo_type="space", space_sdk=card.data.sdk)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type="space",
            delete_patterns="*",
            commit_message=f"Assemble from hf_twins {hf_twins.__version__}",
        )
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        raise OSError(f"{repo_id} was not published, {folder} is unchanged: {error}") from error
    return str(url)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser()
    parser.add_argument("space", choices=SPACES, help="folder of the Space")
    parser.add_argument("--output_dir", "--output", dest="output", type=Path, required=True, help="output folder")
    parser.add_argument("--model", help="default model of the Space: a folder, a file, or a repository on the Hub")
    parser.add_argument("--push_to_hub", action="store_true", help="publish it (needs a token, see `hf auth login`)")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="Hub id of the Space")
    parser.add_argument("--private", action="store_true", help="create a private Space")
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.repo_id:
        parser.error("--push_to_hub needs --repo_id")
    if not args.push_to_hub and (args.repo_id or args.private):
        parser.error("--repo_id and --private are for publishing: give --push_to_hub too, or leave them out")
    try:
        assemble(args.space, args.output, args.model, args.repo_id)
        print(f"written   {args.output}")
        if args.push_to_hub:
            print(f"published {push(args.output, args.repo_id, args.private)}")
    except (ImportError, OSError, ValueError) as error:
        # Messages of the Hub's client may have several lines.
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
