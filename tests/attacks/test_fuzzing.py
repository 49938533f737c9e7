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
"""Randomly drawn configurations, shapes, masks, checkpoints and images.

Each one is accepted and works, or is refused with one sentence. The same ones are drawn in every run.
"""

import io
import pickle
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from audit import audited
from checkpoint_formats import convert_checkpoint
from checkpoint_sources import open_checkpoint
from hostile_files import saved
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_checkpoints import TINY, source_weights
from testing_utils import FAMILIES, randomize, rectangle_mask, tiny_config
from twins_space.uploads import UploadError, list_images, read_images, read_upload

from hf_twins import TwinsConfig, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsImageProcessor
from hf_twins._utils.images import decode_image
from hf_twins.checkpoints import read_weights, unwrap_weights
from hf_twins.checkpoints.torch_files import LEGACY_START
from hf_twins.checkpoints.unpickling import (
    BUILDERS,
    DamagedPickleError,
    RefusedPickleError,
    Storage,
    load_pickle,
)


settings.register_profile(
    "reproducible", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("reproducible")


@st.composite
def configurations(draw) -> dict[str, Any]:
    """Fields that match each other, and sometimes one that does not."""
    num_stages = draw(st.integers(1, 4))
    heads = draw(st.lists(st.integers(1, 3), min_size=num_stages, max_size=num_stages))
    fields: dict[str, Any] = {
        "num_attention_heads": heads,
        "hidden_sizes": [head * draw(st.sampled_from([1, 2, 3, 8])) for head in heads],
        "depths": draw(st.lists(st.integers(1, 3), min_size=num_stages, max_size=num_stages)),
        "mlp_ratios": draw(st.lists(st.sampled_from([0.5, 1, 2, 4]), min_size=num_stages, max_size=num_stages)),
        "sr_ratios": draw(st.lists(st.integers(1, 4), min_size=num_stages, max_size=num_stages)),
        "patch_size": draw(st.integers(1, 4)),
        "num_channels": draw(st.integers(1, 5)),
        "num_labels": draw(st.integers(1, 4)),
        "window_size": draw(st.none() | st.integers(1, 4)),
        "window_padding": draw(st.sampled_from(["masked", "zeros", "authors_segmentation"])),
        "patch_padding": draw(st.booleans()),
        "use_stage_norm": draw(st.booleans()),
        "qkv_bias": draw(st.booleans()),
        "hidden_act": draw(st.sampled_from(["gelu", "relu", "silu"])),
        "drop_path_rate": draw(st.sampled_from([0, 0.3])),
    }
    if draw(st.integers(0, 3)) == 0:
        # transformers checks the number of labels.
        name = draw(st.sampled_from(sorted(fields.keys() - {"num_labels"})))
        anything = (
            st.none() | st.integers(-3, 3) | st.floats(-1, 1) | st.text(max_size=3) | st.lists(st.integers(-2, 2))
        )
        fields[name] = draw(anything)
    return fields


@settings(max_examples=20)
@given(fields=configurations(), height=st.integers(0, 9), width=st.integers(0, 9))
def test_configuration_is_refused_by_name_or_its_model_runs_and_reloads(fields, height, width):
    try:
        config = TwinsConfig(**fields)
    # huggingface_hub raises the second error for fields of the wrong type.
    except (ValueError, StrictDataclassFieldValidationError) as error:
        assert any(name in str(error) for name in fields), error
        return
    model = randomize(TwinsForImageClassification(config))
    height, width = config.min_image_size + height, config.min_image_size + width
    images = torch.rand(2, config.num_channels, height, width)
    with torch.inference_mode():
        logits = model(images).logits
    assert logits.shape == (2, config.num_labels)
    assert logits.isfinite().all()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        reloaded = TwinsForImageClassification.from_pretrained(folder)
    assert {name: getattr(reloaded.config, name) for name in fields} == {
        name: getattr(config, name) for name in fields
    }
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in reloaded.state_dict().items())
    with torch.inference_mode():
        # The order of sums may depend on where the weights are in memory.
        torch.testing.assert_close(reloaded(images).logits, logits)


MODELS = {
    (family, padding): randomize(TwinsForImageClassification(tiny_config(family, window_padding=padding)))
    for family in FAMILIES
    for padding in ("masked", "zeros", "authors_segmentation")
}


