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
"""Models of a Space are loaded once, few are kept in memory, and requests are batched without mixing up results."""

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import PIL.Image
import pytest
import torch
from testing_utils import FAMILIES, randomize, tiny_config
from twins_space import drawing, models
from twins_space.drawing import ExplanationError
from twins_space.models import LoadedModel, ModelError, ModelShelf, name_locations
from twins_space.uploads import UploadError

from hf_twins import TwinsForImageClassification, TwinsImageProcessor


SIDE = 24


def make(family: str = "svt", **fields) -> tuple[TwinsForImageClassification, TwinsImageProcessor]:
    processor = TwinsImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return randomize(TwinsForImageClassification(tiny_config(family, **fields))), processor


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel("tiny", *make())


def test_model_is_loaded_once_and_others_are_evicted():
    loads = []

    def load(location):
        loads.append(location)
        return make()

    shelf = ModelShelf({name: f"place/{name}" for name in "abc"}, load, capacity=2)
    assert loads == []
    with ThreadPoolExecutor(8) as pool:
        assert len({id(model) for model in pool.map(shelf.get, "a" * 32)}) == 1
    assert loads == ["place/a"]
    first = weakref.ref(shelf.get("a").model)
    shelf.get("b")
    shelf.get("a")
    shelf.get("c")
    assert list(shelf.loaded) == ["a", "c"]
    shelf.get("b")
    gc.collect()
    assert first() is None
    assert "In memory: c, b" in shelf.describe("b")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_is_used_if_available():
    plain, processor = make()
    plain.eval()
    model = LoadedModel("tiny", copy.deepcopy(plain), processor)
    assert model.model.device.type == "cuda"
    pixel_values = torch.randn(3, SIDE, SIDE)
    torch.testing.assert_close(model(pixel_values).logits, plain(pixel_values[None]).logits[0], rtol=1e-3, atol=1e-3)
    for method in drawing.METHODS:
        heat, _ = drawing.explain(model, pixel_values, method, "stage2", "last")
        assert heat.device.type == "cpu"


def test_error_of_a_model_that_cannot_be_loaded_does_not_reveal_its_path():
    def load(location):
        raise OSError(f"no such file: {location}")

    shelf = ModelShelf({"mine": "/secret/place"}, load)
    with pytest.raises(ModelError, match="The model mine cannot be loaded") as caught:
        shelf.get("mine")
    assert "secret" not in str(caught.value)
    with pytest.raises(ModelError, match="no model of this name here: choose one of mine"):
        shelf.get("other")


def test_model_other_than_twins_is_refused():
    shelf = ModelShelf({"linear": "somewhere"}, lambda location: (OtherModel(), None))
    with pytest.raises(ModelError, match="linear is not a Twins model"):
        shelf.get("linear")


@pytest.mark.parametrize("num_channels", [1, 4])
def test_model_of_other_channels_is_refused(num_channels):
    with pytest.raises(ModelError, match=f"tiny has num_channels={num_channels}, but this page has RGB images"):
        LoadedModel("tiny", *make(num_channels=num_channels))


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"shortest_edge": 1600}, "do_center_crop": False},
        {"size": {"height": 2000, "width": 2000}, "do_center_crop": False},
        {"size": {"shortest_edge": 2000}, "crop_size": {"height": 1800, "width": 1800}},
    ],
    ids=["shorter side", "height and width", "crop"],
)
def test_model_of_inputs_too_large_for_the_page_is_refused(fields):
    with pytest.raises(ModelError, match=r"tiny takes inputs of more than 2,097,152 pixels, .* choose another model"):
        LoadedModel("tiny", make()[0], TwinsImageProcessor(**fields))


class OtherModel(torch.nn.Module):
    config = object()


def test_names_reveal_no_paths_and_are_unique(tmp_path):
    folders = [tmp_path / name / "model" for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir(parents=True)
    locations = [*map(str, folders), "somebody/twins", str(folders[0])]
    assert name_locations(locations) == {
        "model": str(folders[0]),
        "model (2)": str(folders[1]),
        "model (3)": str(folders[2]),
        "somebody/twins": "somebody/twins",
    }
    with pytest.raises(ValueError, match="--model must be a folder or a Hub id, got not/a/folder"):
        name_locations(["not/a/folder"])


def test_requests_of_many_threads_get_their_own_answers(model):
    inputs = [torch.rand(3, side, side) for side in (SIDE, SIDE + 8) for _ in range(24)]
    with torch.inference_mode():
        expected = [model.model(each.unsqueeze(0)).logits[0] for each in inputs]
    barrier = threading.Barrier(len(inputs))

    def ask(pixel_values):
        barrier.wait()
        return model(pixel_values)

    with ThreadPoolExecutor(len(inputs)) as pool:
        outputs = list(pool.map(ask, inputs))
    for output, logits, pixel_values in zip(outputs, expected, inputs):
        torch.testing.assert_close(output.logits, logits, rtol=1e-4, atol=1e-5)
        assert output.pixel_values is pixel_values
    assert max(output.batch_size for output in outputs) > 1


def test_failure_of_a_batch_is_raised_for_all_of_its_requests(model):
    too_small = torch.rand(3, 4, 4)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(model, too_small) for _ in range(4)]
    assert all(isinstance(future.exception(), ValueError) for future in futures)
    assert model(torch.rand(3, SIDE, SIDE)).logits.shape == (5,)


