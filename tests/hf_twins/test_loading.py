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
"""Loading each kind of source for each task: the right model with its trained weights, or a one-sentence error."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import serve_hub
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from testing_utils import randomize, save_timm, timm_model, tiny_config
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerImageProcessor,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import hf_twins
from hf_twins import (
    TwinsBackbone,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsModel,
    load_model,
    save_remote_code,
)
from hf_twins.loading import MODEL_CLASSES, TASKS, MissingProcessorError, load_image_processor, load_pretrained


CLASSIFICATION, SEGMENTATION, FEATURES, BACKBONE = TASKS
# The class that is built from each source for these tasks, and without a task; None if it is refused.
CLASSIFIER = ("TwinsForImageClassification", None, "TwinsModel", "TwinsBackbone", "TwinsForImageClassification")
EXPECTED = {
    "classifier": CLASSIFIER,
    "semantic-fpn": (None, "TwinsForSemanticSegmentation", None, "TwinsBackbone", "TwinsForSemanticSegmentation"),
    "upernet": (None, "UperNetForSemanticSegmentation", None, None, "UperNetForSemanticSegmentation"),
    "backbone": (None, None, None, "TwinsBackbone", "TwinsBackbone"),
    "model": (None, None, "TwinsModel", "TwinsBackbone", "TwinsModel"),
    "timm": CLASSIFIER,
    "authors.pth": CLASSIFIER,
    "authors": CLASSIFIER,
    "adapter": CLASSIFIER,
    "adapter-of-timm": CLASSIFIER,
}


def upernet_config() -> UperNetConfig:
    backbone = tiny_config(out_features=["stage1", "stage2", "stage3"])
    return UperNetConfig(
        backbone_config=backbone, hidden_size=16, auxiliary_channels=8, pool_scales=[1, 2], num_labels=5
    )


def save_adapter(folder: Path, base: Path, labels: list[str] | None) -> None:
    """Save an adapter that changes outputs noticeably, with a new head for `labels`, or with the base model's head."""
    heads = {} if labels is None else {"num_labels": len(labels), "ignore_mismatched_sizes": True}
    model = TwinsForImageClassification.from_pretrained(base, **heads)
    lora = LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    lora.modules_to_save = None if labels is None else ["classifier"]
    get_peft_model(model, lora).save_pretrained(folder)
    if labels is not None:
        (folder / "label_names.json").write_text(json.dumps(labels))


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A folder that contains each kind of source, by name."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    for name, model in (
        ("classifier", TwinsForImageClassification(tiny_config())),
        ("semantic-fpn", TwinsForSemanticSegmentation(tiny_config(fpn_hidden_size=16, decoder_hidden_size=8))),
        ("upernet", UperNetForSemanticSegmentation(upernet_config())),
        ("backbone", TwinsBackbone(tiny_config())),
        ("model", TwinsModel(tiny_config())),
    ):
        randomize(model).save_pretrained(folder / name)
        size = {"shortest_edge": 24, "longest_edge": 96}
        TwinsImageProcessor(size=size, do_center_crop=False).save_pretrained(folder / name)
    save_timm(timm_model(), folder / "timm")
    weights = timm_model().state_dict()
    torch.save(weights, folder / "authors.pth")
    (folder / "authors").mkdir()
    torch.save({"model": weights}, folder / "authors" / "checkpoint.pth")
    save_adapter(folder / "adapter", folder / "classifier", ["cat", "dog"])
    save_adapter(folder / "adapter-of-timm", folder / "timm", None)
    return folder


