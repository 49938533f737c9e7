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

import collections
import copy
import dataclasses
import gc
import os
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
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
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import (
    AutoImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from hf_twins import (
    TWINS_VARIANTS,
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsModel,
    attention_maps,
    grad_cam,
    inference_optimization,
    optimize_for_inference,
)
from hf_twins.detection import TwinsDetectorConfig, TwinsForObjectDetection
from hf_twins.inference_optimization import (
    cuda_graphs,
    forwards,
    machine,
    operators,
    packing,
    recording,
    runtimes,
)
from hf_twins.modeling_twins import TwinsGlobalAttention, TwinsLayer, TwinsMLP, TwinsPatchConv2d


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
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])]
# On GPUs, convolutions use TF32.
RECORDING_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}


def count_replays(monkeypatch) -> list[int]:
    """A list that grows by the number of images with every replay."""
    replay_graph, record_operators, replays = cuda_graphs.CudaGraph.replay, operators.record, []

    def replay_and_count(self, pixel_values: torch.Tensor) -> None:
        replays.append(len(pixel_values))
        replay_graph(self, pixel_values)

    def record_and_count(*args):
        replay = record_operators(*args)
        return lambda pixel_values: (replays.append(len(pixel_values)), replay(pixel_values))[1]

    monkeypatch.setattr(cuda_graphs.CudaGraph, "replay", replay_and_count)
    monkeypatch.setattr(operators, "record", record_and_count)
    return replays


def recorded(model: torch.nn.Module, pixel_values: torch.Tensor, **flags) -> torch.nn.Module:
    """The model, which from now on replays calls of this size."""
    with torch.no_grad():
        for _ in range(2):
            model(pixel_values, **flags)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    [
        ("cpu", torch.float32, 1e-5),
        ("cpu", torch.bfloat16, 3e-2),
        ("cpu", torch.int8, 6e-2),
        *(
            pytest.param("cuda", *each, marks=[pytest.mark.gpu, needs_cuda])
            for each in [(torch.float32, 1e-3), (torch.bfloat16, 4e-2), (torch.float16, 1e-2)]
        ),
    ],
    ids=str,
)
def test_recorded_model_gives_the_same(device, dtype, tolerance, model_class, family, monkeypatch):
    replays = count_replays(monkeypatch)
    model = randomize(model_class(tiny_config(family))).to(device)
    optimized = optimize_for_inference(model, dtype=dtype, verify=dtype == torch.float32)
    sizes = [(24, 24), (33, 47)]
    for size in sizes:
        recorded(optimized, torch.randn(2, *size, 3, device=device).permute(0, 3, 1, 2))
    replays.clear()
    actual, expected = [], []
    for index, size in enumerate(2 * sizes):
        pixel_values = torch.randn(2, *size, 3, device=device).permute(0, 3, 1, 2)
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_recording_does_not_hold_is_computed(family, device, monkeypatch):
    replays = count_replays(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config(family))).to(device)
    pixel_values = torch.randn(2, 3, 33, 47, device=device)
    optimized = recorded(optimize_for_inference(model), pixel_values)
    mask = rectangle_mask([(33, 47), (24, 40)], 33, 47).to(device)
    labels = torch.tensor([1, 2], device=device)
    replays.clear()
    with torch.no_grad():
        for inputs in ({"pixel_mask": mask}, {"labels": labels}, {"pixel_mask": mask, "labels": labels}):
            for _ in range(3):
                actual, expected = optimized(pixel_values, **inputs), model(pixel_values, **inputs)
                assert distance(actual.logits, expected.logits) < 1e-3
            if "labels" in inputs:
                torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-3, atol=1e-3)
        assert distance(optimized(pixel_values, mask).logits, model(pixel_values, mask).logits) < 1e-3
        with torch.autocast(device, torch.bfloat16):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 4e-2
        for _ in range(3):
            with pytest.raises(ValueError, match="must be at least 8 pixels high and wide"):
                optimized(pixel_values[:, :, :7])
    assert replays == []
    for flags in ({"output_hidden_states": True}, {"return_dict": False}):
        recorded(optimized, pixel_values, **flags)
    replays.clear()
    with torch.no_grad():
        states = optimized(pixel_values, output_hidden_states=True).hidden_states
        expected_states = model(pixel_values, output_hidden_states=True).hidden_states
        assert optimized(pixel_values, return_dict=False)[0].shape == (2, 5)
    assert len(replays) == 2
    for state, expected_state in zip(states, expected_states, strict=True):
        assert distance(state, expected_state) < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_gradients_of_the_image_are_computed_without_a_recording(monkeypatch):
    replays = count_replays(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config())).cuda()
    pixel_values = torch.randn(2, 3, 33, 47).cuda()
    optimized = recorded(optimize_for_inference(model), pixel_values)
    replays.clear()
    pixel_values.requires_grad_()
    (actual,) = torch.autograd.grad(optimized(pixel_values).logits[:, 0].sum(), pixel_values)
    (expected,) = torch.autograd.grad(model(pixel_values).logits[:, 0].sum(), pixel_values)
    assert distance(actual, expected) < 1e-3
    assert replays == []


