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
"""The image processors against each other and against the authors' preprocessing."""

import base64
import itertools
import json
import math
import subprocess
import sys
import textwrap
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from testing_utils import LargestTensor, randomize, tiny_config
from torch import nn
from torchvision import transforms
from transformers import SegformerImageProcessor
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from hf_twins import TwinsForSemanticSegmentation, TwinsImageProcessor, TwinsImageProcessorPil
from hf_twins.image_processing_twins import STRIP_VALUES, find_stride, resize_rows


ORIENTATION = 0x0112
PROCESSOR_CLASSES = [TwinsImageProcessor, TwinsImageProcessorPil]
SEGFORMER_CLASSES = [SegformerImageProcessor, SegformerImageProcessorPil]
SEGMENTATION = {"size": {"shortest_edge": 32, "longest_edge": 128}, "resample": 2, "do_center_crop": False}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    # After resizing, the center of the first one is at half a pixel, which must be rounded as in torchvision.
    return [china, flower.crop((100, 0, 350, 420)), flower.resize((90, 60))]


def authors_preprocessing(image: Image.Image) -> torch.Tensor:
    """Apply the evaluation transforms of the authors' classification code, by torchvision on PIL images."""
    return transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(image)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_prepares_images_as_the_authors_do(processor_class, photographs):
    for image in photographs:
        pixel_values = processor_class()(image, return_tensors="pt").pixel_values[0]
        assert pixel_values.shape == (3, 224, 224)
        assert (pixel_values - authors_preprocessing(image)).abs().max() < 0.05