@pytest.mark.parametrize("task", [*TASKS, None])
@pytest.mark.parametrize("source", EXPECTED)
def test_each_source_for_each_task(source, task, sources, caplog, capsys):
    expected = EXPECTED[source][[*TASKS, None].index(task)]
    if expected is None:
        with pytest.raises(
            ValueError, match=rf"^\S+{source} holds a \w+, but an? .* is needed \(\w+.*\): pass "
        ) as raised:
            load_model(sources / source, task)
        assert str(raised.value).count("\n") == 0
    else:
        model, processor = load_model(sources / source, task)
        assert type(model).__name__ == expected
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        pixel_values = processor(torch.rand(3, 40, 48), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixel_values)
        assert all(value.isfinite().all() for value in outputs.to_tuple() if isinstance(value, torch.Tensor))
    # transformers must not report new and unused weights.
    assert "LOAD REPORT" not in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize("source", ["classifier", "semantic-fpn", "upernet", "backbone", "model"])
def test_loaded_weights_equal_the_saved_ones(source, sources):
    model, _ = load_model(sources / source)
    expected = MODEL_CLASSES[type(model).__name__].from_pretrained(sources / source).state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    encoder = load_pretrained(sources / source, BACKBONE).encoder if source != "upernet" else model.backbone.encoder
    ours = {name.split("encoder.")[-1]: weight for name, weight in expected.items() if "encoder." in name}
    assert all(torch.equal(weight, ours[name]) for name, weight in encoder.state_dict().items())


def test_adapter_is_merged_into_its_base_model(sources, monkeypatch):
    from peft import PeftModel

    pixel_values = torch.randn(2, 3, 24, 24)
    base = TwinsForImageClassification.from_pretrained(
        sources / "classifier", num_labels=2, ignore_mismatched_sizes=True
    )
    expected = PeftModel.from_pretrained(base, sources / "adapter").eval()
    model, processor = load_model(sources / "adapter", CLASSIFICATION)
    features = load_pretrained(sources / "adapter", FEATURES)
    plain = load_pretrained(sources / "classifier", FEATURES)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values).logits, expected(pixel_values).logits, rtol=0, atol=1e-5)
        pooled = features(pixel_values).pooler_output
        torch.testing.assert_close(model.classifier(pooled), model(pixel_values).logits, rtol=0, atol=1e-5)
        assert (plain(pixel_values).pooler_output - pooled).abs().max() > 1e-3
    assert not any("lora" in name for name in model.state_dict())
    assert model.config.id2label == {0: "cat", 1: "dog"}
    # The image processor is the base model's, because the adapter has none.
    assert processor.size.shortest_edge == 24


def test_adapter_never_gets_the_labels_of_another_head(sources, tmp_path):
    """The adapter has five labels, like the base model, but no names for them."""
    save_adapter(tmp_path / "adapter", sources / "classifier", [f"label {index}" for index in range(5)])
    assert load_pretrained(tmp_path / "adapter").config.id2label[4] == "label 4"
    (tmp_path / "adapter" / "label_names.json").unlink()
    assert load_pretrained(tmp_path / "adapter").config.id2label[4] == "LABEL_4"
    fields = {"id2label": dict(enumerate("abcde")), "label2id": {name: index for index, name in enumerate("abcde")}}
    named = load_pretrained(tmp_path / "adapter", **fields)
    assert named.config.id2label[4] == "e"


def test_adapter_is_fine_tuned_for_other_labels(sources):
    labels = {"id2label": dict(enumerate("abc")), "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(ValueError, match=r"adapter lacks 2 weights of TwinsForImageClassification"):
        load_pretrained(sources / "adapter", CLASSIFICATION, **labels)
    model = load_pretrained(sources / "adapter", CLASSIFICATION, allow_new_weights=True, **labels)
    trained = load_pretrained(sources / "adapter", CLASSIFICATION)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert model.name_or_path == str(sources / "adapter")
    assert model.classifier.weight.shape[0] == 3
    expected = trained.twins.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.twins.state_dict().items())


def test_adapter_without_peft_gives_one_sentence(sources, monkeypatch):
    monkeypatch.setattr("hf_twins._utils.extras.find_spec", lambda module: None)
    with pytest.raises(ImportError, match=r'^\S+adapter is a PEFT adapter: .*pip install "hf_twins\[train\]"$'):
        load_model(sources / "adapter", CLASSIFICATION)