@pytest.mark.parametrize("device", DEVICES)
def test_recordings_are_few(device, monkeypatch):
    replays = count_replays(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config())).to(device)
    optimized = optimize_for_inference(model)
    optimized.forward.max_values = 3 * 3 * 40 * 40
    images = [torch.randn(batch, 3, size, size, device=device) for batch in (4, 1, 2, 3) for size in (16, 24, 32, 40)]
    for pixel_values in images:
        recorded(optimized, pixel_values)
    replays.clear()
    with torch.no_grad():
        for pixel_values in images:
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < RECORDING_TOLERANCE[device]
    assert len(replays) == recording.MAX_RECORDINGS


@pytest.mark.gpu
@needs_cuda
def test_recordings_follow_moved_weights():
    model = randomize(TwinsForImageClassification(tiny_config())).cuda()
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


def add_hook(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.register_forward_hook(lambda module, args, output: 2 * output)


def add_hook_before(model: TwinsForImageClassification) -> None:
    model.classifier.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def replace_layer(model: TwinsForImageClassification) -> None:
    model.twins.layernorm = torch.nn.LayerNorm(model.twins.layernorm.normalized_shape, device=model.device)


def replace_weight(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.weight = torch.nn.Parameter(2 * model.twins.layernorm.weight, requires_grad=False)


def replace_forward(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.forward = lambda states: 2 * states


def change_weight(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.weight.mul_(2)


def change_config(model: TwinsForImageClassification) -> None:
    model.config.output_hidden_states = True


def change_layout(model: TwinsForImageClassification) -> None:
    model.to(memory_format=torch.channels_last)


def change_setting(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.eps = 10.0


def change_class(model: TwinsForImageClassification) -> None:
    model.twins.layernorm.__class__ = ClippedNorm


def replace_forward_again(model: TwinsForImageClassification) -> None:
    replace_forward(model)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 3, 24, 24, device=model.device))
    model.twins.layernorm.forward = lambda states: 3 * states


def replace_config(model: TwinsForImageClassification) -> None:
    model.config = copy.deepcopy(model.config)
    model.config.output_hidden_states = True


def replace_memory(model: TwinsForImageClassification) -> None:
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data


def hook_every_module(model: TwinsForImageClassification) -> None:
    torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, output: 2 * output if isinstance(module, torch.nn.LayerNorm) else None
    )


@pytest.fixture
def no_global_hooks(monkeypatch):
    monkeypatch.setattr(torch.nn.modules.module, "_global_forward_hooks", collections.OrderedDict())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "change",
    [
        add_hook,
        add_hook_before,
        change_class,
        change_config,
        change_layout,
        change_setting,
        change_weight,
        hook_every_module,
        replace_config,
        replace_forward,
        replace_forward_again,
        replace_layer,
        replace_weight,
    ],
)
@pytest.mark.usefixtures("no_global_hooks")
def test_changes_of_a_recorded_model_take_effect(change, device):
    model = randomize(TwinsForImageClassification(tiny_config())).to(device)
    pixel_values = torch.randn(2, 3, 24, 24, device=device)
    optimized = recorded(optimize_for_inference(model), pixel_values)
    with torch.no_grad():
        change(model)
        change(optimized)
        expected = model(pixel_values)
        for _ in range(3):
            actual = optimized(pixel_values)
            assert actual.keys() == expected.keys()
            assert distance(actual.logits, expected.logits) < RECORDING_TOLERANCE[device]


def test_a_size_is_recorded_when_it_comes_again(monkeypatch):
    made, record = [], operators.record
    monkeypatch.setattr(operators, "record", lambda *args: (made.append(args[2].shape[-1]), record(*args))[1])
    monkeypatch.setattr(operators, "MAX_SEEN", 3)
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()))
    with torch.no_grad():
        for size in (16, 20, 24, 16, 16, 28, 20, 24):
            optimized(torch.randn(1, 3, size, size))
    assert made == [16]


def test_model_that_changes_all_the_time_is_not_recorded(monkeypatch):
    made, record = [], operators.record
    monkeypatch.setattr(operators, "record", lambda *args: (made.append(args[2].shape[-1]), record(*args))[1])
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()))
    pixel_values, seen = torch.randn(1, 3, 16, 16), []
    with torch.no_grad():
        for _ in range(4):
            hook = optimized.twins.layernorm.register_forward_hook(lambda module, args, output: seen.append(output))
            optimized(pixel_values)
            hook.remove()
            optimized(pixel_values)
    assert len(seen) == 4
    assert made == []


def test_recording_serves_images_wherever_they_lie(monkeypatch):
    """Images of a batch, in either layout, and one image that is seen as several."""
    replays = count_replays(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config()))
    optimized = optimize_for_inference(model)
    batch = torch.randn(6, 3, 24, 24)
    with torch.no_grad():
        for images in (batch, batch.to(memory_format=torch.channels_last), batch[:1].expand(6, -1, -1, -1)):
            for _ in range(3):
                for pixel_values in images.split(2):
                    torch.testing.assert_close(optimized(pixel_values).logits, model(pixel_values).logits)
    # The first call of a layout is seen, and the second recorded.
    assert replays == 3 * [2] * (3 * 3 - 2)


