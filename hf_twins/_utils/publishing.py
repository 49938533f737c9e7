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
"""Publishes a model folder.

It never publishes to a public repository if a private one was requested, keeps cards that were written by hand, and removes
old files that would be loaded instead of the new ones.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, RepoUrl

from .cards import is_generated


CARD_NAME = "README.md"
# Files that transformers would load instead of the published ones, or in addition to them: weights in other formats or
# numbers of files, their indices, adapters, and processor_config.json, whose image processor has precedence. Also
# weights under the names that timm and Mistral load.
LOADED = re.compile(
    r"(pytorch_model|model|tf_model|flax_model|adapter_model|consolidated)([.-][\w.-]+)?\.(bin|safetensors|h5|msgpack|pth)"
    r"(\.index\.json)?"
    r"|adapter_config\.json|processor_config\.json"
)


def create_repository(api: HfApi, repo_id: str, private: bool, repo_type: str = "model", **options: Any) -> RepoUrl:
    """Create a repository if it does not exist.

    Raises:
        ValueError: if a private repository was requested, but a public one exists.
    """
    url = api.create_repo(repo_id, private=private or None, repo_type=repo_type, exist_ok=True, **options)
    if private and not api.repo_info(url.repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"{url.repo_id} is public, nothing was published: make it private in its settings on the Hub, publish under "
            "another name, or do not ask for a private one."
        )
    return url


def publish_folder(
    api: HfApi,
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    replace_card: bool = False,
    files: Sequence[str] | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Publish a model folder as one commit, and print what was kept or removed in the repository.

    Args:
        api: the Hub's client.
        folder: the model folder.
        repo_id: id of the repository.
        private: whether the repository must be private.
        revision: branch to publish to, created if missing.
        create_pr: whether to open a pull request instead; the repository must exist, and may belong to another user.
        replace_card: whether to replace a README.md that was written or edited by hand, which is kept otherwise.
        files: names of the files to publish; by default, all files in the folder.
        commit_message: message of the commit, and title of the pull request.

    Raises:
        ValueError: if a private repository was requested, but it is public.
        httpx.HTTPError, RuntimeError, OSError: errors of the client if the Hub refuses the request or is unreachable.
    """
    if not create_pr:
        repo_id = create_repository(api, repo_id, private).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    info = api.model_info(repo_id, revision=revision)
    remote = {sibling.rfilename for sibling in info.siblings or []}
    ignored = []
    is_published = {name: (folder / name).is_file() for name in (CARD_NAME, *remote)}
    if files is not None:
        is_published = {name: name in files for name in is_published}
    if CARD_NAME in remote and is_published[CARD_NAME] and not replace_card:
        card = Path(api.hf_hub_download(repo_id, CARD_NAME, revision=info.sha))
        if not is_generated(card.read_text(encoding="utf-8", errors="replace")):
            ignored.append(CARD_NAME)
            print(
                f"kept      {CARD_NAME} of {repo_id}, which was not generated; the generated one is {folder / CARD_NAME}"
            )
    obsolete = sorted(name for name in remote if LOADED.fullmatch(name) and not is_published[name])
    if obsolete:
        print(f"removes   {', '.join(obsolete)} from {repo_id}, which would be loaded beside what is published")
    return api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        # The commit fails if another user has published in the meantime.
        parent_commit=info.sha,
        create_pr=create_pr,
        allow_patterns=None if files is None else list(files),
        ignore_patterns=ignored or None,
        delete_patterns=obsolete or None,
        commit_message=commit_message,
    )