def test_adapter_that_does_not_fit_its_base_model_is_refused(sources, tmp_path):
    folder = shutil.copytree(sources / "adapter", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())

    def write(**changes: object) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))

    wide = tiny_config(hidden_sizes=[32, 64, 96])
    TwinsForImageClassification(wide).save_pretrained(tmp_path / "wide")
    write(base_model_name_or_path=str(tmp_path / "wide"))
    with pytest.raises(ValueError, match=r"adapter does not fit its base model \S+wide: "):
        load_model(folder)
    for depths in ([2, 2, 2], [2, 4, 2]):
        TwinsForImageClassification(tiny_config(depths=depths)).save_pretrained(tmp_path / "depths")
        write(base_model_name_or_path=str(tmp_path / "depths"))
        with pytest.raises(
            ValueError, match=r"adapter does not fit its base model \S+depths: only one of them has base"
        ):
            load_model(folder)
    write(base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(OSError, match=r"^cannot load \S+gone: there is no such file or folder$"):
        load_model(folder)
    write(base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter does not say which model it adapts: set base_model_name_or_path"):
        load_model(folder)
    write()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match=rf"^cannot load {folder}: it has adapter_config\.json, but no adapter weights"):
        load_model(folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(OSError, match=rf"^cannot load {folder}: its adapter_config\.json is damaged"):
        load_model(folder)
    # An adapter that keeps the base model's head has no head weights, and neither has a backbone.
    head_of_base = shutil.copytree(sources / "adapter-of-timm", tmp_path / "headless")
    config = json.loads((head_of_base / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(sources / "backbone")
    (head_of_base / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"headless lacks \d+ weights of TwinsForImageClassification.* classifier\.bias"
    ):
        load_model(head_of_base)


@pytest.mark.parametrize("source", ["classifier", "backbone", "timm", "authors.pth"])
@pytest.mark.parametrize("task", [CLASSIFICATION, SEGMENTATION])
def test_new_head_is_only_allowed_for_training(source, task, sources):
    labels = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = load_pretrained(sources / source, task, allow_new_weights=True, **labels)
    assert isinstance(model, TASKS[task].model_class)
    assert model.config.num_labels == 2
    encoder = load_pretrained(sources / source, BACKBONE).encoder.state_dict()
    assert all(torch.equal(weight, encoder[name]) for name, weight in model.twins.encoder.state_dict().items())


def test_head_for_labels_that_the_checkpoint_lacks_is_new(sources):
    with pytest.raises(
        ValueError, match=r"classifier lacks 2 weights of TwinsForImageClassification, or .*classifier\.bias"
    ):
        load_model(sources / "classifier", CLASSIFICATION, id2label={0: "a"}, label2id={"a": 0})


@pytest.mark.parametrize("allow_new_weights", [False, True])
def test_weights_of_another_model_are_refused_by_the_loader(allow_new_weights, sources, tmp_path):
    folder = shutil.copytree(sources / "classifier", tmp_path / "broken")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    shutil.copy(tmp_path / "resnet" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"broken lacks \d+ weights of TwinsForImageClassification, .* fine-tune"):
        load_model(folder, CLASSIFICATION, allow_new_weights=allow_new_weights)


@pytest.mark.parametrize("task", [*TASKS, None])
@pytest.mark.parametrize("kind", ["resnet", "detr", "upernet on resnet"])
def test_other_models_are_refused_by_name(kind, task, tmp_path):
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    if kind == "resnet":
        ResNetForImageClassification(resnet).save_pretrained(tmp_path)
        expected = "holds a ResNetForImageClassification of type 'resnet', not one of "
    elif kind == "detr":
        config = DetrConfig(
            backbone_config=tiny_config(),
            use_timm_backbone=False,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
        )
        DetrForObjectDetection(config).save_pretrained(tmp_path)
        expected = "holds a DetrForObjectDetection of type 'detr', not one of "
    else:
        config = UperNetConfig(backbone_config=resnet, hidden_size=8, auxiliary_in_channels=8)
        config.save_pretrained(tmp_path)
        expected = "holds an UperNet with a 'resnet' backbone: pass one with a Twins backbone"
    with pytest.raises(ValueError, match=expected) as raised:
        load_model(tmp_path, task, allow_new_weights=True)
    assert str(raised.value).startswith(str(tmp_path))


def test_timm_models_other_than_twins_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50", "num_classes": 10}))
    with pytest.raises(ValueError, match=rf"^{tmp_path}: timm's config.json must describe one of .*, got 'resnet50'"):
        load_model(tmp_path)


def test_timm_model_without_a_classifier_is_not_a_classifier(tmp_path):
    save_timm(timm_model(num_classes=0), tmp_path)
    with pytest.raises(ValueError, match="has no labels, but an image classifier is needed"):
        load_model(tmp_path, CLASSIFICATION)
    assert type(load_model(tmp_path, FEATURES)[0]) is TwinsModel


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("somebody/not-here", "there is no such folder, and on the Hub: "),
        ("not-here", "there is no such folder, and on the Hub: "),
        ("./not-here", "there is no such file or folder$"),
        ("/not/here/at/all", "there is no such file or folder$"),
        ("outputs/run/adapter", "there is no such file or folder$"),
        ("not-here.pth", "there is no such file or folder$"),
        ("somebody/not-here.safetensors", "there is no such file or folder$"),
        ("twins-svt-small", r"this is the name of an architecture, .* such as timm/twins_svt_small\.in1k$"),
    ],
)
@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_missing_sources_are_named(name, reason, trust_remote_code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=rf"^cannot load {name}: {reason}") as raised:
        load_model(name, CLASSIFICATION, trust_remote_code=trust_remote_code, revision=40 * "0")
    assert "\n" not in str(raised.value)


def test_damaged_files_are_named(sources, tmp_path):
    with pytest.raises(OSError, match=rf"^cannot load {tmp_path}: it has neither config.json nor adapter_config.json"):
        load_model(tmp_path)
    folder = shutil.copytree(sources / "classifier", tmp_path / "model")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(OSError, match=rf"^cannot load {folder}: its weights are damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(OSError, match=rf"^cannot load {folder}: .*no file named model.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(OSError, match=rf"^cannot load {folder}: .*config.json"):
        load_model(folder)
    (tmp_path / "authors.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"authors\.pth is a text file that begins with 'nothing'"):
        load_model(tmp_path / "authors.pth")


@pytest.mark.parametrize("content", ["[]", '"text"', "3", "null"])
@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("classifier", "config.json"),
        ("timm", "config.json"),
        ("adapter", "adapter_config.json"),
        ("classifier", "preprocessor_config.json"),
    ],
)
def test_json_that_is_not_an_object_is_named(source, file, content, sources, tmp_path):
    folder = shutil.copytree(sources / source, tmp_path / "model")
    (folder / file).write_text(content)
    got = {"[]": r"\[\]", '"text"': "'text'", "3": "3", "null": "None"}[content]
    with pytest.raises(OSError, match=rf"^cannot load {folder}: its {file} must hold a JSON object, got {got}$"):
        load_model(folder)


@pytest.mark.parametrize(
    ("source", "file", "field", "value", "expected"),
    [
        ("upernet", "config.json", "backbone_config", "twins", "a JSON object"),
        ("upernet", "config.json", "backbone_config", [], "a JSON object"),
        ("classifier", "config.json", "architectures", "TwinsModel", "a list"),
        ("classifier", "config.json", "model_type", 3, "a string"),
        ("classifier", "preprocessor_config.json", "image_processor_type", [], "a string"),
        ("adapter", "adapter_config.json", "auto_mapping", "text", "a JSON object"),
        ("adapter", "adapter_config.json", "base_model_name_or_path", 3, "a string"),
    ],
)
def test_field_with_a_wrong_type_is_named(source, file, field, value, expected, sources, tmp_path):
    folder = shutil.copytree(sources / source, tmp_path / "model")
    fields = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(fields | {field: value}))
    with pytest.raises(OSError, match=rf"^cannot load {folder}: {field} in its {file} must be {expected}, got "):
        load_model(folder)


def test_labels_of_an_adapter_that_are_not_a_list_are_named(sources, tmp_path):
    folder = shutil.copytree(sources / "adapter", tmp_path / "adapter")
    (folder / "label_names.json").write_text('{"0": "cat", "1": "dog"}')
    with pytest.raises(OSError, match=rf"^cannot load {folder}: its label_names\.json must hold a list, got "):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("allow_new_weights", [False, True])
@pytest.mark.parametrize("source", ["classifier", "timm", "adapter"])
def test_weights_that_are_not_finite_are_refused(source, allow_new_weights, value, sources, tmp_path):
    folder = shutil.copytree(sources / source, tmp_path / "model")
    file = next(folder.glob("*.safetensors"))
    weights = load_file(file)
    name = max(name for name in weights if "fc1" in name)
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    message = rf"^{folder} has \d+ weights that are not finite \(NaN or infinite\), such as \S+: pass another model\.$"
    with pytest.raises(ValueError, match=message):
        load_pretrained(folder, allow_new_weights=allow_new_weights)


def test_task_must_be_known(sources):
    with pytest.raises(ValueError, match=r"task must be one of image-classification, .*, or None, got 'detection'"):
        load_model(sources / "classifier", "detection")


def test_image_processor_has_the_saved_class(sources, tmp_path):
    folder = shutil.copytree(sources / "semantic-fpn", tmp_path / "model")
    SegformerImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    _, processor = load_model(folder, SEGMENTATION)
    assert type(processor).__name__.startswith("SegformerImageProcessor")
    _, processor = load_model(folder, SEGMENTATION, image_processor=sources / "upernet")
    assert type(processor) is TwinsImageProcessor
    assert processor.size.longest_edge == 96
    assert load_image_processor(sources / "timm").size.shortest_edge == 248
    assert load_image_processor(sources / "authors.pth").size.shortest_edge == 256


def test_missing_image_processor_gives_one_sentence(sources, tmp_path):
    folder = shutil.copytree(sources / "classifier", tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    reason = r"it has no image processor \(preprocessor_config\.json\); with save_pretrained, save there the one"
    message = rf"^cannot load {folder}: {reason}"
    with pytest.raises(OSError, match=message):
        load_model(folder, CLASSIFICATION)
    assert load_model(folder, CLASSIFICATION, image_processor=sources / "timm")[1].size.shortest_edge == 248
    with pytest.raises(OSError, match=r"^cannot load somebody/else: there is no such folder, and on the Hub: "):
        load_model(folder, CLASSIFICATION, image_processor="somebody/else")


def test_unreachable_image_processor_is_not_treated_as_missing(monkeypatch):
    """Training would use the authors' image processor instead."""

    def cannot_connect(name, file_name, _raise_exceptions_for_connection_errors=True, **options):
        if _raise_exceptions_for_connection_errors:
            raise OSError("no connection")
        return "config.json" if file_name == "config.json" else None

    for module in ("hf_twins.loading", "hf_twins.loading.sources"):
        monkeypatch.setattr(f"{module}.cached_file", cannot_connect)
    monkeypatch.setattr("hf_twins.loading.read_json", lambda *arguments: None)
    with pytest.raises(OSError, match=r"^cannot load me/model: .* on the Hub: no connection$") as raised:
        load_image_processor("me/model")
    assert not isinstance(raised.value, MissingProcessorError)


def test_image_processor_that_crops_is_refused_for_segmentation(sources, tmp_path):
    folder = shutil.copytree(sources / "semantic-fpn", tmp_path / "model")
    TwinsImageProcessor().save_pretrained(folder)
    with pytest.raises(ValueError, match=rf"{folder} has do_center_crop=True, .* save it with do_center_crop=False"):
        load_model(folder, SEGMENTATION)


def test_fields_of_the_configuration_are_changed(sources):
    model, _ = load_model(sources / "classifier", BACKBONE, out_features=["stage1", "stage2"])
    assert model.out_features == ["stage1", "stage2"]
    segmenter, _ = load_model(sources / "upernet", SEGMENTATION, window_padding="zeros", drop_path_rate=0.3)
    assert segmenter.backbone.config.window_padding == "zeros"
    assert segmenter.backbone.config.drop_path_rate == 0.3
    half, _ = load_model(sources / "classifier", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("source", ["classifier", "semantic-fpn", "model", "backbone"])
def test_twins_model_with_its_own_code(source, sources, tmp_path, monkeypatch):
    """transformers prefers the installed package, and so never asks the user for consent."""
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    folder = shutil.copytree(sources / source, tmp_path / "model")
    save_remote_code(folder)
    for trust_remote_code in (False, True):
        model, processor = load_model(folder, trust_remote_code=trust_remote_code)
        assert type(model) is MODEL_CLASSES[type(model).__name__]
        assert type(processor) is TwinsImageProcessor


def test_hub(sources, tmp_path):
    with serve_hub(tokens={"hf_write": "write"}) as hub, hub.in_process(tmp_path / "home", token="hf_write"):
        HfApi().create_repo("me/timm")
        first = HfApi().upload_folder(repo_id="me/timm", folder_path=sources / "timm").oid
        adapter = shutil.copytree(sources / "adapter-of-timm", tmp_path / "adapter")
        config = json.loads((adapter / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": "me/timm", "revision": first}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        HfApi().create_repo("me/adapter")
        HfApi().upload_folder(repo_id="me/adapter", folder_path=adapter)
        HfApi().upload_folder(repo_id="me/timm", folder_path=sources / "upernet")
        model, processor = load_model("me/adapter", CLASSIFICATION)
        assert processor.size.shortest_edge == 248
        expected = load_pretrained(sources / "adapter-of-timm").state_dict()
        assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
        assert type(load_model("me/timm", CLASSIFICATION, revision=first)[0]) is TwinsForImageClassification
        with pytest.raises(
            OSError, match=r"^cannot load me/nothing: there is no such folder, and on the Hub: .*me/nothing"
        ):
            load_model("me/nothing")
        with pytest.raises(
            OSError,
            match=r"^cannot load me/timm: there is no such folder, and on the Hub: v3 is not a valid git identifier",
        ):
            load_model("me/timm", revision="v3")


def test_importing_the_package_does_not_import_the_loader():
    assert "load_model" in dir(hf_twins)
    assert hf_twins.LAZY_NAMES["load_model"] == "loading"


@pytest.mark.parametrize("task", ["image-classification", "backbone", None])
def test_weights_of_a_larger_model_than_the_configuration_are_refused(task, tmp_path):
    TwinsForImageClassification(tiny_config(depths=[2, 2, 2])).save_pretrained(tmp_path)
    TwinsImageProcessor().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"depths": [1, 2, 2]}))
    with pytest.raises(ValueError, match=r"has weights of layers that its configuration lacks, such as .*encoder"):
        load_model(tmp_path, task)


def test_backbone_ignores_weights_of_stages_that_it_does_not_build(tmp_path):
    TwinsForImageClassification(tiny_config()).save_pretrained(tmp_path)
    TwinsImageProcessor().save_pretrained(tmp_path)
    model, _ = load_model(tmp_path, "backbone", out_features=["stage1", "stage2"])
    assert len(model.encoder.stages) == 2


def test_labels_with_gaps_are_refused(tmp_path):
    TwinsForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path)
    TwinsImageProcessor().save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields |= {"id2label": {"0": "a", "2": "b", "5": "c"}, "label2id": {"a": 0, "b": 2, "c": 5}}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"id2label must have the keys 0 to 2, got 0, 2, 5"):
        load_model(tmp_path, "image-classification")