def test_outputs_of_a_recording_train_a_head():
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = recorded(optimize_for_inference(TwinsModel(tiny_config())), pixel_values)
    head = torch.nn.Linear(tiny_config().hidden_sizes[-1], 2)
    head(optimized(pixel_values).pooler_output).sum().backward()
    assert head.weight.grad.abs().sum() > 0


class NoisyNorm(torch.nn.LayerNorm):
    def forward(self, hidden_states):
        return super().forward(hidden_states) + torch.randn_like(hidden_states)


class ClippedNorm(torch.nn.LayerNorm):
    """Computes something else for large values."""

    def forward(self, hidden_states):
        outputs = super().forward(hidden_states)
        return outputs.clamp(max=1) if hidden_states.max() > 10 else outputs


class SparseNorm(torch.nn.LayerNorm):
    def forward(self, hidden_states):
        outputs = super().forward(hidden_states)
        positive = outputs.flatten().nonzero()[:, 0]
        return torch.zeros_like(outputs).flatten().index_fill(0, positive, 1.0).view_as(outputs) * outputs


class NumpyNorm(torch.nn.LayerNorm):
    def forward(self, hidden_states):
        return torch.from_numpy(np.tanh(super().forward(hidden_states).numpy()))


class CountingNorm(torch.nn.LayerNorm):
    calls = 0

    def forward(self, hidden_states):
        self.calls += 1
        return self.calls * super().forward(hidden_states)


@pytest.mark.parametrize("norm_class", [ClippedNorm, CountingNorm, NumpyNorm, SparseNorm])
def test_layers_of_others_are_not_recorded(norm_class, monkeypatch):
    replays = count_replays(monkeypatch)
    model = randomize(TwinsForImageClassification(tiny_config()))
    model.twins.layernorm.__class__ = norm_class
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = optimize_for_inference(model)
    with torch.no_grad():
        for scale in (1, 1, 1, 1000, 1):
            images = scale * pixel_values
            assert distance(optimized(images).logits, model(images).logits) < 1e-4
    assert replays == []


@pytest.mark.parametrize("norm_class", [ClippedNorm, NumpyNorm, SparseNorm])
def test_what_depends_on_values_cannot_be_recorded(norm_class):
    norm = norm_class(8).requires_grad_(False)
    states = torch.randn(2, 4, 8)
    with pytest.raises((operators.CannotRecordError, AssertionError)):
        operators.record(norm, norm, states, {}, norm(states))


def test_random_numbers_are_new_in_every_call():
    model = randomize(TwinsForImageClassification(tiny_config()))
    model.twins.layernorm.__class__ = NoisyNorm
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = recorded(optimize_for_inference(model), pixel_values)
    with torch.no_grad():
        logits = [optimized(pixel_values).logits for _ in range(2)]
    assert not torch.equal(*logits)


@pytest.mark.parametrize("change", [change_layout, replace_memory])
@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_views_follow_memory(family, model_class, change):
    """Weights that are moved to other memory, in the same layout or not."""
    pixel_values = torch.randn(2, 3, 33, 47)
    optimized = recorded(optimize_for_inference(randomize(model_class(tiny_config(family)))), pixel_values)
    change(optimized)
    with torch.no_grad():
        for _ in range(3):
            assert distance(first(optimized(pixel_values)), first(optimized.forward.forward(pixel_values))) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_recorded_so", [False, True])
def test_other_attention_kernels_take_effect(is_recorded_so, family):
    model = randomize(TwinsForSemanticSegmentation(tiny_config(family)))
    pixel_values = torch.randn(2, 3, 33, 47)
    optimized = optimize_for_inference(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) if is_recorded_so else nullcontext():
        recorded(optimized, pixel_values)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH) if not is_recorded_so else nullcontext():
        for _ in range(4):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-4


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented:UserWarning")
def test_transforms_and_modes_bypass_recordings():
    model = randomize(TwinsForImageClassification(tiny_config()))
    images = torch.randn(3, 2, 3, 24, 24)
    optimized = recorded(optimize_for_inference(model), images[0])
    with torch.no_grad():
        actual = torch.func.vmap(lambda pixel_values: optimized(pixel_values).logits)(images)
        for logits, pixel_values in zip(actual, images, strict=True):
            assert distance(logits, model(pixel_values).logits) < 1e-4

        class NegateNorms(torch.overrides.TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                output = function(*args, **(kwargs or {}))
                return -output if function is torch.nn.functional.layer_norm else output

        with NegateNorms():
            actual, expected = optimized(images[0]).logits, model(images[0]).logits
        assert distance(actual, expected) < 1e-4
        with torch.device("cpu"):
            assert not recording.changes_operators()


def test_training_of_parts_takes_effect():
    model = randomize(TwinsForSemanticSegmentation(tiny_config()))
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = recorded(optimize_for_inference(model), pixel_values)
    for each in (model, optimized):
        for part in each.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 1.0
                part.train()
    with torch.no_grad():
        assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-4


def test_stages_of_a_backbone_that_are_changed_in_place_take_effect():
    pixel_values = torch.randn(2, 3, 24, 24)
    backbone = TwinsBackbone(tiny_config(out_features=["stage1", "stage3"]))
    optimized = recorded(optimize_for_inference(backbone), pixel_values)
    optimized.config._out_features.pop()
    with torch.no_grad():
        assert len(optimized(pixel_values).feature_maps) == len(optimized.forward.forward(pixel_values).feature_maps)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_scripted_layers_are_called():
    model = randomize(TwinsForImageClassification(tiny_config())).requires_grad_(False)
    model.twins.layernorm = torch.jit.trace(model.twins.layernorm, torch.randn(2, 9, model.config.hidden_sizes[-1]))
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = optimize_for_inference(model)
    for _ in range(3):
        assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-4


def test_a_model_that_changes_while_it_is_recorded_keeps_no_recording(monkeypatch):
    model = randomize(TwinsForImageClassification(tiny_config()))
    optimized, pixel_values = optimize_for_inference(model), torch.randn(2, 3, 24, 24)
    record = operators.record

    def change_and_record(*args):
        replay = record(*args)
        for each in (model, optimized):
            replace_weight(each)
        return replay

    monkeypatch.setattr(operators, "record", change_and_record)
    recorded(optimized, pixel_values)
    monkeypatch.setattr(operators, "record", record)
    with torch.no_grad():
        for _ in range(3):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-4


def test_errors_of_calls_do_not_prevent_recordings(monkeypatch):
    replays = count_replays(monkeypatch)
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()))
    for size in 2 * [*range(1, 8), 1, 1]:
        with pytest.raises(ValueError, match="must be at least 8 pixels"):
            optimized(torch.randn(1, 3, size, 7))
    pixel_values = torch.randn(2, 3, 24, 24)
    recorded(optimized, pixel_values)
    optimized(pixel_values)
    assert replays == [2]


