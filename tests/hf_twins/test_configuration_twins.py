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
import copy
import json

import pytest
from testing_utils import tiny_config
from transformers import AutoConfig

from hf_twins import TWINS_VARIANTS, TwinsConfig


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_sizes": []}, "hidden_sizes must have one number for each stage"),
        ({"depths": [2, 2]}, r"depths must have one number for each of the 3 stages .* got \[2, 2\]"),
        ({"num_attention_heads": [1, 2, 3, 4]}, "num_attention_heads must have one number for each of the 3 stages"),
        ({"mlp_ratios": [4]}, "mlp_ratios must have one number for each of the 3 stages"),
        ({"sr_ratios": [4, 2]}, "sr_ratios must have one number for each of the 3 stages"),
        ({"depths": [2, 0, 2]}, r"depths must be positive numbers, got \[2, 0, 2\]"),
        ({"hidden_sizes": [16, -32, 48]}, "hidden_sizes must be positive numbers"),
        ({"sr_ratios": [0, 2, 1]}, "sr_ratios must be positive numbers"),
        ({"mlp_ratios": [4, float("nan"), 4]}, "mlp_ratios must be positive numbers"),
        ({"mlp_ratios": [4, 4, float("inf")]}, "mlp_ratios must be positive numbers"),
        ({"mlp_ratios": [0.01, 4, 4]}, "mlp_ratios must leave at least one channel"),
        ({"num_attention_heads": [1, 5, 3]}, "5 does not divide 32"),
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"window_size": 0}, "window_size must be at least 1, got 0"),
        (
            {"window_padding": "reflect"},
            "window_padding must be one of masked, zeros, authors_segmentation, got 'refl",
        ),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be a probability in \[0, 1\), got 1.0"),
        ({"hidden_dropout_prob": -0.1}, "hidden_dropout_prob must be a probability"),
        ({"attention_probs_dropout_prob": float("nan")}, "attention_probs_dropout_prob must be a probability"),
        ({"fpn_hidden_size": 0}, "fpn_hidden_size must be at least 1, got 0"),
        ({"decoder_hidden_size": -128}, "decoder_hidden_size must be at least 1, got -128"),
        ({"classifier_dropout_prob": 1}, r"classifier_dropout_prob must be a probability in \[0, 1\), got 1"),
        ({"classifier_dropout_prob": float("nan")}, "classifier_dropout_prob must be a probability"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be a positive number, got 0.0"),
        ({"initializer_range": -0.02}, "initializer_range must be a positive number"),
        ({"hidden_act": "gulu"}, "hidden_act must be one of .*gelu.*, got 'gulu'"),
        ({"out_features": ["stage9"]}, "out_features must be a subset of stage_names"),
        ({"out_features": ["stage1"], "out_indices": [2]}, "out_features and out_indices should correspond"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_config_with_bad_field_names_it(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        {"depths": 3},
        {"window_size": "7"},
        {"patch_padding": "yes"},
        {"fpn_hidden_size": 1.5},
        {"semantic_loss_ignore_index": None},
    ],
    ids="-".join,
)
def test_config_with_field_of_wrong_type_names_it(overrides):
    (name,) = overrides
    with pytest.raises(Exception, match=name):
        tiny_config(**overrides)


def test_config_after_json_is_equal(tmp_path):
    config = tiny_config(
        window_padding="zeros",
        patch_padding=True,
        use_stage_norm=True,
        out_indices=[1, -1],
        fpn_hidden_size=12,
        decoder_hidden_size=10,
        classifier_dropout_prob=0.2,
        semantic_loss_ignore_index=-100,
    )
    config.save_pretrained(tmp_path)
    for reloaded in (TwinsConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(reloaded) is TwinsConfig
        assert reloaded.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    # Values that follow from other fields are not stored, since they could contradict them.
    stored = json.loads((tmp_path / "config.json").read_text())
    assert not {"stage_names", "hidden_size", "num_hidden_layers", "min_image_size"} & set(stored)


def test_config_fields_given_as_tuples_become_lists():
    assert tiny_config(depths=(2, 3, 2)).to_dict() == tiny_config(depths=[2, 3, 2]).to_dict()


def test_config_instances_do_not_share_their_lists():
    TwinsConfig().depths.append(1)
    assert TwinsConfig().depths == [2, 2, 10, 4]


@pytest.mark.parametrize("name", TWINS_VARIANTS)
def test_from_variant_has_the_variants_architecture(name):
    config = TwinsConfig.from_variant(name)
    variant = TWINS_VARIANTS[name]
    assert tuple(config.hidden_sizes) == variant.hidden_sizes
    assert config.window_size == (7 if "svt" in name else None)
    assert config.sr_ratios == [8, 4, 2, 1]
    assert config.num_labels == 1000
    assert config.min_image_size == 32


def test_from_variant_takes_overrides():
    config = TwinsConfig.from_variant("twins-pcpvt-base", num_labels=7, num_channels=1, drop_path_rate=0.3)
    assert (config.num_labels, config.num_channels, config.drop_path_rate) == (7, 1, 0.3)
    config = TwinsConfig.from_variant("twins-svt-small", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    assert config.num_labels == 2


def test_from_variant_with_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"name must be one of twins-pcpvt-small, .*twins-svt-large, got 'twins-svt'"):
        TwinsConfig.from_variant("twins-svt")


@pytest.mark.parametrize(("patch_padding", "expected"), [(False, 32), (True, 29)])
def test_min_image_size_follows_from_patch_size_and_sr_ratios(patch_padding, expected):
    assert TwinsConfig(patch_padding=patch_padding).min_image_size == expected
    assert TwinsConfig(sr_ratios=[1, 1, 1, 1], patch_padding=patch_padding).min_image_size == (
        1 if patch_padding else 32
    )
    assert TwinsConfig(sr_ratios=[16, 4, 2, 1]).min_image_size == 64