@settings(max_examples=50)
@given(
    model=st.sampled_from(sorted(MODELS)).map(MODELS.__getitem__),
    sizes=st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=3),
    extra=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    padding_value=st.sampled_from([0.0, 1e4, float("nan")]),
)
def test_output_for_each_image_of_a_masked_batch_does_not_depend_on_the_others(model, sizes, extra, padding_value):
    images = [torch.randn(3, height, width) for height, width in sizes]
    height, width = (max(side) + more for side, more in zip(zip(*sizes), extra))
    batch = torch.full((len(images), 3, height, width), padding_value)
    for place, image in zip(batch, images):
        place[:, : image.shape[1], : image.shape[2]] = image
    with torch.inference_mode():
        logits = model(batch, pixel_mask=rectangle_mask(sizes, height, width)).logits
        expected = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


SEGMENTER = randomize(TwinsForSemanticSegmentation(tiny_config(fpn_hidden_size=16, decoder_hidden_size=16)))


@settings(max_examples=40)
@given(shape=st.tuples(*[st.integers(0, 3), st.integers(0, 4), st.integers(0, 33), st.integers(0, 33)]))
@pytest.mark.parametrize("model", [MODELS["svt", "masked"], SEGMENTER], ids=["classifier", "segmenter"])
def test_images_of_any_shape_are_computed_or_refused(model, shape):
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(shape)).logits
    except ValueError as error:
        assert "pixel_values" in str(error)
        assert shape[1] != 3 or min(shape[2:]) < 8 or shape[0] == 0
    else:
        assert logits.shape[0] == shape[0]


CHECKPOINTS = {family: source_weights("official", TINY[family]) for family in FAMILIES}
DAMAGES = {
    "drop": lambda weights, name, number: weights.pop(name),
    "rename": lambda weights, name, number: weights.update({other_name(name, number): weights.pop(name)}),
    "repeat": lambda weights, name, number: weights.update({other_name(name, number): weights[name]}),
    "more dimensions": lambda weights, name, number: weights.update({name: weights[name][None]}),
    "fewer dimensions": lambda weights, name, number: weights.update({name: weights[name].flatten()[number]}),
    "cut": lambda weights, name, number: weights.update({name: weights[name][:number]}),
    "NaN": lambda weights, name, number: weights.update({name: torch.full_like(weights[name], float("nan"))}),
    "type": lambda weights, name, number: weights.update({name: weights[name].to(DTYPES[number % len(DTYPES)])}),
    "expand": lambda weights, name, number: weights.update({name: torch.ones(1).expand(weights[name].shape)}),
    "object": lambda weights, name, number: weights.update({name: OBJECTS[number % len(OBJECTS)]}),
}
DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float16, torch.float8_e5m2)
OBJECTS = (None, 3, "text", [1.0], {"state_dict": 1})


def other_name(name: str, number: int) -> str:
    """Change the stage, block or module in a name."""
    parts = name.split(".")
    parts[number % len(parts)] = ("0", "1", "7", "-1", "x", "", "99999999999")[number % 7]
    return ".".join(parts)


@settings(max_examples=60)
@given(
    family=st.sampled_from(FAMILIES),
    damages=st.lists(st.tuples(st.sampled_from(sorted(DAMAGES)), st.integers(0, 200), st.integers(0, 31)), max_size=2),
)
def test_checkpoint_is_converted_completely_or_refused(family, damages):
    weights = dict(CHECKPOINTS[family])
    for damage, place, number in damages:
        name = sorted(weights)[place % len(weights)]
        if torch.is_tensor(weights[name]) and weights[name].ndim:
            DAMAGES[damage](weights, name, number)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "weights.pth")
        torch.save(weights, file)
        try:
            read = open_checkpoint(str(file)).weights
            model = convert_checkpoint(read).model
        except ValueError as error:
            assert str(error)
            return
    # All weights are used: the model has as many numbers, all finite, and runs.
    assert sum(weight.numel() for weight in read.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    with torch.inference_mode():
        assert model.float()(torch.rand(1, 3, 64, 64)).logits.isfinite().all()


@st.composite
def damaged_files(draw, content: st.SearchStrategy[bytes]) -> bytes:
    """Content in which bytes are flipped, removed, overwritten or added."""
    damaged = bytearray(draw(content))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, min(len(damaged), 400) - 1)) | st.integers(0, max(0, len(damaged) - 1)))
        damage = draw(st.sampled_from(["flip", "cut", "insert", "end", "huge"]))
        if damage == "flip" and damaged:
            damaged[place] ^= draw(st.integers(1, 255))
        elif damage == "cut":
            del damaged[place : place + draw(st.integers(1, 64))]
        elif damage == "insert":
            damaged[place:place] = draw(st.binary(min_size=1, max_size=16))
        elif damage == "end":
            del damaged[place:]
        elif damage == "huge":
            damaged[place : place + 4] = b"\xff\xff\xff\x7f"
    return bytes(damaged)