def test_recordings_do_not_keep_the_model():
    pixel_values = torch.randn(2, 3, 24, 24)
    optimized = recorded(optimize_for_inference(TwinsForImageClassification(tiny_config())), pixel_values)
    weight = weakref.ref(optimized.twins.layernorm.weight)
    del optimized
    gc.collect()
    assert weight() is None


@pytest.mark.gpu
@needs_cuda
def test_call_is_computed_where_memory_does_not_suffice_for_a_recording(monkeypatch):
    replays, tries = count_replays(monkeypatch), []

    class TooLarge(cuda_graphs.CudaGraph):
        def __init__(self, forward, pixel_values, flags, pool):
            tries.append(len(pixel_values))
            if len(pixel_values) > 1:
                raise torch.OutOfMemoryError
            super().__init__(forward, pixel_values, flags, pool)

    monkeypatch.setattr(cuda_graphs, "CudaGraph", TooLarge)
    model = randomize(TwinsForImageClassification(tiny_config())).cuda()
    optimized = optimize_for_inference(model)
    pixel_values = torch.randn(3, 3, 24, 24).cuda()
    with torch.no_grad():
        for images in (pixel_values, pixel_values, pixel_values[:1]):
            assert distance(optimized(images).logits, model(images).logits) < 1e-3
    assert (tries, replays) == ([3, 1], [1])


def test_lack_of_memory_for_a_recording_is_said(monkeypatch, caplog):
    def fail(*args):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(cuda_graphs, "CudaGraph", fail)
    assert cuda_graphs.record(None, torch.randn(3, 3, 24, 24), {}, None) is None
    assert "not enough GPU memory to record calls with images of shape (3, 3, 24, 24)" in caplog.text


@pytest.mark.parametrize("device", DEVICES)
def test_recordings_serve_threads_and_streams(device):
    model = randomize(TwinsForImageClassification(tiny_config())).to(device)
    optimized = optimize_for_inference(model)
    images = [torch.randn(2, 3, size, size, device=device) for size in (16, 24, 32) for _ in range(8)]
    with torch.no_grad():
        expected = [model(image).logits for image in images]
    if device == "cuda":
        torch.cuda.synchronize()

    def compute(image: torch.Tensor) -> torch.Tensor:
        if device == "cpu":
            with torch.no_grad():
                return optimized(image).logits
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            logits = optimized(image).logits
            torch.cuda.current_stream().synchronize()
        return logits

    with ThreadPoolExecutor(4) as executor:
        actual = list(executor.map(compute, 5 * images))
    for logits, expected_logits in zip(actual, 5 * expected, strict=True):
        assert distance(logits, expected_logits) < RECORDING_TOLERANCE[device]


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_backbone_serves_the_model_around_it(device, monkeypatch):
    replays = count_replays(monkeypatch)
    model = uper_net().to(device)
    pixel_values = torch.randn(1, 3, 40, 44, device=device)
    optimized = recorded(optimize_for_inference(model), pixel_values)
    replays.clear()
    with torch.inference_mode():
        for _ in range(2):
            assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < RECORDING_TOLERANCE[device]
    assert len(replays) == 2
    seen: list[torch.Tensor] = []
    for layer in model.modules():
        if isinstance(layer, TwinsLayer):
            layer.register_forward_hook(lambda module, args, output: seen.append(output))
    optimized = optimize_for_inference(model)
    with torch.inference_mode():
        for _ in range(3):
            optimized(pixel_values)
    assert len(seen) == 3 * 7
    assert len(replays) == 2


