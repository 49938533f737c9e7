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
"""Convert any Twins checkpoint to a transformers repository, verified, and publish it.

    python conversion/convert_twins_to_hf.py alt_gvt_small.pth --output_dir twins-svt-small
    python conversion/convert_twins_to_hf.py timm/twins_svt_small.in1k --output_dir twins-svt-small
    python conversion/convert_twins_to_hf.py twins-svt-small-upernet-ade20k --output_dir upernet --push_to_hub --repo_id ORG/NAME
    python conversion/convert_twins_to_hf.py --all --output_dir converted --org ORG

The format, architecture, labels and padding are read from the source's files. Nothing is written unless the
converted model computes the same as the source's own architecture with the same weights.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from hf_twins._utils.command_line import ArgumentParser

import torch
from checkpoint_formats import WITHOUT_HEAD, Conversion, convert_checkpoint, image_processor
from checkpoint_sources import Checkpoint, one_line, open_checkpoint, published_checkpoints
from downloads import file_sha256
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id
from model_cards import model_card
from transformers import AutoImageProcessor, UperNetForSemanticSegmentation
from verification import backbone_config, verify

from hf_twins import TWINS_VARIANTS, TwinsImageProcessor, save_remote_code
from hf_twins._utils.files import new_output
from hf_twins._utils.labels import label_names
from hf_twins._utils.publishing import publish_folder
from hf_twins.checkpoints import listed


# The report has the source and the options of a conversion, and the SHA-256 of every other file, so that only verified
# files are published.
REPORT_NAME = "conversion.json"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit with a message and a nonzero status if anything failed."""
    args = parse_arguments(arguments)
    try:
        if args.all:
            convert_all(args)
            return
        api = open_hub(args) if args.push_to_hub else None
        folder = convert(args.source, args.output, args)
        if api is not None and folder is not None:
            push(api, folder, args.repo_id, args)
    except (OSError, ValueError, httpx.HTTPError) as error:
        sys.exit(f"error: {one_line(error)}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser()
    parser.add_argument(
        "source",
        nargs="?",
        help="a file, folder, URL, timm repository, or the name of a published checkpoint",
    )
    parser.add_argument("--all", action="store_true", help="convert every published checkpoint")
    parser.add_argument(
        "--output_dir",
        "--output",
        dest="output",
        type=Path,
        help="output folder; with --all, the parent of the output folders",
    )
    parser.add_argument("--variant", choices=TWINS_VARIANTS, help="fail if the checkpoint is not this variant")
    parser.add_argument("--sha256", help="expected SHA-256 of the source, or at least its first 8 digits")
    parser.add_argument("--averaged", action="store_true", help="use averaged weights (EMA) saved beside others")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        help="dtype of the written weights; the source's by default",
    )
    parser.add_argument("--shard_size", default="5GB", help="maximum size of a weights file")
    parser.add_argument("--dry_run", action="store_true", help="convert and verify, but write nothing")
    parser.add_argument("--push_to_hub", action="store_true", help="publish as --repo_id, with the Hub client's token")
    parser.add_argument("--repo_id", help="ORG/NAME of the repository to publish as")
    parser.add_argument("--org", help="publish everything that --all converts as ORG/...")
    parser.add_argument(
        "--private", action="store_true", help="create a private repository; an existing one must be private"
    )
    parser.add_argument(
        "--create_pr", action="store_true", help="open a pull request, also in somebody else's repository"
    )
    parser.add_argument(
        "--replace_card",
        action="store_true",
        help="replace a hand-written README.md, which is otherwise kept",
    )
    parser.add_argument("--revision", help="branch to publish to, created if missing; main by default")
    parser.add_argument("--with_remote_code", action="store_true", help="add the code, for users without hf_twins")
    args = parser.parse_args(arguments)
    if args.all == (args.source is not None):
        parser.error("give either a SOURCE or --all")
    if args.output is None and not args.dry_run:
        parser.error("--output_dir is needed, except with --dry_run")
    if args.push_to_hub != (args.repo_id is not None):
        parser.error("--push_to_hub and --repo_id go together")
    if args.org is not None and not args.all:
        parser.error("--org is for --all; for one repository, use --repo_id")
    if args.all and (args.push_to_hub or args.sha256 or args.variant):
        parser.error("--all cannot be used with --push_to_hub (use --org), --sha256 or --variant")
    if args.create_pr and (args.private or args.revision is not None):
        parser.error("--create_pr cannot be used with --private or --revision")
    if args.dry_run and (args.push_to_hub or args.org):
        parser.error("--dry_run publishes nothing")
    try:
        if args.repo_id is not None:
            validate_repo_id(args.repo_id)
        if args.org is not None:
            validate_repo_id(f"{args.org}/twins")
    except HFValidationError as error:
        parser.error(f"{'--org' if args.org is not None else '--repo_id'}: {one_line(error)}")
    # These are git's rules for names of branches.
    if args.revision is not None and not re.fullmatch(r"(?!.*(\.\.|//))[\w.][\w./+=-]*(?<![./])", args.revision):
        parser.error(f"--revision must be the name of a branch, such as v1.0 or my-branch, got {args.revision!r}")
    return args


