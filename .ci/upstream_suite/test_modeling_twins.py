"""Testing suite for the PyTorch Twins model, on the mixins that every model of transformers is tested with."""

import copy
import unittest

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_BACKBONE_MAPPING_NAMES,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.testing_utils import torch_device

from hf_twins import (
    TwinsBackbone,
    TwinsConfig,
    TwinsForImageClassification,
    TwinsForSemanticSegmentation,
    TwinsImageProcessor,
    TwinsImageProcessorPil,
    TwinsModel,
)

from ...test_backbone_common import BackboneTesterMixin
from ...test_configuration_common import ConfigTester
from ...test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)
from ...test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor


# Entries that transformers' own models have in these mappings, where its tests look up which heads need labels.
MODEL_MAPPING_NAMES["twins"] = "TwinsModel"
MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES["twins"] = "TwinsForImageClassification"
MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES["twins"] = "TwinsForSemanticSegmentation"
MODEL_FOR_BACKBONE_MAPPING_NAMES["twins"] = "TwinsBackbone"


class TwinsModelTester:
    num_attention_heads = [2, 4]
    sr_ratios = [2, 1]

    def __init__(self, parent, batch_size=13, image_size=36, patch_size=4, window_size=3):
        self.parent = parent
        self.batch_size = batch_size
        self.image_size = image_size
        self.patch_size = patch_size
        self.window_size = window_size
        self.num_channels = 3
        self.hidden_sizes = [16, 32]
        self.hidden_size = 16
        self.depths = [2, 2]
        self.num_hidden_layers = len(self.depths)
        self.num_labels = 10
        self.is_training = True
        self.num_hidden_states_types = 2

    def get_config(self):
        return TwinsConfig(
            patch_size=self.patch_size,
            hidden_sizes=self.hidden_sizes,
            num_attention_heads=self.num_attention_heads,
            depths=self.depths,
            mlp_ratios=[2, 2],
            sr_ratios=self.sr_ratios,
            window_size=self.window_size,
            num_labels=self.num_labels,
            fpn_hidden_size=8,
            decoder_hidden_size=8,
            out_features=["stage1", "stage2"],
        )

    def prepare_config_and_inputs(self):
        pixel_values = floats_tensor([self.batch_size, self.num_channels, self.image_size, self.image_size])
        labels = ids_tensor([self.batch_size], self.num_labels)
        return self.get_config(), pixel_values, labels

    def prepare_config_and_inputs_for_common(self):
        config, pixel_values, _ = self.prepare_config_and_inputs()
        return config, {"pixel_values": pixel_values}


class TwinsModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (TwinsModel, TwinsBackbone, TwinsForImageClassification, TwinsForSemanticSegmentation)
    pipeline_model_mapping = {
        "image-feature-extraction": TwinsModel,
        "image-classification": TwinsForImageClassification,
        "image-segmentation": TwinsForSemanticSegmentation,
    }
    test_resize_embeddings = False

    def setUp(self):
        self.model_tester = TwinsModelTester(self)
        self.config_tester = ConfigTester(
            self,
            config_class=TwinsConfig,
            has_text_modality=False,
            common_properties=[
                "patch_size",
                "num_channels",
                "hidden_size",
                "num_attention_heads",
                "num_hidden_layers",
            ],
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="Twins does not use inputs_embeds")
    def test_inputs_embeds(self):
        pass

    @unittest.skip(reason="Twins does not use feedforward chunking")
    def test_feed_forward_chunking(self):
        pass

    def test_model_get_set_embeddings(self):
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config)
            self.assertIsInstance(model.get_input_embeddings(), torch.nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_attention_outputs(self):
        # There is one for each block, alternately locally-grouped and global, with different shapes.
        config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
        grids = [self.model_tester.image_size // self.model_tester.patch_size // 2**stage for stage in range(2)]
        window_tokens = self.model_tester.window_size**2
        expected = []
        for grid, heads, sr_ratio in zip(grids, self.model_tester.num_attention_heads, self.model_tester.sr_ratios):
            expected += [(heads, window_tokens, window_tokens), (heads, grid**2, (grid // sr_ratio) ** 2)]
        for model_class in self.all_model_classes:
            for through_config in (False, True):
                model_config = copy.deepcopy(config)
                model_config._attn_implementation = "eager"
                model_config.output_attentions = through_config
                model = model_class(model_config).to(torch_device).eval()
                kwargs = {} if through_config else {"output_attentions": True}
                with torch.no_grad():
                    attentions = model(**inputs_dict, **kwargs).attentions
                self.assertListEqual([tuple(attention.shape[1:]) for attention in attentions], expected)

    def test_hidden_states_output(self):
        # Hidden states are the first patch embeddings and the output of each stage, as images.
        config, inputs_dict = self.model_tester.prepare_config_and_inputs_for_common()
        grids = [self.model_tester.image_size // self.model_tester.patch_size // 2**stage for stage in range(2)]
        expected = [
            (self.model_tester.batch_size, hidden_size, grid, grid)
            for hidden_size, grid in zip(self.model_tester.hidden_sizes, grids)
        ]
        for model_class in self.all_model_classes:
            for through_config in (False, True):
                model_config = copy.deepcopy(config)
                model_config.output_hidden_states = through_config
                model = model_class(model_config).to(torch_device).eval()
                kwargs = {} if through_config else {"output_hidden_states": True}
                with torch.no_grad():
                    outputs = model(**inputs_dict, **kwargs)
                shapes = [tuple(hidden_state.shape) for hidden_state in outputs.hidden_states]
                self.assertListEqual(shapes, [expected[0], *expected])


class TwinsBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (TwinsBackbone,)
    config_class = TwinsConfig

    def setUp(self):
        self.model_tester = TwinsModelTester(self)


class TwinsImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs.setdefault("size", {"shortest_edge": 20})
        kwargs.setdefault("crop_size", {"height": 18, "width": 18})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self):
        # For transformers' own models, these are found by the model's name.
        return {"torchvision": TwinsImageProcessor, "pil": TwinsImageProcessorPil}

    def expected_output_image_shape(self, images):
        return self.num_channels, 18, 18

    def prepare_post_process_semantic_segmentation_inputs(self):
        logits = floats_tensor([self.batch_size, 5, 6, 7])
        return {"outputs": SemanticSegmenterOutput(logits=logits)}, {"num_labels": 5, "height": 6, "width": 7}


class TwinsImageProcessingTest(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin, unittest.TestCase):
    image_processor_tester_class = TwinsImageProcessingTester
    test_cast_dtype = True

    def setUp(self):
        super().setUp()
        if "post_process" in self._testMethodName:
            # The default center crop is disabled, because predictions for a crop do not cover the image.
            self.image_processor_tester.do_center_crop = False

    @unittest.skip(
        reason="The process that it starts knows transformers' own models only; hf_twins' tests have the like"
    )
    def test_pil_can_run_without_torchvision(self):
        pass
