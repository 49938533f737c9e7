"""Report which of transformers' tests did not run on Twins, and why, since a skipped test is not a passed test.

The script reads the output of `pytest -rs`, and fails if a test was skipped for a reason that is not listed here.
"""

import re
import sys
from collections import Counter
from pathlib import Path


# Maps patterns of transformers' reasons to explanations.
REASONS = {
    r"requires (multiple )?accelerators?$|requires MPS|requires Flash Attention|requires deepspeed": (
        "needs a GPU or what runs on one: tests marked `gpu` and tests/sharded_training.py are ours"
    ),
    r"requires the kernels library": "replaces layers by kernels from the Hub: needs the Hub and a GPU",
    r"cache as input|language modeling head|RoPE|resize_embeddings|inputs_embeds|grouped_mm|sliding window"
    r"|position embeddings|sparse experts|output_router_logits|feedforward chunking": (
        "tests what language models have: caches, token embeddings, rotary positions, experts"
    ),
    # The last pattern is for a test of composite models, whose reason was copied from another test.
    r"not (a )?composite|No subconfigs|does not support SDPA": "tests models that are made of models",
    r"_keep_in_fp32_modules": "tests layers that a model keeps in float32: Twins has none",
    r"TP plan": "tests tensor parallelism, for which Twins has no plan",
    r"No conversion found": (
        "tests the renaming of weights in transformers' own table: Twins reads other formats by its own "
        "(tests/hf_twins/test_checkpoints.py, tests/conversion)"
    ),
    r"No validation found|dict size or list image_mean": (
        "tests arguments that the processor does not have: tests/hf_twins/test_image_processing_twins.py"
    ),
    r"The process that it starts": "starts a process that knows transformers' models only: tests/hf_twins has the like",
    r"several classes capturing": (
        "selects single hidden states that hooks record: Twins' encoder collects them itself "
        "(ours: test_hidden_states_that_are_not_selected_are_none)"
    ),
}


def count_skips(log: str) -> Counter[str]:
    """Count the skipped tests by reason."""
    skips: Counter[str] = Counter()
    for number, reason in re.findall(
        r"^(?:SUB)?SKIPPED(?:\[\w+\])? \[(\d+)\] \S+?:(?:\d+:)? (.*)$", log, flags=re.MULTILINE
    ):
        skips[reason] += int(number)
    return skips


def main(path: str) -> None:
    log = Path(path).read_text()
    skips = count_skips(log)
    total = re.search(r"(\d+) skipped", log)
    if sum(skips.values()) != (int(total.group(1)) if total else 0):
        sys.exit(f"account.py read {sum(skips.values())} skips where pytest says {total and total.group()}")
    groups: Counter[str] = Counter()
    unknown = []
    for reason, number in skips.items():
        meaning = next((meaning for pattern, meaning in REASONS.items() if re.search(pattern, reason)), None)
        if meaning is None:
            unknown.append(f"{number:3d}  {reason}")
        else:
            groups[meaning] += number
    print(
        "\nNot run of transformers' suite, besides what its source distribution lacks (see README.md in this folder):"
    )
    for meaning, number in groups.most_common():
        print(f"{number:3d}  {meaning}")
    if unknown:
        sys.exit("\n".join(["Skipped for a reason that account.py does not list:", *unknown]))


if __name__ == "__main__":
    main(*sys.argv[1:])