def convert(source: str, output: Path | None, args: argparse.Namespace) -> Path | None:
    """Convert one checkpoint, print a summary, and return the output folder.

    An existing folder of the same conversion is published as it is, because an earlier attempt to publish may have
    failed.
    """
    existing = output if output is not None and output.exists() and not is_empty_folder(output) else None
    if existing is not None and not (args.push_to_hub and (existing / REPORT_NAME).is_file()):
        raise ValueError(f"{existing} exists: remove it, or give another --output_dir.")
    checkpoint = open_checkpoint(source, args.sha256, args.averaged)
    if existing is not None:
        check_report(existing)
        if read_report(existing)["made_of"] != made_of(checkpoint, args):
            raise ValueError(
                f"{existing} exists, from another source or with other options: remove it, or give another --output_dir."
            )
        print(f"exists    {existing}")
        return existing
    conversion = convert_checkpoint(
        checkpoint.weights, checkpoint.meta, checkpoint.timm_config, allow_mixed_types=args.dtype is not None
    )
    expected_variant = args.variant or (checkpoint.published or {}).get("variant")
    if expected_variant not in (None, conversion.variant):
        raise ValueError(
            f"{checkpoint.origin} must be a {expected_variant}, but is {conversion.variant or 'no published variant'}."
        )
    if args.with_remote_code and not has_remote_code(conversion):
        raise ValueError(
            "--with_remote_code does not work for UperNet: transformers loads the code of a model, but not its backbone's."
        )
    differences = verify(conversion.model, conversion.source_format, conversion.source_weights)
    print_summary(conversion, checkpoint, differences)
    if args.dry_run or output is None:
        print("dry run: nothing written")
        return None
    if args.dtype is not None:
        conversion.model.to(getattr(torch, args.dtype))
    repo_id = args.repo_id or (f"{args.org}/{output.name}" if args.org else str(output))
    with new_output(output) as folder:
        write(folder, conversion, checkpoint, differences, repo_id, args)
    print(f"written   {output}")
    return output