def test_backends_agree(photographs):
    torchvision, pil = (
        processor_class()(photographs, return_tensors="pt").pixel_values for processor_class in PROCESSOR_CLASSES
    )
    assert (torchvision - pil).abs().max() < 0.05
    assert (torchvision - pil).abs().mean() < 1e-3


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_takes_every_kind_of_image(processor_class, photographs):
    processor = processor_class()
    image = photographs[0]
    expected = processor(image, return_tensors="pt").pixel_values
    array = np.array(image)
    for same in (array, torch.from_numpy(array).permute(2, 0, 1), [image], [array]):
        torch.testing.assert_close(processor(same, return_tensors="pt").pixel_values, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_processor_converts_every_mode_to_rgb(processor_class, mode, photographs):
    pixel_values = processor_class()(photographs[0].convert(mode), return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 224, 224)
    assert pixel_values.isfinite().all()


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_gray_images_stay_gray_without_conversion_to_rgb(processor_class, photographs):
    processor = processor_class(do_convert_rgb=False, image_mean=[0.5], image_std=[0.5])
    assert processor(photographs[0].convert("L"), return_tensors="pt").pixel_values.shape == (1, 1, 224, 224)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_processor_after_json_is_equal(processor_class, tmp_path):
    processor = processor_class(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert stored["image_processor_type"].startswith("TwinsImageProcessor")
    assert processor_class.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    for other_class in PROCESSOR_CLASSES:
        assert other_class.from_pretrained(tmp_path).size == processor.size
        assert other_class.from_pretrained(tmp_path).crop_size == processor.crop_size


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_input_that_is_not_an_image_is_named(processor_class):
    with pytest.raises((TypeError, ValueError), match="image"):
        processor_class()("not-an-image", return_tensors="pt")


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("kind", ["16 bits", "transparent"])
def test_image_by_path_or_in_base64_is_converted_like_an_opened_one(processor_class, kind, photographs, tmp_path):
    if kind == "16 bits":
        image = Image.fromarray(np.asarray(photographs[2].convert("L")).astype(np.uint16) * 257)
    else:
        image = photographs[2].convert("RGBA")
        image.putalpha(128)
    file = tmp_path / "image.png"
    image.save(file)
    processor = processor_class()
    expected = processor(image, return_tensors="pt").pixel_values
    encoded = base64.b64encode(file.read_bytes()).decode()
    for source in (str(file), encoded, f"data:image/png;base64,{encoded}", [str(file)]):
        assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected)


def test_image_by_path_is_upright(photographs, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photographs[2].rotate(90, expand=True).save(tmp_path / "image.png", exif=exif)
    processor = TwinsImageProcessor()
    expected = processor(photographs[2], return_tensors="pt").pixel_values
    assert torch.equal(processor(str(tmp_path / "image.png"), return_tensors="pt").pixel_values, expected)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_integers_of_other_types_are_read_as_bytes(processor_class, dtype, photographs):
    pixels = np.array(photographs[2])
    processor = processor_class()
    expected = processor(pixels, return_tensors="pt").pixel_values
    assert torch.equal(processor(pixels.astype(dtype), return_tensors="pt").pixel_values, expected)
    with pytest.raises(ValueError, match=r"Integer pixels must be from 0 to 255, got 0 to 25[67]"):
        processor(np.clip(pixels.astype(dtype), 0, 1) * 257, return_tensors="pt")


@pytest.mark.parametrize("num_channels", [2, 4])
def test_further_channels_are_resized_by_themselves(num_channels):
    options = {"size": {"height": 30, "width": 40}, "do_center_crop": False, "do_normalize": False}
    images = np.random.default_rng(0).integers(256, size=(num_channels, 60, 80), dtype=np.uint8)
    torchvision, pil = (
        processor_class(**options, do_convert_rgb=False)(
            images, input_data_format="channels_first", return_tensors="pt"
        )
        for processor_class in PROCESSOR_CLASSES
    )
    # Rounding to bytes.
    torch.testing.assert_close(pil.pixel_values, torchvision.pixel_values, rtol=0, atol=1.5 / 255)


@pytest.mark.parametrize(("size", "crop"), [((201, 201), 224), ((200, 203), 224), ((231, 201), 224), ((9, 8), 16)])
def test_image_that_is_smaller_than_the_crop_is_padded_as_by_torchvision(size, crop):
    image = np.random.default_rng(0).integers(1, 256, size=(*size, 3), dtype=np.uint8)
    expected = transforms.CenterCrop(crop)(torch.from_numpy(image).permute(2, 0, 1)) / 255
    options = {"do_resize": False, "do_normalize": False, "crop_size": {"height": crop, "width": crop}}
    for processor_class in PROCESSOR_CLASSES:
        actual = processor_class(**options)(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_number_of_images_and_channels_is_checked(processor_class, photographs):
    with pytest.raises(ValueError, match="images must be one or more images, got an empty list"):
        processor_class()([], return_tensors="pt")
    with pytest.raises(
        ValueError, match="image_mean must have one number for each of the 1 channels of an image, got 3"
    ):
        processor_class(do_convert_rgb=False)(photographs[0].convert("L"), return_tensors="pt")


@pytest.mark.parametrize("patch_size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("pads_patches", [False, True])
def test_stride_of_logits_is_found(patch_size, pads_patches):
    divide = (lambda side: -(-side // patch_size)) if pads_patches else (lambda side: side // patch_size)
    for sides in itertools.product(range(6 * patch_size, 12 * patch_size, 3), repeat=2):
        assert find_stride(sides, [divide(side) for side in sides]) == patch_size


@pytest.mark.slow
def test_pil_backend_needs_no_torchvision(photographs, tmp_path):
    TwinsImageProcessorPil().save_pretrained(tmp_path)
    photographs[0].save(tmp_path / "image.png")
    program = """
        import sys
        sys.modules["torchvision"] = None  # now importing it fails
        import torch
        from PIL import Image
        from transformers import AutoImageProcessor
        import hf_twins
        processor = AutoImageProcessor.from_pretrained(sys.argv[1])
        assert type(processor) is hf_twins.TwinsImageProcessorPil, type(processor)
        torch.save(processor(Image.open(sys.argv[2]), return_tensors="pt").pixel_values, sys.argv[3])
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path, tmp_path / "image.png", tmp_path / "pixels.pt"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    expected = TwinsImageProcessorPil()(photographs[0], return_tensors="pt").pixel_values
    assert torch.equal(torch.load(tmp_path / "pixels.pt", weights_only=True), expected)


def noise(*shape: int, high: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(dtype)


def nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a map by looking up the center of each pixel, in exact arithmetic."""
    rows, columns = (
        [math.floor((index + Fraction(1, 2)) * old / new) for index in range(new)]
        for old, new in zip(labels.shape, (height, width))
    )
    return labels[np.ix_(rows, columns)].astype(np.int64)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("fields", [{"do_resize": False}, {}, {"do_normalize": False}], ids=str)
def test_padding_is_at_the_right_and_bottom_and_marked_in_the_mask(processor_class, fields):
    processor = processor_class(**SEGMENTATION | fields, do_pad=True)
    images = [noise(37, 53, 3), noise(61, 33, 3), noise(37, 53, 3)]
    inputs = processor(images, return_tensors="pt")
    alone = [processor(image, return_tensors="pt") for image in images]
    height, width = (max(each.pixel_values.shape[axis] for each in alone) for axis in (2, 3))
    assert inputs.pixel_values.shape == (3, 3, height, width)
    assert inputs.pixel_mask.shape == (3, height, width)
    assert inputs.pixel_mask.dtype == torch.int64
    for pixels, mask, each in zip(inputs.pixel_values, inputs.pixel_mask, alone):
        rows, columns = each.pixel_values.shape[2:]
        # The largest image is not padded.
        assert (each.pixel_mask == 1).all()
        assert torch.equal(pixels[:, :rows, :columns], each.pixel_values[0])
        expected_mask = torch.zeros(height, width, dtype=torch.int64)
        expected_mask[:rows, :columns] = 1
        assert torch.equal(mask, expected_mask)
        assert (pixels * (1 - mask) == 0).all()


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_padded_images_have_the_requested_array_type(processor_class):
    processor = processor_class(do_resize=False, do_center_crop=False, do_pad=True)
    images = [noise(37, 53, 3), noise(61, 33, 3)]
    maps = [noise(37, 53, high=9), noise(61, 33, high=9)]
    expected = processor(images, maps, return_tensors="pt")
    arrays = processor(images, maps, return_tensors="np")
    lists = processor(images, maps)
    assert set(expected) == set(arrays) == set(lists) == {"pixel_values", "pixel_mask", "labels"}
    for name, tensor in expected.items():
        assert isinstance(arrays[name], np.ndarray)
        np.testing.assert_array_equal(arrays[name], tensor)
        assert arrays[name].dtype == tensor.numpy().dtype
        assert isinstance(lists[name], list)
        np.testing.assert_array_equal(np.stack([np.asarray(each) for each in lists[name]]), tensor)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_images_are_padded_to_the_requested_size(processor_class):
    processor = processor_class(
        do_resize=False, do_center_crop=False, do_pad=True, pad_size={"height": 64, "width": 70}
    )
    inputs = processor(noise(37, 53, 3), noise(37, 53, high=9), return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 64, 70)
    assert inputs.pixel_mask.shape == inputs.labels.shape == (1, 64, 70)
    assert inputs.pixel_mask.sum() == 37 * 53
    with pytest.raises(ValueError, match="Padding dimensions are negative"):
        processor(noise(37, 71, 3), return_tensors="pt")


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_images_of_different_sizes_need_padding_to_become_one_tensor(processor_class):
    processor = processor_class(do_resize=False, do_center_crop=False)
    images = [noise(37, 53, 3), noise(61, 33, 3)]
    assert [tuple(image.shape) for image in processor(images).pixel_values] == [(3, 37, 53), (3, 61, 33)]
    with pytest.raises(ValueError, match="Unable to convert output 'pixel_values'"):
        processor(images, return_tensors="pt")
    assert set(processor(images, do_pad=True, return_tensors="pt")) == {"pixel_values", "pixel_mask"}


@pytest.mark.parametrize("classes", list(zip(PROCESSOR_CLASSES, SEGFORMER_CLASSES)), ids=["torchvision", "pil"])
@pytest.mark.parametrize(
    "size",
    [{"height": 48, "width": 64}, {"shortest_edge": 40}, {"shortest_edge": 64, "longest_edge": 100}],
    ids=["fixed", "short side", "short and long side"],
)
def test_segmentation_images_are_identical_to_those_of_segformer(classes, size, photographs):
    processor_class, segformer_class = classes
    processor = processor_class(size=size, resample=2, do_center_crop=False)
    for image in [*photographs, photographs[0].crop((0, 0, 97, 301))]:
        actual, expected = (each(image, return_tensors="pt") for each in (processor, segformer_class(size=size)))
        assert torch.equal(actual.pixel_values, expected.pixel_values)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("size", [(37, 53), (64, 64), (33, 130), (150, 31), (204, 90)], ids=str)
def test_labels_are_those_of_the_nearest_pixels(processor_class, size):
    labels = noise(*size)
    inputs = processor_class(**SEGMENTATION)(noise(*size, 3), labels, return_tensors="pt")
    assert inputs.labels.dtype == torch.int64
    assert inputs.labels.shape == (1, *inputs.pixel_values.shape[2:])
    np.testing.assert_array_equal(inputs.labels[0], nearest(labels, *inputs.labels.shape[1:]))


@pytest.mark.parametrize("segformer_class", SEGFORMER_CLASSES)
def test_labels_equal_those_of_segformer_except_halfway_between_pixels(segformer_class):
    # If a resized pixel's center is halfway between two pixels, even SegFormer's backends differ.
    labels = noise(204, 90)
    arguments = (noise(204, 90, 3), labels)
    actual = TwinsImageProcessor(**SEGMENTATION)(*arguments, return_tensors="pt").labels[0]
    expected = segformer_class(size=SEGMENTATION["size"])(*arguments, return_tensors="pt").labels[0]
    off_the_line = [
        [((2 * index + 1) * old) % (2 * new) != 0 for index in range(new)]
        for old, new in zip(labels.shape, actual.shape)
    ]
    chosen = np.ix_(*map(np.array, off_the_line))
    np.testing.assert_array_equal(actual[chosen], expected[chosen])
    assert np.mean(off_the_line[0]) * np.mean(off_the_line[1]) > 0.8


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("do_reduce_labels", [False, True])
def test_labels_are_padded_with_the_ignored_label(processor_class, do_reduce_labels):
    processor = processor_class(do_resize=False, do_center_crop=False, do_pad=True, do_reduce_labels=do_reduce_labels)
    maps = [noise(37, 53), noise(61, 33)]
    inputs = processor([noise(37, 53, 3), noise(61, 33, 3)], maps, return_tensors="pt")
    for labels, mask, given in zip(inputs.labels, inputs.pixel_mask, maps):
        assert (labels[mask == 0] == 255).all()
        expected = given.astype(np.int64)
        if do_reduce_labels:
            expected = np.select([expected == 0, expected == 255], [255, 255], expected - 1)
        np.testing.assert_array_equal(labels[mask == 1].reshape(given.shape), expected)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "int64", "float32", ">u2"])
def test_labels_are_reduced_without_overflow_in_every_dtype(processor_class, dtype):
    given = [0, 1, 2, 150, 254, 255] + ([] if dtype == "uint8" else [257, 300, 30_000])
    expected = [255, 0, 1, 149, 253, 255] + ([] if dtype == "uint8" else [256, 299, 29_999])
    labels = np.array([given], dtype=dtype).repeat(40, 0)
    processor = processor_class(do_resize=False, do_center_crop=False, do_reduce_labels=True)
    inputs = processor(noise(*labels.shape, 3), labels, return_tensors="pt")
    assert inputs.labels[0].unique(dim=0).tolist() == [expected]
    assert labels[0].tolist() == given
    # Resized labels are whole numbers of any magnitude, too.
    inputs = processor_class(size={"height": 20, "width": len(given)}, do_center_crop=False)(
        noise(*labels.shape, 3), labels, return_tensors="pt"
    )
    assert inputs.labels[0].unique(dim=0).tolist() == [given]


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_segmentation_maps_of_every_kind_are_read_alike(processor_class, photographs, tmp_path):
    image = photographs[2]
    labels = noise(image.height, image.width, high=200)
    palette = Image.fromarray(labels)
    # The palette's colors differ from the indices.
    palette.putpalette([255 - index // 3 for index in range(768)])
    assert palette.mode == "P"
    palette.save(tmp_path / "palette.png")
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "deep.png")
    processor = processor_class(**SEGMENTATION)
    expected = torch.from_numpy(nearest(labels, 32, 48))
    kinds = [labels, Image.fromarray(labels), palette, torch.from_numpy(labels), labels[None], labels[..., None]]
    with Image.open(tmp_path / "palette.png") as stored, Image.open(tmp_path / "deep.png") as deep:
        for kind in [*kinds, stored, deep]:
            for segmentation_maps in (kind, [kind], [[kind]]):
                inputs = processor(image, segmentation_maps=segmentation_maps, return_tensors="pt")
                assert torch.equal(inputs.labels[0], expected)
    batch = np.stack([labels, labels[::-1]])
    assert torch.equal(processor([image, image], batch, return_tensors="pt").labels[0], expected)
    bits = Image.fromarray(labels > 100)
    assert bits.mode == "1"
    assert processor(image, bits, return_tensors="pt").labels.unique().tolist() == [0, 1]


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize(
    ("segmentation_maps", "message"),
    [
        (noise(40, 50, 3), r"one channel, .* got colors of shape \(40, 50, 3\)"),
        (Image.fromarray(noise(40, 50, 3)), r"one channel, .* got colors"),
        (Image.fromarray(noise(40, 50, 2), "LA"), r"one channel, .* got colors"),
        ([noise(40, 50), noise(40, 50)], "one map of shape .* got 2 for 1 images"),
        ([], "one map of shape .* got 0 for 1 images"),
        (noise(50, 40), "as large as their images, but map 0 is 50 x 40 and its image 40 x 50"),
        (np.full((40, 50), 0.5), "must hold whole numbers"),
        (np.full((40, 50), np.nan), "must hold whole numbers"),
        (np.zeros(50), r"must have the shape \(height, width\), got \(50,\)"),
        ("map.png", r"must be PIL images, .* got str: open files with PIL\.Image\.open"),
    ],
    ids=["colors", "RGB", "LA", "two", "none", "turned", "fractions", "NaN", "flat", "path"],
)
def test_errors_of_segmentation_maps_are_described(processor_class, segmentation_maps, message):
    with pytest.raises(ValueError, match=message):
        processor_class(**SEGMENTATION)(noise(40, 50, 3), segmentation_maps, return_tensors="pt")


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_segmentation_never_crops(processor_class):
    processor = processor_class()
    with pytest.raises(ValueError, match="segmentation_maps need do_center_crop=False"):
        processor(noise(40, 50, 3), noise(40, 50))
    outputs = SimpleNamespace(logits=torch.randn(1, 5, 56, 56))
    for arguments in ({}, {"target_sizes": [(40, 50)]}):
        with pytest.raises(ValueError, match="Post-processing needs do_center_crop=False"):
            processor.post_process_semantic_segmentation(outputs, **arguments)
    # The option can also be set for one call.
    assert processor(noise(40, 50, 3), noise(40, 50), do_center_crop=False, return_tensors="pt").labels.shape == (
        (1, 256, 320)
    )


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("target_sizes", [None, [(41, 53), (30, 97)], torch.tensor([[41, 53], [30, 97]])])
def test_post_processing_equals_that_of_segformer(processor_class, target_sizes):
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 12, 17))
    processor = processor_class(**SEGMENTATION)
    actual = processor.post_process_semantic_segmentation(outputs, target_sizes=target_sizes)
    sizes = target_sizes if target_sizes is None else [tuple(map(int, size)) for size in target_sizes]
    segformer = SegformerImageProcessor()
    expected = segformer.post_process_semantic_segmentation(outputs, target_sizes=sizes)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    actual, expected = (
        each.post_process_semantic_segmentation(outputs, sizes, return_segmentation_scores=True)
        for each in (processor, segformer)
    )
    for both in zip(actual, expected, strict=True):
        assert torch.equal(*(each.segmentation for each in both))
        assert torch.equal(*(each.segmentation_scores for each in both))


@pytest.mark.parametrize("target_sizes", [[], [(4, 4)], [(4, 4)] * 3])
def test_post_processing_needs_a_size_for_each_image(target_sizes):
    outputs = SimpleNamespace(logits=torch.randn(2, 5, 12, 17))
    message = f"one .height, width. for each of the 2 images, got {len(target_sizes)}"
    with pytest.raises(ValueError, match=message):
        TwinsImageProcessor(**SEGMENTATION).post_process_semantic_segmentation(outputs, target_sizes)


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
@pytest.mark.parametrize("stride", [1, 4, 8])
@pytest.mark.parametrize("pads_patches", [False, True])
def test_post_processing_crops_padding(processor_class, stride, pads_patches):
    """With logits that are means over patches, the classes of an image must not depend on its padding."""

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        if pads_patches:
            missing = (-pixels.shape[3] % stride, -pixels.shape[2] % stride)
            pixels = nn.functional.pad(pixels, (0, missing[0], 0, missing[1]))
        return nn.functional.avg_pool2d(pixels, stride)

    processor = processor_class(do_resize=False, do_center_crop=False, do_pad=True)
    images = [noise(69, 53, 3), noise(61, 85, 3), noise(45, 47, 3)]
    target_sizes = [(100, 60), (61, 85), (20, 33)]
    inputs = processor(images, return_tensors="pt")
    outputs = SimpleNamespace(logits=logits(inputs.pixel_values))
    classes = processor.post_process_semantic_segmentation(
        outputs, target_sizes=target_sizes, pixel_mask=inputs.pixel_mask
    )
    for image, size, actual in zip(images, target_sizes, classes, strict=True):
        alone = processor(image, return_tensors="pt").pixel_values
        expected = nn.functional.interpolate(logits(alone), size=size, mode="bilinear").argmax(1)[0]
        assert torch.equal(actual, expected)
    # Without target sizes, the maps have the size of the logits without padding.
    classes = processor.post_process_semantic_segmentation(outputs, pixel_mask=inputs.pixel_mask.numpy())
    assert [tuple(each.shape) for each in classes] == [
        tuple(logits(processor(image, return_tensors="pt").pixel_values).shape[2:]) for image in images
    ]


@pytest.mark.parametrize(
    ("logits_size", "sizes"),
    [
        ((17, 29), [(131, 97)]),
        ((64, 50), [(31, 17)]),
        ((40, 33), [(40, 33)]),
        ((13, 7), [(13, 100)]),
        ((1, 1), [(5, 7)]),
        ((9, 12), [(35, 47), (101, 140)]),
        ((9, 12), [(35, 47), (11, 8)]),
    ],
    ids=["enlarged", "reduced", "same", "wider", "one pixel", "enlarged twice", "enlarged and reduced"],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_rows_are_those_of_all_resized_logits(logits_size, sizes, memory_format):
    logits = torch.randn(2, 5, *logits_size).contiguous(memory_format=memory_format)
    expected = logits
    for size in sizes:
        expected = nn.functional.interpolate(expected, size=size, mode="bilinear")
    height = sizes[-1][0]
    for strip in (1, 4, height):
        rows = [resize_rows(logits, sizes, top, min(top + strip, height)) for top in range(0, height, strip)]
        torch.testing.assert_close(torch.cat(rows, 2), expected, rtol=0, atol=2e-5)


def test_post_processing_of_a_large_image_takes_little_memory():
    """All resized logits would be 150 times as many as the pixels."""
    logits = torch.randn(1, 150, 8, 12)
    with LargestTensor() as largest:
        (classes,) = TwinsImageProcessor(**SEGMENTATION).post_process_semantic_segmentation(
            SimpleNamespace(logits=logits), [(500, 700)]
        )
    assert largest.numel <= STRIP_VALUES < 150 * 500 * 700
    expected = nn.functional.interpolate(logits, size=(500, 700), mode="bilinear").argmax(1)[0]
    assert (classes == expected).float().mean() > 0.9999


def test_segmentation_of_an_image_does_not_depend_on_others_in_the_batch():
    model = randomize(TwinsForSemanticSegmentation(tiny_config(num_labels=5)))
    processor = TwinsImageProcessor(do_resize=False, do_center_crop=False, do_pad=True)
    images = [noise(224, 96, 3), noise(128, 288, 3)]
    sizes = [(224, 96), (128, 288)]
    with torch.no_grad():
        inputs = processor(images, return_tensors="pt")
        together = processor.post_process_semantic_segmentation(model(**inputs), sizes, pixel_mask=inputs.pixel_mask)
        for image, size, actual in zip(images, sizes, together):
            outputs = model(**processor(image, return_tensors="pt"))
            (expected,) = processor.post_process_semantic_segmentation(outputs, [size])
            # The head sees zeros next to the image, which slightly affect its last rows and columns.
            rows, columns = (side - 48 for side in size)
            assert (actual == expected)[:rows, :columns].float().mean() > 0.99


def test_post_processing_of_a_padded_batch_needs_its_mask():
    processor = TwinsImageProcessor(**SEGMENTATION, do_pad=True)
    logits = torch.randn(2, 5, 8, 16)
    with pytest.raises(ValueError, match=r"the logits cover padding too: pass pixel_mask=inputs\['pixel_mask'\]"):
        processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), [(37, 53), (61, 33)])
    for mask in (torch.ones(1, 32, 64), torch.ones(2, 64)):
        with pytest.raises(ValueError, match=r"pixel_mask must have the shape \(2, height, width\)"):
            processor.post_process_semantic_segmentation(
                SimpleNamespace(logits=logits), [(37, 53), (61, 33)], pixel_mask=mask
            )
    # A single image is not padded, unless to a requested size.
    alone = SimpleNamespace(logits=logits[:1])
    assert processor.post_process_semantic_segmentation(alone, [(37, 53)])[0].shape == (37, 53)
    with pytest.raises(ValueError, match="the logits cover padding too"):
        TwinsImageProcessor(
            **SEGMENTATION, do_pad=True, pad_size={"height": 64, "width": 64}
        ).post_process_semantic_segmentation(alone, [(37, 53)])


@pytest.mark.parametrize("processor_class", PROCESSOR_CLASSES)
def test_segmentation_processor_after_json_is_equal(processor_class, tmp_path):
    pad_size = {"height": 160, "width": 160}
    processor = processor_class(**SEGMENTATION, do_pad=True, pad_size=pad_size, do_reduce_labels=True)
    processor.save_pretrained(tmp_path)
    for other_class in PROCESSOR_CLASSES:
        reloaded = other_class.from_pretrained(tmp_path)
        assert reloaded.pad_size == pad_size
        assert reloaded.do_pad
        assert reloaded.do_reduce_labels
        assert reloaded.to_dict() == processor.to_dict()