def weights_file(suffix: str) -> bytes:
    from safetensors.torch import save

    weights = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}
    if suffix == ".safetensors":
        return save(weights)
    file = io.BytesIO()
    torch.save({"state_dict": weights, "epoch": 3}, file, _use_new_zipfile_serialization=suffix == ".pth")
    return file.getvalue()


NAMES = (
    "posix system",
    "builtins eval",
    "torch load",
    "somebody Thing",
    "collections OrderedDict",
    "argparse Namespace",
    "builtins getattr",
    "torch FloatStorage",
    "torch.storage UntypedStorage",
    "torch float32",
    "torch Tensor",
    *(" ".join(name.rsplit(".", 1)) for name in sorted(BUILDERS)),
)


@st.composite
def pickles(draw) -> bytes:
    """Sequences of opcodes that are valid more often than random bytes, with names that are allowed, replaced and refused."""
    name = st.sampled_from(NAMES).map(lambda name: b"c" + name.replace(" ", "\n").encode() + b"\n")
    number = st.integers(0, 8).map(lambda value: b"K" + bytes([value]))
    text = st.sampled_from(["storage", "a", "cpu", "0"]).map(
        lambda value: b"\x8c" + bytes([len(value)]) + value.encode()
    )
    plain = st.sampled_from([b"N", b"\x88", b"]", b"}", b")", b"(", b"\x8f", b"J\xff\xff\xff\x7f"])
    tensor = st.just(STORAGE_REFERENCE)
    acting = st.sampled_from([bytes([opcode]) for opcode in b"RRRb\x81\x92\x85\x86\x87taesuQ0\x90\x91\x94\x93"])
    memo = st.sampled_from([b"h\0", b"h\1", b"q\0", b"q\1"])
    parts = draw(st.lists(name | number | text | plain | tensor | acting | acting | memo, max_size=24))
    return b"\x80" + bytes([draw(st.sampled_from([2, 4, 5]))]) + b"".join(parts) + b"."


# A tensor, up to the arguments after its storage.
STORAGE_REFERENCE = b"ctorch._utils\n_rebuild_tensor_v2\n((\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x04tQK\0K\x02\x85K\x01\x85"


def doubled(levels: int) -> bytes:
    """A list that contains the same list twice, and so on. Comparing or printing it takes 2 to the power of `levels`."""
    return b"]" + b"".join(b"q%c0](h%ch%ce" % (level, level, level) for level in range(levels))


def amplified(count: int = 200_000, times: int = 2000) -> dict[str, bytes]:
    """Pickles in which a few bytes make the reader process something large, `times` times."""
    # A tensor, up to its size.
    tensor = STORAGE_REFERENCE[:-6]
    long_tuple, long_text = b"(" + b"K\1" * count + b"tq\1", b"X" + struct.pack("<I", count) + b"a" * count + b"q\1"
    shapes = {
        "tuple for a key": long_tuple + b"}" + b"h\1Ns" * times,
        "arguments": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\nq\2" + long_tuple + b"h\2h\1R0" * times + b"N",
        "persistent id": b"(\x8c\6module" + long_tuple[1:] + b"0" + b"h\1Q0" * times + b"N",
        "dimensions": long_tuple + b"0" + (tensor + b"h\1h\1\x89NtR0") * times + b"N",
        "layout": b"ctorch.serialization\n_get_layout\n" + doubled(40) + b"\x85R",
        "attribute": b"cbuiltins\ngetattr\ncx\ny\n" + doubled(40) + b"\x86R",
        "growing name": long_text + b"0cbuiltins\ngetattr\nq\2cx\ny\nq\3" + b"h\2h\3h\1\x86Rq\3" * times,
        "tensor for pairs": b"ccollections\nOrderedDict\n]" + tensor + b"\x8a\4\0\0\0\1\x85K\0\x85\x89NtRa\x85R",
    }
    return {name: b"\x80\2" + content + b"." for name, content in shapes.items()}


def legacy_file(*pickles: bytes) -> bytes:
    """A file in PyTorch's older format, up to the storages."""
    return b"".join([*(pickle.dumps(each, 2) for each in (*LEGACY_START, {})), *pickles])