@pytest.mark.gpu
@needs_cuda
def test_recorded_model_is_not_saved_and_copies_itself(tmp_path):
    optimized = optimize_for_inference(randomize(TwinsForImageClassification(tiny_config())).cuda())
    with pytest.raises(RuntimeError, match="cannot be saved: save the original model"):
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
    replays = count_replays(monkeypatch)
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
    with pytest.raises(ValueError, match="does not support adapters, which this model has: merge them"):
        optimize_for_inference(model, backend="packed")


class PositiveLinear(torch.nn.Linear):
    """A linear layer of a user's own."""

    def forward(self, hidden_states):
        return super().forward(hidden_states).abs()


class PositiveConv2d(TwinsPatchConv2d):
    def forward(self, image):
        return super().forward(image).abs()


class PositiveWrapper(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states):
        return self.layer(hidden_states).abs()


def positive_by_hook(layer):
    layer.register_forward_hook(lambda module, inputs, output: output.abs())
    return layer


def positive_by_forward(layer):
    plain = layer.forward
    layer.forward = lambda hidden_states: plain(hidden_states).abs()
    return layer


def positive_by_subclass(layer):
    layer.__class__ = {torch.nn.Linear: PositiveLinear, TwinsPatchConv2d: PositiveConv2d}[type(layer)]
    return layer


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [positive_by_hook, positive_by_forward, positive_by_subclass, PositiveWrapper, torch.nn.utils.spectral_norm],
    ids=["hook", "forward", "subclass", "wrapper", "spectral_norm"],
)
@pytest.mark.parametrize(
    "name",
    [
        "classifier",
        "twins.encoder.stages.0.layers.0.mlp.fc1",
        "twins.encoder.stages.0.layers.0.attention.q_proj",
        "twins.encoder.stages.0.layers.0.attention.o_proj",
        "twins.encoder.stages.0.layers.0.attention.sequence_reduction.projection",
    ],
)
def test_layers_that_compute_more_stay_as_they_are(name, change):
    model = randomize(TwinsForImageClassification(tiny_config("pcpvt", **TWO_STAGES))).eval()
    pixel_values = torch.randn(2, 3, 33, 47)
    with torch.no_grad():
        plain = model(pixel_values).logits
    parent, _, child = name.rpartition(".")
    parent = model.get_submodule(parent)
    setattr(parent, child, change(getattr(parent, child)))
    with torch.no_grad():
        expected = model(pixel_values).logits
    assert distance(expected, plain) > 1e-2
    optimized = optimize_for_inference(model, backend="packed")
    assert any("Packed" in type(module).__name__ for module in optimized.modules())
    with torch.inference_mode():
        assert distance(optimized(pixel_values).logits, expected) < 1e-5


def test_hook_of_an_activation_is_called():
    model = TwinsForImageClassification(tiny_config())
    activation_fn = next(module for name, module in model.named_modules() if name.endswith("activation_fn"))
    activation_fn.register_forward_hook(lambda module, inputs, output: 0 * output)
    optimized = optimize_for_inference(model, backend="packed")
    pixel_values = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        assert distance(optimized(pixel_values).logits, model.eval()(pixel_values).logits) < 1e-5


class MLPWithoutActivation(TwinsMLP):
    def forward(self, hidden_states):
        return self.fc2(self.fc1(hidden_states))


class UniformAttention(TwinsGlobalAttention):
    def project(self, query_states, key_value_states):
        query, key, value = super().project(query_states, key_value_states)
        return query, 0 * key, value


@pytest.mark.parametrize(("part", "subclass"), [("mlp", MLPWithoutActivation), ("attention", UniformAttention)])
def test_subclasses_of_blocks_parts_compute_as_they_do(part, subclass):
    model = randomize(TwinsForImageClassification(tiny_config("pcpvt"))).eval()
    getattr(model.twins.encoder.stages[0].layers[0], part).__class__ = subclass
    pixel_values = torch.randn(1, 3, 24, 24)
    optimized = optimize_for_inference(model, backend="packed")
    with torch.inference_mode():
        assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-5


