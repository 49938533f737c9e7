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
"""An optimized model gives what the plain one gives, and leaves that as it was."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from sklearn.datasets import load_digits
from testing_utils import (
    FAMILIES,
    TWO_STAGES,
    published_variant,
    randomize,
    rectangle_mask,
    tiny_config,
    uses_adapters_of_transformers,
)
from transformers import AutoImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

from hf_twins import (
    TWINS_VARIANTS,
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsModel,
    inference_optimization,
    optimize_for_inference,
)
from hf_twins.modeling_twins import TwinsLayer


MODEL_CLASSES = [TwinsModel, TwinsForImageClassification, TwinsForSemanticSegmentation, TwinsBackbone]


def first(outputs) -> torch.Tensor:
    return inference_optimization.first_tensor(outputs)


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("eager", torch.float32, 1e-5),
        ("eager", torch.bfloat16, 3e-2),
        ("packed", torch.float32, 1e-5),
        ("packed", torch.bfloat16, 3e-2),
        ("packed", torch.int8, 6e-2),
    ],
)
def test_optimized_model_gives_the_same(backend, dtype, tolerance, model_class, family):
    """At even and odd sizes, for images that are not contiguous, and with masks."""
    model = randomize(model_class(tiny_config(family)))
    optimized = optimize_for_inference(model, dtype=dtype, backend=backend)
    with torch.inference_mode():
        for size in ((24, 24), (33, 47)):
            pixel_values = torch.randn(2, *size, 3).permute(0, 3, 1, 2)
            mask = rectangle_mask([size, (size[0] - 9, size[1] - 5)], *size)
            for inputs in ({}, {"pixel_mask": mask}):
                expected, actual = model(pixel_values, **inputs), optimized(pixel_values=pixel_values, **inputs)
                assert type(actual) is type(expected)
                assert actual.keys() == expected.keys()
                assert first(actual).dtype == torch.float32
                assert distance(first(actual), first(expected)) < tolerance


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def count_calls(monkeypatch) -> list[int]:
    """A list that grows with every replay."""
    replay, calls = inference_optimization.Recording.replay, []
    monkeypatch.setattr(
        inference_optimization.Recording,
        "replay",
        lambda self, images: (calls.append(len(images)), replay(self, images)),
    )
    return calls


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 4e-2), (torch.float16, 1e-2)], ids=str
)
def test_recorded_model_gives_the_same(model_class, family, dtype, tolerance, monkeypatch):
    replays = count_calls(monkeypatch)
    model = randomize(model_class(tiny_config(family))).cuda()
    optimized = optimize_for_inference(model, dtype=dtype, verify=dtype == torch.float32)
    replays.clear()
    actual, expected = [], []
    for index, size in enumerate([(24, 24), (33, 47), (24, 24), (24, 24)]):
        pixel_values = torch.randn(2, *size, 3).permute(0, 3, 1, 2).cuda()
        with torch.inference_mode(mode=index % 2 == 0), torch.no_grad():
            actual.append(optimized(pixel_values))
            expected.append(model(pixel_values))
    assert replays == [2] * 4
    # Not even the earlier outputs are those of a later call.
    for output, expected_output in zip(actual, expected, strict=True):
        assert type(output) is type(expected_output)
        assert output.keys() == expected_output.keys()
        assert first(output).dtype == torch.float32
        assert distance(first(output), first(expected_output)) < tolerance


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_recording_does_not_hold_is_computed(family, monkeypatch):
    replays = count_calls(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config(family))).cuda()
    optimized = optimize_for_inference(model)
    pixel_values = torch.randn(2, 3, 33, 47).cuda()
    mask = rectangle_mask([(33, 47), (24, 40)], 33, 47).cuda()
    labels = torch.tensor([1, 2]).cuda()
    with torch.no_grad():
        optimized(pixel_values)
        replays.clear()
        for inputs in ({"pixel_mask": mask}, {"labels": labels}, {"pixel_mask": mask, "labels": labels}):
            actual, expected = optimized(pixel_values, **inputs), model(pixel_values, **inputs)
            assert distance(actual.logits, expected.logits) < 1e-3
            if "labels" in inputs:
                torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-3, atol=1e-3)
        assert distance(optimized(pixel_values, mask).logits, model(pixel_values, mask).logits) < 1e-3
        with torch.autocast("cuda", torch.bfloat16):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 4e-2
        with pytest.raises(ValueError, match="must be at least 8 pixels high and wide"):
            optimized(pixel_values[:, :, :7])
    pixel_values.requires_grad_()
    (actual,) = torch.autograd.grad(optimized(pixel_values).logits[:, 0].sum(), pixel_values)
    (expected,) = torch.autograd.grad(model(pixel_values).logits[:, 0].sum(), pixel_values)
    assert distance(actual, expected) < 1e-3
    assert replays == []
    with torch.no_grad():
        states = optimized(pixel_values, output_hidden_states=True).hidden_states
        expected_states = model(pixel_values, output_hidden_states=True).hidden_states
        assert optimized(pixel_values, return_dict=False)[0].shape == (2, 5)
    assert len(replays) == 2
    for state, expected_state in zip(states, expected_states, strict=True):
        assert distance(state, expected_state) < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_recordings_are_few_and_follow_the_weights(monkeypatch):
    replays = count_calls(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config())).cuda()
    optimized = optimize_for_inference(model)
    monkeypatch.setattr(inference_optimization, "MAX_RECORDED_VALUES", 3 * 3 * 40 * 40)
    with torch.no_grad():
        for batch_size in (4, 1, 2, 3):
            for size in (16, 24, 32, 40):
                pixel_values = torch.randn(batch_size, 3, size, size).cuda()
                assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-3
    assert len(replays) == inference_optimization.MAX_RECORDINGS
    optimized = optimize_for_inference(model)
    pixel_values = torch.randn(1, 3, 24, 24).cuda()
    with torch.no_grad():
        optimized(pixel_values)
        optimized.cpu()
        assert distance(optimized(pixel_values.cpu()).logits, model(pixel_values).logits.cpu()) < 1e-3
        kept = [torch.zeros_like(parameter, device="cuda") for parameter in optimized.parameters()]
        optimized.cuda()
        assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-3
    assert kept


@pytest.mark.gpu
@needs_cuda
def test_recordings_serve_threads_and_streams():
    model = randomize(TwinsForImageClassification(tiny_config())).cuda()
    optimized = optimize_for_inference(model)
    images = [torch.randn(2, 3, size, size).cuda() for size in (16, 24, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(image).logits for image in images]
    torch.cuda.synchronize()

    def compute(image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            logits = optimized(image).logits
            torch.cuda.current_stream().synchronize()
        return logits

    with ThreadPoolExecutor(4) as executor:
        actual = list(executor.map(compute, 5 * images))
    for logits, expected_logits in zip(actual, 5 * expected, strict=True):
        assert distance(logits, expected_logits) < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_recorded_backbone_serves_the_model_around_it(monkeypatch):
    replays = count_calls(monkeypatch)
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2], num_labels=4
    )
    model = UperNetForSemanticSegmentation(config).eval().cuda()
    optimized = optimize_for_inference(model)
    pixel_values = torch.randn(1, 3, 40, 44).cuda()
    with torch.inference_mode():
        for _ in range(2):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-3
    assert len(replays) == 2
    seen: list[torch.Tensor] = []
    for layer in model.modules():
        if isinstance(layer, TwinsLayer):
            layer.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        optimize_for_inference(model)(pixel_values)
    assert len(seen) == 7
    assert len(replays) == 2


@pytest.mark.gpu
@needs_cuda
def test_recorded_model_is_not_saved_and_copies_itself(tmp_path):
    optimized = optimize_for_inference(randomize(TwinsForImageClassification(tiny_config())).cuda())
    with pytest.raises(RuntimeError, match="cannot be saved: save the one that it was made of"):
        optimized.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 24, 24).cuda()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(optimized)(pixel_values).logits, optimized(pixel_values).logits)
    for backend in ("packed", "auto"):
        with pytest.raises(ValueError, match="choose"):
            optimize_for_inference(TwinsForImageClassification(tiny_config()).cuda(), torch.int8, backend)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.usefixtures("fresh_compiler")
# PyTorch's compiler recommends less precise products, and up to 2.11 uses what PyTorch itself deprecates.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_model_is_recorded(family, monkeypatch):
    replays = count_calls(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config(family, **TWO_STAGES))).cuda()
    optimized = optimize_for_inference(model, backend="compile")
    with torch.inference_mode():
        for _ in range(2):
            pixel_values = torch.randn(2, 3, 40, 44).cuda()
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-3
        assert len(replays) == 2
        mask = rectangle_mask([(40, 44), (24, 40)], 40, 44).cuda()
        assert distance(optimized(pixel_values, mask).logits, model(pixel_values, mask).logits) < 1e-3
    assert len(replays) == 2


def test_plain_model_stays_as_it_was():
    model = randomize(TwinsForImageClassification(tiny_config())).train()
    before = copy.deepcopy(model.state_dict())
    optimize_for_inference(model, dtype=torch.bfloat16, backend="packed", verify=True)
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_outputs_have_the_type_of_the_images():
    model = randomize(TwinsForImageClassification(tiny_config()))
    half = optimize_for_inference(model, dtype=torch.bfloat16, backend="eager")
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert half(torch.randn(1, 3, 24, 24, dtype=dtype)).logits.dtype == dtype
    outputs = half(torch.randn(1, 3, 24, 24), output_hidden_states=True)
    assert {state.dtype for state in outputs.hidden_states} == {torch.float32}


def test_model_around_a_backbone_is_optimized():
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2], num_labels=4
    )
    model = UperNetForSemanticSegmentation(config).eval()
    optimized = optimize_for_inference(model, backend="packed")
    pixel_values = torch.randn(1, 3, 40, 44)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(pixel_values).logits, model(pixel_values).logits, rtol=1e-4, atol=1e-5)
    assert any(isinstance(module, inference_optimization.PackedLinear) for module in optimized.backbone.modules())


@uses_adapters_of_transformers
@pytest.mark.parametrize("target", ["q_proj", "fc1", "o_proj"])
def test_adapters_have_their_effect(target):
    model = randomize(TwinsForImageClassification(tiny_config()))
    model.add_adapter(LoraConfig(target_modules=[target], init_lora_weights=False))
    model.eval()
    pixel_values = torch.randn(2, 3, 40, 44)
    with torch.inference_mode():
        with_adapter = model(pixel_values).logits
        optimized = optimize_for_inference(model)(pixel_values).logits
        model.disable_adapters()
        assert distance(model(pixel_values).logits, with_adapter) > 0.01
    assert distance(optimized, with_adapter) < 1e-4
    with pytest.raises(ValueError, match="this model has adapters: merge them"):
        optimize_for_inference(model, backend="packed")


def test_packed_model_is_not_saved(tmp_path):
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()), backend="packed")
    with pytest.raises(RuntimeError, match="cannot be saved: save the one that it was made of"):
        optimized.save_pretrained(tmp_path)
    assert "activation=gelu" in repr(optimized)


def test_kernels_that_are_not_there_are_done_without(monkeypatch):
    model = TwinsForImageClassification(tiny_config())
    monkeypatch.setattr(inference_optimization, "PackedLinear", None)
    plain = optimize_for_inference(model)
    assert not any("Packed" in type(module).__name__ for module in plain.modules())
    with pytest.raises(ValueError, match=r"backend 'packed' needs oneDNN, on a CPU, with torch.float32"):
        optimize_for_inference(model, backend="packed")


def test_kernels_that_compute_something_else_are_found(monkeypatch):
    forward = inference_optimization.PackedLinear.forward
    monkeypatch.setattr(inference_optimization.PackedLinear, "forward", lambda self, states: 2 * forward(self, states))
    assert not inference_optimization.can_pack(torch.device("cpu"), torch.float32)


def test_gelu_that_is_another_is_found(monkeypatch):
    plain = inference_optimization.PackedLinear.__init__
    monkeypatch.setattr(
        inference_optimization.PackedLinear, "__init__", lambda self, linear, activation="none": plain(self, linear)
    )
    assert not inference_optimization.can_pack(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_verification_finds_other_outputs(monkeypatch, factor):
    pack = inference_optimization.pack

    def damage(model, dtype):
        pack(model, dtype)
        model.twins.layernorm.weight.mul_(factor)

    monkeypatch.setattr(inference_optimization, "pack", damage)
    with pytest.raises(ValueError, match="The optimized model's outputs differ from the plain model's by"):
        optimize_for_inference(randomize(TwinsForImageClassification(tiny_config())), backend="packed", verify=True)


def test_wrong_arguments_are_named():
    model = TwinsForImageClassification(tiny_config())
    with pytest.raises(ValueError, match=r"dtype must be torch.float32, .*, torch.int8, got torch.float64"):
        optimize_for_inference(model, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"int8 needs backend 'packed', .* here it is 'eager', on cpu"):
        optimize_for_inference(model, dtype=torch.int8, backend="eager")
    with pytest.raises(ValueError, match=r"one of auto, eager, packed, graph, compile, got 'fastest'"):
        optimize_for_inference(model, backend="fastest")
    with pytest.raises(ValueError, match=r"backend 'graph' needs a CUDA device; this is cpu: choose"):
        optimize_for_inference(model, backend="graph")


@pytest.mark.parametrize("name", ["twins-svt-digits", "twins-pcpvt-digits"])
def test_trained_model_in_int8_gives_the_same_labels(name):
    """Logits within 3 %, and the same label for 99 of 100 held-out digits."""
    folder = Path(__file__).parents[2] / "spaces" / "image_classification" / "models" / name
    model = TwinsForImageClassification.from_pretrained(folder)
    digits = load_digits()
    pictures = [Image.fromarray((16 * digit).clip(0, 255).astype("uint8")).convert("RGB") for digit in digits.images]
    pixel_values = AutoImageProcessor.from_pretrained(folder)(pictures[-360:], return_tensors="pt").pixel_values
    optimized = optimize_for_inference(model, dtype=torch.int8, verify=True)
    with torch.inference_mode():
        expected, actual = model(pixel_values).logits, optimized(pixel_values).logits
        one_by_one = torch.cat([optimized(image.unsqueeze(0)).logits for image in pixel_values[:20]])
    assert distance(actual, expected) < 0.03
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.99
    assert distance(one_by_one, expected[:20]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_optimized_variant_gives_the_same(name):
    model = published_variant(name)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.int8, 6e-2)):
        optimized = optimize_for_inference(model, dtype=dtype)
        with torch.inference_mode():
            for size in ((224, 224), (97, 131)):
                pixel_values = torch.randn(1, 3, *size)
                assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < tolerance


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_model_gives_the_same():
    model = randomize(TwinsForImageClassification(tiny_config(**TWO_STAGES)))
    optimized = optimize_for_inference(model, backend="compile", verify=True)
    pixel_values = torch.randn(2, 3, 40, 44)
    with torch.inference_mode():
        torch.testing.assert_close(optimized(pixel_values).logits, model(pixel_values).logits, rtol=1e-4, atol=1e-5)