@pytest.mark.parametrize(("resolution", "side"), [(100, 24), (50, 12), (200, 48), (12.5, 8)])
def test_resolution_scales_the_input_of_the_model(model, resolution, side):
    # At 12.5 percent, the input would be smaller than the model's minimum.
    assert model.prepare(PIL.Image.new("RGB", (60, 40)), resolution).shape == (3, side, side)


@pytest.mark.parametrize(
    "fields",
    [{"size": {"shortest_edge": 1000}, "crop_size": {"height": 1000, "width": 1000}}, {"do_resize": False}],
    ids=["crop", "not resized"],
)
def test_input_too_large_for_the_page_is_refused(fields):
    processor = TwinsImageProcessor(**{"do_center_crop": "crop_size" in fields} | fields)
    with pytest.raises(UploadError, match="too large or too long for this resolution"):
        LoadedModel("tiny", make()[0], processor).prepare(PIL.Image.new("RGB", (2000, 1500)), 200)


def test_image_too_long_for_a_model_without_crop_is_refused():
    model, processor = make()
    processor.do_center_crop = False
    processor.size = {"shortest_edge": 512}
    with pytest.raises(UploadError, match="too long for this resolution"):
        LoadedModel("tiny", model, processor).prepare(PIL.Image.new("RGB", (2000, 100)), 200)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", drawing.METHODS)
def test_explanations_cover_the_input_of_the_model(family, method):
    model = LoadedModel("tiny", *make(family))
    pixel_values = model.prepare(PIL.Image.effect_noise((50, 40), 80).convert("RGB"))
    seen = drawing.draw_input(pixel_values, model.processor)
    assert seen.size == (336, 336)
    for stage in ("stage1", "stage2", "stage3"):
        for _, layer in drawing.layer_choices(model, stage):
            heat, stride = drawing.explain(model, pixel_values, method, stage, layer)
            # GSA may skip incomplete squares, and windows may reach beyond the image.
            assert abs(heat.shape[0] * stride - SIDE) < 12
            large = drawing.spread_map(heat, stride, (SIDE, SIDE), seen)
            assert large.shape == (336, 336)
            assert 0 <= large.min() <= large.max() <= 1
    assert drawing.overlay(seen, large, 0.0) == seen
    assert drawing.overlay(seen, large, 0.7) != seen


def test_input_is_drawn_unchanged(model):
    image = PIL.Image.effect_noise((SIDE, SIDE), 80).convert("RGB")
    drawn = drawing.draw_input(model.prepare(image), model.processor)
    assert list(drawn.resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST).tobytes()) == list(image.tobytes())


@pytest.mark.parametrize(
    ("method", "stage", "layer", "message"),
    [
        ("Grad-CAM", "stage4", "last", "tiny has stage1, stage2, stage3: choose one of these"),
        ("Attention", "stage1", "3", "has the layers 1 to 2: choose one of these, or 'last'"),
        ("Attention", "stage1", "first", "has the layers 1 to 2"),
        # Python converts no text of so many digits to a number.
        ("Attention", "stage1", "9" * 5000, "has the layers 1 to 2"),
        ("Grad-CAM", None, "last", "tiny has stage1, stage2, stage3: choose one of these"),
        ("Magic", "stage1", "last", "choose one of Grad-CAM, Attention, Attention rollout"),
    ],
)
def test_explanation_that_does_not_exist_is_refused(model, method, stage, layer, message):
    with pytest.raises(ExplanationError, match=message):
        drawing.explain(model, torch.rand(3, SIDE, SIDE), method, stage, layer)


def test_hub_is_not_contacted_in_offline_mode(monkeypatch):
    monkeypatch.setattr(models, "get_session", None)
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", True)
    assert not models.hub_answers()


def test_unreachable_hub_counts_as_offline(monkeypatch):
    monkeypatch.setattr(models.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(models.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert not models.hub_answers()