def test_layers_around_twins_keep_their_weights():
    class Tagger(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.twins = TwinsModel(tiny_config())
            size = self.twins.config.hidden_size
            # Reads the weights of its linear layers.
            self.mixer = torch.nn.TransformerEncoderLayer(size, 2, 16, batch_first=True)

        def forward(self, images):
            return self.mixer(self.twins(images).last_hidden_state.flatten(2).transpose(1, 2))

    model = Tagger().eval()
    images = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        optimized = optimize_for_inference(model, dtype=torch.bfloat16, backend="packed")
        output = optimized(images=images)
        assert output.dtype == torch.float32
        assert distance(output, model(images)) < 3e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_packed_weights_refuse_gradients(dtype):
    optimized = optimize_for_inference(TwinsModel(tiny_config()), dtype=dtype, backend="packed")
    with pytest.raises(RuntimeError, match="Packed weights compute no gradients: call the original model"):
        optimized(torch.randn(1, 3, 24, 24, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_packed_model_computes_under_autocast(dtype):
    model = randomize(TwinsForImageClassification(tiny_config())).eval()
    optimized = optimize_for_inference(model, dtype=dtype, backend="packed")
    pixel_values = torch.randn(2, 3, 33, 47)
    with torch.inference_mode():
        expected = model(pixel_values).logits
        with torch.autocast("cpu", torch.bfloat16):
            assert distance(optimized(pixel_values).logits.float(), expected) < 8e-2


def test_outputs_of_any_kind_are_cast():
    Pair = collections.namedtuple("Pair", "first second")

    @dataclasses.dataclass
    class Result:
        scores: torch.Tensor
        name: str = "scores"

    tensor = torch.ones(2, dtype=torch.bfloat16)
    for outputs in (Pair(tensor, 3), {0: tensor, 1: [tensor]}, Result(tensor), (tensor, None)):
        cast = forwards.map_tensors(outputs, torch.Tensor.float)
        assert type(cast) is type(outputs)
        values = cast.values() if isinstance(cast, dict) else vars(cast).values() if isinstance(cast, Result) else cast
        first_value = next(iter(values))
        assert first_value.dtype == torch.float32


def test_runtimes_refuse_what_an_export_does_not_hold():
    config = tiny_config()
    for change in (positive_by_hook, positive_by_forward, positive_by_subclass, PositiveWrapper):
        model = TwinsForImageClassification(config)
        model.classifier = change(model.classifier)
        with pytest.raises(ValueError, match="supports neither hooks nor modules of your own, such as classifier"):
            optimize_for_inference(model, backend="openvino", dtype=torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_model_takes_no_images(family, dtype):
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config(family)), dtype=dtype, backend="packed")
    with torch.inference_mode():
        assert optimized(torch.rand(0, 3, 24, 24)).logits.shape == (0, optimized.config.num_labels)


def test_packed_model_is_not_saved(tmp_path):
    optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()), backend="packed")
    with pytest.raises(RuntimeError, match="cannot be saved: save the original model"):
        optimized.save_pretrained(tmp_path)
    assert "activation=gelu" in repr(optimized)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_packed_model_says_what_cannot_be_done_with_it(dtype):
    packed = optimize_for_inference(TwinsForImageClassification(tiny_config()), dtype=dtype)
    with pytest.raises(RuntimeError, match="cannot be pickled: pickle the original model"):
        pickle.dumps(packed)
    with pytest.raises(RuntimeError, match="cannot be exported: export the original model"):
        torch.jit.trace(packed, torch.rand(1, 3, 32, 32), strict=False)
    # In int8, the weights are TorchScript objects, which `torch.export` refuses before it calls the model.
    if dtype != torch.int8:
        with pytest.raises(RuntimeError, match="cannot be exported: export the original model"):
            torch.export.export(packed, (torch.rand(1, 3, 32, 32),))
    for change in (lambda model: model.half(), lambda model: model.to("meta")):
        with pytest.raises(RuntimeError, match=r"have one dtype and device, torch\.\w+ on cpu, and got torch\.\w+ on"):
            change(copy.deepcopy(packed))
    # What changes nothing is no matter.
    packed.to("cpu").share_memory()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_model_without_packed_weights_is_exported_and_pickled(dtype):
    model = optimize_for_inference(TwinsForImageClassification(tiny_config()), dtype=dtype, backend="eager")
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        expected = model(images).logits
        pickled = pickle.loads(pickle.dumps(model))  # noqa: S301  # which was written here
        for again in (pickled, torch.export.export(model, (images,)).module()):
            torch.testing.assert_close(again(images).logits, expected)


def test_kernels_that_are_not_there_are_done_without(monkeypatch):
    model = TwinsForImageClassification(tiny_config())
    monkeypatch.setattr(packing, "PackedLinear", None)
    plain = optimize_for_inference(model)
    assert not any("Packed" in type(module).__name__ for module in plain.modules())
    with pytest.raises(ValueError, match=r"backend 'packed' needs a CPU, oneDNN, .*; this is torch.float32 on cpu"):
        optimize_for_inference(model, backend="packed")


def test_kernels_that_compute_something_else_are_found(monkeypatch):
    forward = packing.PackedLinear.forward
    monkeypatch.setattr(packing.PackedLinear, "forward", lambda self, states: 2 * forward(self, states))
    assert not packing.can_pack(torch.device("cpu"), torch.float32)


def test_gelu_that_is_another_is_found(monkeypatch):
    plain = packing.PackedLinear.__init__
    monkeypatch.setattr(packing.PackedLinear, "__init__", lambda self, linear, activation="none": plain(self, linear))
    assert not packing.can_pack(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("factor", [1.5, float("nan")])
def test_verification_finds_other_outputs(monkeypatch, factor):
    pack = inference_optimization.pack

    def damage(model, dtype):
        pack(model, dtype)
        model.twins.layernorm.weight.mul_(factor)

    monkeypatch.setattr(inference_optimization, "pack", damage)
    with pytest.raises(ValueError, match="The optimized model's outputs differ from the original model's by"):
        optimize_for_inference(randomize(TwinsForImageClassification(tiny_config())), backend="packed", verify=True)


def test_wrong_arguments_are_named():
    model = TwinsForImageClassification(tiny_config())
    with pytest.raises(ValueError, match=r"dtype must be 'auto', torch.float32, .*, torch.int8, got torch.float64"):
        optimize_for_inference(model, dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r"int8 needs backend 'packed' or 'onnxruntime', .* here it is 'eager', on cpu"
    ):
        optimize_for_inference(model, dtype=torch.int8, backend="eager")
    with pytest.raises(
        ValueError, match=r"one of auto, eager, packed, graph, compile, onnxruntime, openvino, got 'fastest'"
    ):
        optimize_for_inference(model, backend="fastest")
    with pytest.raises(ValueError, match=r"backend 'graph' needs a CUDA device; this is cpu: choose"):
        optimize_for_inference(model, backend="graph")


@pytest.mark.slow
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


def uper_net() -> UperNetForSemanticSegmentation:
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=16, use_auxiliary_head=False, pool_scales=[1, 2], num_labels=4
    )
    return randomize(UperNetForSemanticSegmentation(config))


