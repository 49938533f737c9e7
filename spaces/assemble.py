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
"""Makes a Space of one of the folders here, whole in itself, and publishes it if told to.

The folder, what the Spaces share and the hf_twins package are put together, because a Space on the Hub has nothing else.

    python spaces/assemble.py image_classification --output_dir outputs/space
    python spaces/assemble.py image_classification --output_dir outputs/space --push_to_hub --repo_id ORG/NAME
    python spaces/assemble.py browser --output_dir outputs/browser_space --model outputs/quickstart

`browser` is a static page instead: it is put together with a model, exported to ONNX.
"""

import shutil
import sys
from pathlib import Path

from hf_twins._utils.command_line import ArgumentParser

from browser_model import DEFAULT_MODEL, add_model
from huggingface_hub import HfApi, RepoCard
from huggingface_hub.utils import httpx

import hf_twins
from hf_twins._utils.files import check_is_new, new_output
from hf_twins._utils.publishing import create_repository


HERE = Path(__file__).resolve().parent
SPACES = sorted(file.parent.name for file in HERE.glob("*/README.md"))
# The page that runs its model in the browser.
BROWSER = "browser"
LEFT_OUT = ("__pycache__", "*.pyc", "*.tmp", ".*")


def assemble(space: str, output: Path, model: str | None = None) -> None:
    """Write a Space's folder, whole or not at all.

    Args:
        space: one of `SPACES`.
        output: the folder to write, which must not exist or be empty.
        model: folder or Hub id of the model of `BROWSER`.

    Raises:
        ImportError: if a package that exports the model is missing.
        OSError: if the model cannot be loaded.
        ValueError: if `output` is there already, or in the end, or the page cannot use the model.
    """
    check_is_new(output)
    package = Path(hf_twins.__file__).parent
    with new_output(output) as partial:
        shutil.copytree(HERE / space, partial, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        if space == BROWSER:
            add_model(partial, model or DEFAULT_MODEL, HERE / "image_classification" / "examples")
        # Their pages are for who works on them.
        for folder in () if space == BROWSER else (HERE / "twins_space", package):
            ignore = shutil.ignore_patterns(*LEFT_OUT, "README.md")
            shutil.copytree(folder, partial / folder.name, ignore=ignore)
        shutil.copy(HERE.parent / "LICENSE", partial)


def push(folder: Path, repo_id: str, private: bool) -> str:
    """Make the Space on the Hub what the folder is, and give its address.

    Raises:
        OSError: if the Hub cannot be reached, or refuses.
        ValueError: if the folder's card or `repo_id` is not what the Hub accepts, or the Space is to be private and is public.
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
    parser.add_argument("--output_dir", "--output", dest="output", type=Path, required=True, help="folder to write")
    parser.add_argument("--model", help=f"folder or Hub id of the model of {BROWSER}; {DEFAULT_MODEL} by default")
    parser.add_argument("--push_to_hub", action="store_true", help="publish it (needs a token, see `hf auth login`)")
    parser.add_argument("--repo_id", metavar="ORG/NAME", help="of the Space on the Hub")
    parser.add_argument("--private", action="store_true", help="let nobody else see the Space")
    args = parser.parse_args(argv)
    if args.push_to_hub and not args.repo_id:
        parser.error("--push_to_hub needs --repo_id")
    if not args.push_to_hub and (args.repo_id or args.private):
        parser.error("--repo_id and --private say how a Space is published: give --push_to_hub too, or leave them out")
    if args.model and args.space != BROWSER:
        parser.error(f"--model is for {BROWSER}")
    try:
        assemble(args.space, args.output, args.model)
        print(f"written   {args.output}")
        if args.push_to_hub:
            print(f"published {push(args.output, args.repo_id, args.private)}")
    except (ImportError, OSError, ValueError) as error:
        # The Hub's client says it in several lines.
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