def is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def made_of(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Everything that determines the output folder."""
    options = ("averaged", "dtype", "shard_size", "with_remote_code")
    return {"source_sha256": checkpoint.sha256} | {name: getattr(args, name) for name in options}


def has_remote_code(conversion: Conversion) -> bool:
    return not isinstance(conversion.model, UperNetForSemanticSegmentation)


def print_summary(conversion: Conversion, checkpoint: Checkpoint, differences: dict[str, float]) -> None:
    config: Any = conversion.model.config
    backbone = backbone_config(conversion.model)
    # Without names in the source, those of ImageNet-1k or ADE20K are used if the number of labels matches.
    names = label_names(config)
    is_assumed = not checkpoint.has_label_names and names != [f"LABEL_{index}" for index in range(len(names))]
    rows = {
        "source": checkpoint.origin,
        "SHA-256": checkpoint.sha256,
        "format": conversion.source_format.name,
        "variant": conversion.variant
        or f"none that is published: depths {backbone.depths}, "
        f"hidden sizes {backbone.hidden_sizes}, heads {backbone.num_attention_heads}",
        "model": f"{type(conversion.model).__name__}, {conversion.model.num_parameters():,} parameters",
        # A configuration always has labels, but a model only has labels if it has a head.
        "labels": "none"
        if isinstance(conversion.model, WITHOUT_HEAD) or not config.id2label
        else f"{config.num_labels}, {listed(names, limit=3)}"
        + (", assumed from their number: the source has no names" if is_assumed else ""),
        "channels": backbone.num_channels,
        "computes": f"window_padding={backbone.window_padding}, patch_padding={backbone.patch_padding}, "
        f"layer_norm_eps={backbone.layer_norm_eps}, use_stage_norm={backbone.use_stage_norm}",
        "left out": listed([*checkpoint.left_out, *conversion.unused]) or "nothing",
        "verified": ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items()),
    }
    for name, value in rows.items():
        print(f"{name:9} {value}")


def write(
    folder: Path,
    conversion: Conversion,
    checkpoint: Checkpoint,
    differences: dict[str, float],
    repo_id: str,
    args: argparse.Namespace,
) -> None:
    """Write the repository into an empty folder, and verify it by reading it back.

    Raises:
        OSError: if a file cannot be written.
        ValueError: if the files read back differ.
    """
    model = conversion.model
    processor = image_processor(conversion, checkpoint.preprocessing)
    remote_code = args.with_remote_code and has_remote_code(conversion)
    try:
        model.save_pretrained(folder, max_shard_size=args.shard_size)
    except Exception as error:
        # safetensors raises its own error if the disk is full.
        raise OSError(f"{folder} cannot be written: {error}.") from error
    processor.save_pretrained(folder)
    model_card(conversion, checkpoint, differences, repo_id, remote_code).save(folder / "README.md")
    if remote_code:
        save_remote_code(folder)
    check_written(folder, conversion, processor)
    report = {
        "source": checkpoint.origin,
        "made_of": made_of(checkpoint, args),
        "source_format": conversion.source_format.name,
        "relative_differences": differences,
        "sha256": {file.name: file_sha256(file) for file in sorted(folder.iterdir())},
    }
    (folder / REPORT_NAME).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def check_written(folder: Path, conversion: Conversion, processor: TwinsImageProcessor) -> None:
    expected = conversion.model.state_dict()
    model = type(conversion.model).from_pretrained(folder)
    reloaded = model.state_dict()
    different = [name for name in expected if name not in reloaded or not torch.equal(reloaded[name], expected[name])]
    if different or AutoImageProcessor.from_pretrained(folder).to_dict() != processor.to_dict():
        raise ValueError(f"{folder} differs from what was written, in {', '.join(different) or 'the processor'}.")


def open_hub(args: argparse.Namespace) -> HfApi:
    """Create the Hub's client, and check the connection before any work is done.

    Raises:
        ValueError: if the user is not logged in.
        OSError: if the Hub does not answer.
    """
    api = HfApi()
    try:
        api.whoami()
    except (OSError, httpx.HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, LocalTokenNotFoundError) or status in (401, 403):
            raise ValueError(
                "You are not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write "
                f"({one_line(error)})."
            ) from error
        raise OSError(
            f"The Hub does not answer, so nothing was converted: try again later ({one_line(error)})."
        ) from error
    return api


def push(api: HfApi, folder: Path, repo_id: str, args: argparse.Namespace) -> None:
    """Publish a converted folder, exactly as verified."""
    check_report(folder)
    try:
        commit = publish_folder(
            api,
            folder,
            repo_id,
            private=args.private,
            revision=args.revision,
            create_pr=args.create_pr,
            replace_card=args.replace_card,
            commit_message="Convert from " + read_report(folder)["source"],
        )
    except (HFValidationError, httpx.HTTPError, RuntimeError, OSError) as error:
        raise OSError(f"{repo_id} was not published, {folder} is unchanged: {error}") from error
    print(f"published {commit.pr_url or commit.commit_url}")


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))


def check_report(folder: Path) -> None:
    """Raise a ValueError if the folder changed since it was verified."""
    report_file = folder / REPORT_NAME
    if not report_file.is_file():
        raise ValueError(f"{folder} has no {REPORT_NAME}: it was not converted by this program.")
    expected = read_report(folder)["sha256"]
    actual = {file.name: file_sha256(file) for file in folder.iterdir() if file.is_file() and file != report_file}
    changed = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if changed:
        raise ValueError(
            f"{folder} was changed after it was verified ({', '.join(changed)}): remove it and convert again."
        )


def convert_all(args: argparse.Namespace) -> None:
    """Convert and publish every published checkpoint, continuing after failures, and skipping finished ones.

    Raises:
        ValueError: at the end, if anything failed.
    """
    api = open_hub(args) if args.org else None
    results: dict[str, str] = {}
    for name in published_checkpoints():
        print(f"\n--- {name}")
        output = args.output / name if args.output is not None else None
        try:
            if output is not None and (output / REPORT_NAME).is_file():
                check_report(output)
                results[name] = "already converted"
            else:
                convert(name, output, one_of_all(args, name))
                results[name] = "converted and verified"
            if api is not None and output is not None:
                push(api, output, f"{args.org}/{name}", args)
                results[name] += f", published as {args.org}/{name}"
        except (OSError, ValueError, httpx.HTTPError) as error:
            print(f"error: {one_line(error)}")
            results[name] = f"FAILED: {one_line(error)}"
    print()
    for name, result in results.items():
        print(f"{name:45} {result}")
    failed = sum(result.startswith("FAILED") for result in results.values())
    if failed:
        raise ValueError(f"{failed} of {len(results)} failed; run the same command again to retry them.")


def one_of_all(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments for one checkpoint of --all, without remote code for UperNet, which does not support it."""
    with_remote_code = args.with_remote_code and "-upernet-" not in name
    return argparse.Namespace(**vars(args) | {"with_remote_code": with_remote_code})


if __name__ == "__main__":
    main()