def mask_rcnn() -> TwinsForObjectDetection:
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    config = TwinsDetectorConfig(detector="mask-rcnn", backbone_config=backbone, num_labels=3, pyramid_size=16)
    return TwinsForObjectDetection(config).eval()


def detr() -> DetrForObjectDetection:
    sizes = dict.fromkeys(("d_model", "encoder_ffn_dim", "decoder_ffn_dim"), 16)
    layers = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    config = DetrConfig(
        backbone_config=tiny_config(out_features=["stage3"]), num_queries=5, num_labels=3, **sizes, **layers, **heads
    )
    return DetrForObjectDetection(config).eval()


AROUND = {"uper-net": uper_net, "mask-rcnn": mask_rcnn, "detr": detr}
FIRST_OUTPUTS = {"uper-net": "logits", "mask-rcnn": "scores", "detr": "logits"}


@pytest.mark.usefixtures("fresh_compiler")
def test_every_function_is_compiled_however_many_share_their_code():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    def add(number):
        return lambda tensor: tensor + number

    # Twice as many as PyTorch compiles of one code object.
    for number in range(16):
        function = torch.compile(forwards.with_own_code(add(number)), backend=backend)
        assert function(torch.zeros(1)) == number
    assert len(compiled) == 16


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("name", AROUND)
def test_model_around_twins_is_optimized(name, dtype):
    torch.manual_seed(0)
    model = AROUND[name]()
    optimized = optimize_for_inference(model, dtype=dtype, verify=True)
    assert any(isinstance(module, packing.PreparedLinear) for module in optimized.modules())
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, actual = (each(pixel_values)[FIRST_OUTPUTS[name]] for each in (model, optimized))
    assert actual.dtype == torch.float32
    if name != "mask-rcnn" or dtype == torch.float32:
        # Rounding makes others of the best boxes of an untrained detector.
        assert distance(actual, expected) < {torch.float32: 1e-4}.get(dtype, 6e-2)


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16}, {"dtype": torch.int8}, {"backend": "eager"}], ids=str
)
def test_copy_computes_by_itself(options):
    optimized = optimize_for_inference(randomize(TwinsForImageClassification(tiny_config())), **options)
    pixel_values = torch.randn(1, 3, 24, 24)
    with torch.inference_mode():
        expected = optimized(pixel_values).logits.clone()
        copied = copy.deepcopy(optimized)
        assert torch.equal(copied(pixel_values).logits, expected)
        # The original's weights are changed, and the copy's not.
        optimized.twins.layernorm.weight.mul_(2)
        assert not torch.equal(optimized(pixel_values).logits, expected)
        assert torch.equal(copied(pixel_values).logits, expected)
    assert copied.optimized_for == optimized.optimized_for


def test_what_was_chosen_is_said(caplog):
    with caplog.at_level("INFO"):
        optimized = optimize_for_inference(TwinsForImageClassification(tiny_config()), dtype=torch.bfloat16)
    assert optimized.optimized_for == ("packed", torch.bfloat16, torch.device("cpu"))
    assert [record.getMessage() for record in caplog.records if "is optimized" in record.message] == [
        f"TwinsForImageClassification is optimized: {optimized.optimized_for}."
    ]


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False}, torch.float32), ({}, torch.float32)],
)
def test_fastest_dtype_is_what_the_hardware_multiplies(capabilities, dtype, monkeypatch, caplog):
    monkeypatch.setattr(machine, "cpu_capabilities", lambda: capabilities)
    model = TwinsForImageClassification(tiny_config())
    assert optimize_for_inference(model, dtype="auto").optimized_for.dtype == dtype
    assert optimize_for_inference(model).optimized_for.dtype == torch.float32
    assert not caplog.records
    optimize_for_inference(model, dtype=torch.bfloat16)
    slower = "torch.bfloat16 is slower here than float32, because this cpu has no instructions for it: choose"
    # Of a processor that PyTorch says nothing about, nothing is said.
    assert (slower in caplog.text) == (capabilities == {"avx512_bf16": False})


def test_capabilities_are_those_of_this_machine():
    capabilities = machine.cpu_capabilities()
    assert all(isinstance(value, bool) for value in capabilities.values())
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if "flags" in flags:
        assert machine.multiplies(torch.device("cpu"), torch.bfloat16) == (
            "avx512_bf16" in flags or "amx_bf16" in flags
        )


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_int8_is_right_without_vnni(instructions):
    """Such CPUs add products in 16 bits, which 8-bit inputs overflow."""
    code = """
import torch
from hf_twins import TwinsConfig, TwinsForImageClassification, optimize_for_inference
from hf_twins.inference_optimization.packing import must_reduce_range
assert must_reduce_range()
torch.manual_seed(0)
model = TwinsForImageClassification(TwinsConfig.from_variant("twins-svt-small", depths=[2, 2, 2, 2])).eval()
optimize_for_inference(model, dtype=torch.int8, verify=True)
"""
    environment = {"ONEDNN_MAX_CPU_ISA": instructions, "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", runtimes.RUNTIMES)