KEYS_THAT_ARE_DOUBLED = legacy_file(b"\x80\2}.", b"\x80\2](" + doubled(40) + doubled(40) + b"e.")


@pytest.mark.parametrize(("name", "content"), amplified().items(), ids=amplified(1, 1))
def test_amplification_by_a_few_bytes_is_read_or_refused_quickly(name, content):
    before = time.process_time()
    read_pickle(content)
    # The limit allows for slow machines. Without limits in the reader, each pickle took minutes or all memory.
    assert time.process_time() - before < 3


def test_list_of_storages_that_takes_forever_to_sort_is_refused_quickly(tmp_path):
    (tmp_path / "a.pth").write_bytes(KEYS_THAT_ARE_DOUBLED)
    with pytest.raises(ValueError, match="its list of storages is not that of its tensors"):
        read_weights(tmp_path / "a.pth")


def test_exponentially_long_names_are_read_or_refused_quickly():
    names = dict.fromkeys((f"{number}.backbone.patch_embeds.0.proj.weight" for number in range(20_000)), 1)
    before = time.process_time()
    for content, message in (
        (names, "holds 20000 models"),
        (dict.fromkeys(range(20_000), names), "holds 20000 models"),
    ):
        with pytest.raises(ValueError, match=message):
            unwrap_weights(content, "a.pth")
    assert time.process_time() - before < 3


def read_pickle(content: bytes) -> None:
    """Interpret a pickle, and raise an AssertionError if this imported, called or opened anything."""
    memory = torch.zeros(16, dtype=torch.uint8).untyped_storage()
    with audited() as events:
        try:
            load_pickle(content, lambda storage_id: Storage(storage_id.dtype, memory))
        except (DamagedPickleError, RefusedPickleError) as error:
            assert len(str(error).splitlines()) == 1
    assert events == [], content


@pytest.mark.filterwarnings("ignore")  # PyTorch's warnings about drawn tensors
@settings(max_examples=300)
@given(content=pickles())
def test_pickle_of_any_opcodes_imports_and_calls_nothing(content):
    read_pickle(content)


# The last format is PyTorch's older one.
WEIGHTS_FILES = {suffix: weights_file(suffix) for suffix in (".safetensors", ".pth", ".bin")}


@pytest.mark.filterwarnings("ignore")  # PyTorch's warnings about the content of the file
@pytest.mark.parametrize("suffix", WEIGHTS_FILES)
@settings(max_examples=120)
@given(data=st.data())
def test_damaged_file_of_weights_is_read_or_refused(suffix, data):
    content = data.draw(damaged_files(st.just(WEIGHTS_FILES[suffix])))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"weights{suffix}")
        file.write_bytes(content)
        try:
            weights = read_weights(file)
        except ValueError as error:
            assert str(file) in str(error)
        else:
            assert all(torch.is_tensor(weight) for weight in weights.values())


def image_files() -> list[bytes]:
    image = PIL.Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint32).astype(np.uint8).reshape(30, 40, 3))
    return [saved(image, image_format) for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


@pytest.mark.filterwarnings("ignore")  # Pillow's warnings about the content of the file
@settings(max_examples=400)
@given(content=damaged_files(st.sampled_from(image_files())) | st.binary(max_size=200))
def test_damaged_image_is_read_or_refused(content):
    """The readers are those of the Spaces and scripts, and, for images that can be decoded, the image processor."""
    try:
        uploaded = read_upload(io.BytesIO(content))
    except UploadError as error:
        assert str(error).endswith(".")
    else:
        assert uploaded.mode == "RGB"
        assert max(uploaded.size) <= 2048
    image = decode_image({"bytes": content, "path": None})
    if image is not None and image.width * image.height < 10**6:
        pixel_values = TwinsImageProcessor()(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        assert pixel_values.shape == (1, 3, 224, 224)
        assert pixel_values.isfinite().all()


def archive_of_images() -> bytes:
    from hostile_files import archive

    return archive({f"{index}.png": content for index, content in enumerate(image_files())})


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150)
@given(content=damaged_files(st.just(archive_of_images())))
def test_damaged_archive_is_read_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "images.zip")
        file.write_bytes(content)
        try:
            images = list_images([file])
        except UploadError as error:
            assert str(error).endswith(".")
        else:
            assert all(isinstance(each, PIL.Image.Image | UploadError) for _, each in read_images(images))