def test_runtime_computes_the_same(backend, family, tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "cached_assets_path", lambda *names: Path(tmp_path, *names))
    config = tiny_config(family, **TWO_STAGES, out_features=["stage1", "stage2"])
    for model_class in MODEL_CLASSES if family == FAMILIES[0] else [TwinsForImageClassification]:
        model = randomize(model_class(config))
        optimized = optimize_for_inference(model, backend=backend)
        copied = copy.deepcopy(optimized)
        with torch.inference_mode():
            for shape in ((1, 3, 24, 24), (2, 3, 33, 47), (0, 3, 24, 24)):
                pixel_values = torch.randn(shape)
                expected, actual = model(pixel_values), optimized(pixel_values=pixel_values)
                assert type(actual) is type(expected)
                assert actual.keys() == expected.keys()
                assert first(actual).shape == first(expected).shape
                if len(pixel_values) > 0:
                    assert distance(first(actual), first(expected)) < 1e-4
                    assert torch.equal(first(copied(pixel_values)), first(actual))
                    as_tuple = optimized(pixel_values, return_dict=False)
                    assert isinstance(as_tuple, tuple)
                    assert len(as_tuple) == len(actual)
            assert first(optimized(torch.randn(1, 3, 24, 24).bfloat16())).dtype == torch.bfloat16
            optimized.config.output_hidden_states = True
            with pytest.raises(ValueError, match="takes only pixel_values, got output_hidden_states"):
                optimized(torch.randn(1, 3, 24, 24))
            optimized.config.output_hidden_states = False
            mask = torch.ones(1, 24, 24)
            for inputs, name in (
                ({"pixel_mask": mask}, "pixel_mask"),
                ({"output_attentions": True}, "output_attentions"),
            ):
                with pytest.raises(ValueError, match=f"takes only pixel_values, got {name}: call the original"):
                    optimized(torch.randn(1, 3, 24, 24), **inputs)
            with pytest.raises(ValueError, match=r"pixel_values must be at least . pixels high and wide"):
                optimized(torch.randn(1, 3, 2, 24))
    exported = sorted(tmp_path.rglob("*.xml" if backend == "openvino" else "*.onnx"))
    times = [file.stat().st_mtime_ns for file in exported]
    again = optimize_for_inference(model, backend=backend)
    assert exported == sorted(tmp_path.rglob(f"*{exported[0].suffix}"))
    assert [file.stat().st_mtime_ns for file in exported] == times
    if model_class is TwinsForImageClassification:
        picture = Image.fromarray((255 * torch.rand(40, 56, 3)).byte().numpy())
        processor = TwinsImageProcessor(size={"height": 24, "width": 24}, do_center_crop=False)
        (expected_labels, labels) = (
            pipeline("image-classification", model=each, image_processor=processor)(picture) for each in (model, again)
        )
        assert [each["label"] for each in labels] == [each["label"] for each in expected_labels]


@pytest.mark.slow
def test_runtime_serves_the_model_around_twins(tmp_path, monkeypatch):
    monkeypatch.setattr(runtimes, "cached_assets_path", lambda *names: Path(tmp_path, *names))
    model = uper_net()
    optimized = optimize_for_inference(model, backend="openvino", verify=True)
    pixel_values = torch.randn(2, 3, 40, 44)
    with torch.inference_mode():
        assert distance(optimized(pixel_values).logits, model(pixel_values).logits) < 1e-4


def test_what_cannot_be_optimized_is_named():
    with pytest.raises(ValueError, match="model must be or contain an hf_twins model, got Linear"):
        optimize_for_inference(torch.nn.Linear(2, 3))
    model = TwinsForImageClassification(tiny_config())
    with pytest.raises(ValueError, match="model is already optimized, for OptimizedFor"):
        optimize_for_inference(optimize_for_inference(model))
    for function in (grad_cam, attention_maps):
        with pytest.raises(ValueError, match="model must be the original one: what optimize_for_inference"):
            function(optimize_for_inference(model), torch.randn(1, 3, 24, 24))
    with pytest.raises(
        ValueError, match=r"'openvino' computes in torch.float32 or torch.bfloat16, got torch.int8: choose 'onnx"
    ):
        optimize_for_inference(model, dtype=torch.int8, backend="openvino")

    class MyTwins(TwinsForImageClassification):
        def forward(self, pixel_values):
            return super().forward(pixel_values).logits

    with pytest.raises(
        ValueError, match=r"Runtimes support only TwinsBackbone, .*, got a MyTwins: choose another backend"
    ):
        optimize_for_inference(MyTwins(tiny_config()), backend="openvino")
    quantized = copy.deepcopy(model)
    # By default torchao 0.17 does what it, and PyTorch 2.9, deprecate.
    quantize_(quantized, Int8WeightOnlyConfig(version=2, set_inductor_config=False))
    with pytest.raises(ValueError, match="model is quantized, which no backend supports"):
        optimize_for_inference(quantized)
