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
"""Twins model configuration"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME, auto_docstring


WINDOW_PADDING_MODES = ("masked", "zeros", "authors_segmentation")

# The published variants: the authors' released code, https://github.com/Meituan-AutoML/Twins (the paper's table 1
# gives PCPVT-S and PCPVT-B a second stage of depth 3; the released code and weights have 4).
PCPVT = {
    "hidden_sizes": (64, 128, 320, 512),
    "num_attention_heads": (1, 2, 5, 8),
    "mlp_ratios": (8, 8, 4, 4),
    "window_size": None,
}
SVT = {"mlp_ratios": (4, 4, 4, 4), "window_size": 7}
TWINS_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "twins-pcpvt-small": PCPVT | {"depths": (3, 4, 6, 3)},
    "twins-pcpvt-base": PCPVT | {"depths": (3, 4, 18, 3)},
    "twins-pcpvt-large": PCPVT | {"depths": (3, 8, 27, 3)},
    "twins-svt-small": SVT
    | {"hidden_sizes": (64, 128, 256, 512), "num_attention_heads": (2, 4, 8, 16), "depths": (2, 2, 10, 4)},
    "twins-svt-base": SVT
    | {"hidden_sizes": (96, 192, 384, 768), "num_attention_heads": (3, 6, 12, 24), "depths": (2, 2, 18, 2)},
    "twins-svt-large": SVT
    | {"hidden_sizes": (128, 256, 512, 1024), "num_attention_heads": (4, 8, 16, 32), "depths": (2, 2, 18, 2)},
}

# Suffixes of weights files, which `from_pretrained` accepts in place of a folder or repository.
WEIGHTS_SUFFIXES = (".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".safetensors")


# No dataset has more labels, and each label takes memory for its name.
MAX_NUM_LABELS = 1_000_000

# Files that are present in folders that transformers saved.
WEIGHTS_FILES = (SAFE_WEIGHTS_NAME, WEIGHTS_NAME)
TRANSFORMERS_FILES = (
    CONFIG_NAME,
    "adapter_config.json",
    *WEIGHTS_FILES,
    *(f"{name}.index.json" for name in WEIGHTS_FILES),
)


def find_weights_file(name_or_path: str | os.PathLike, subfolder: str = "") -> Path | None:
    """Find a weights file without a configuration: the named file, or the only one in a folder without a configuration.

    Raises:
        FileNotFoundError: if a named weights file does not exist.
        ValueError: if a folder has several weights files.
    """
    path = Path(name_or_path, subfolder).absolute()
    if path.name.endswith(WEIGHTS_SUFFIXES) and not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{name_or_path} does not exist: pass a weights file, a folder or a Hub id.")
        return path
    if not path.is_dir() or any((path / name).is_file() for name in TRANSFORMERS_FILES):
        return None
    files = sorted(file for file in path.iterdir() if file.name.endswith(WEIGHTS_SUFFIXES) and file.is_file())
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{name_or_path} has no {CONFIG_NAME}, but several weights files, {names}: pass one of them.")
    return files[0] if files else None


def check_num_labels(num_labels: Any) -> None:
    """Raise a ValueError unless `num_labels` is None or a valid number, before a name for each label is created."""
    if num_labels is not None and not (isinstance(num_labels, int) and 0 <= num_labels <= MAX_NUM_LABELS):
        raise ValueError(f"num_labels must be a whole number from 0 to {MAX_NUM_LABELS}, got {num_labels!r}.")


class TwinsCheckpointReader:
    """Loads checkpoints in transformers' format, and refuses those of timm and the authors.

    Configurations, models and image processors load checkpoints by `TwinsConfig.checkpoint_reader`. Importing the package
    hf_twins replaces it with one that also reads checkpoints of timm and the authors. Remote code without the package has
    only this one.
    """

    advice = "which the hf_twins package can load: `pip install hf_twins`, `import hf_twins`, then use its classes."

    def get_config_dict(self, load: Callable, name_or_path: str | os.PathLike, /, **kwargs: Any) -> tuple[dict, dict]:
        """Same as `load`, which is [`~PreTrainedConfig.get_config_dict`]."""
        self.refuse_file(name_or_path, kwargs.get("subfolder", ""))
        config_dict, unused = load(name_or_path, **kwargs)
        self.refuse_timm(name_or_path, config_dict)
        return config_dict, unused

    def get_image_processor_dict(self, load: Callable, name_or_path: str | os.PathLike, /, **kwargs: Any) -> Any:
        """Same as `load`, which is [`~BaseImageProcessor.get_image_processor_dict`]."""
        self.refuse_file(name_or_path, kwargs.get("subfolder", ""))
        try:
            return load(name_or_path, **kwargs)
        except OSError as no_processor:
            try:
                config_dict, _ = load(name_or_path, image_processor_filename=CONFIG_NAME, **kwargs)
            except OSError:
                raise no_processor from None
            self.refuse_timm(name_or_path, config_dict)
            raise

    def load_model(self, load: Callable, name_or_path: str | os.PathLike | None, /, *args: Any, **kwargs: Any) -> Any:
        """Same as `load`, which is [`~PreTrainedModel.from_pretrained`]."""
        if name_or_path is not None:
            self.refuse_file(name_or_path, kwargs.get("subfolder", ""))
        return load(name_or_path, *args, **kwargs)

    def refuse_file(self, name_or_path: str | os.PathLike, subfolder: str) -> None:
        if find_weights_file(name_or_path, subfolder) is not None:
            raise ValueError(f"{name_or_path} has weights without a configuration, {self.advice}")

    def refuse_timm(self, name_or_path: str | os.PathLike, config_dict: Mapping[str, Any]) -> None:
        if config_dict.get("model_type") != "twins" and "architecture" in config_dict:
            raise ValueError(f"{name_or_path} is a timm checkpoint, {self.advice}")


@auto_docstring(
    custom_intro="""
    Configuration of a Twins model (https://huggingface.co/papers/2104.13840), of either family: Twins-PCPVT or
    Twins-SVT. The defaults are those of twins-svt-small; [`TwinsConfig.from_variant`] returns those of any published variant.
    """
)
@strict
class TwinsConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    patch_size (`int`, *optional*, defaults to 4):
        Side of the first stage's patches in pixels. Every later stage halves the resolution.
    hidden_sizes (`list[int]`, *optional*, defaults to `[64, 128, 256, 512]`):
        Channels of each stage; the list's length is the number of stages.
    num_attention_heads (`list[int]`, *optional*, defaults to `[2, 4, 8, 16]`):
        Attention heads of each stage; each must divide the stage's hidden size.
    depths (`list[int]`, *optional*, defaults to `[2, 2, 10, 4]`):
        Blocks of each stage, at least one: the position encoding follows the first.
    mlp_ratios (`list[float]`, *optional*, defaults to `[4, 4, 4, 4]`):
        Width of each stage's MLP as a multiple of its hidden size.
    sr_ratios (`list[int]`, *optional*, defaults to `[8, 4, 2, 1]`):
        Sub-sampling ratio of each stage's global attention: keys and values are computed from one token for every
        `sr_ratio x sr_ratio` square. 1 means plain global attention.
    window_size (`int`, *optional*, defaults to 7):
        Side of the locally-grouped attention's windows in tokens. With a number, the even blocks of a stage (0, 2, ...)
        attend within windows and the odd ones globally (Twins-SVT); with `None`, all blocks attend globally
        (Twins-PCPVT).
    window_padding (`str`, *optional*, defaults to `"masked"`):
        How to treat feature maps whose sides are not multiples of `window_size`, and so are padded at the right and bottom.
        All three are equivalent if no padding is needed (224 x 224, 448 x 448, ...).

        - `"masked"`: padding is never attended to.
        - `"zeros"`: padding takes part in the attention as zeros, as in timm and in the authors' detection code.
        - `"authors_segmentation"`: masked where both sides need padding, zeros where only one does, as in the authors'
          segmentation code and mmsegmentation, with which the published ADE20K results were measured.
    patch_padding (`bool`, *optional*, defaults to `False`):
        Whether to zero-pad images and feature maps at the right and bottom to complete patches, as in mmsegmentation
        (maps are then `ceil(size / stride)`), or drop incomplete patches (`floor(size / stride)`).
    use_stage_norm (`bool`, *optional*, defaults to `False`):
        Whether each stage ends in a layer norm whose output is also the input of the next stage, as in the authors'
        segmentation models of Twins-SVT.
    layer_norm_eps (`float`, *optional*, defaults to 1e-6):
        Epsilon of the layer norms in blocks, at the ends of stages, and at the end of the model. The layer norms after the
        convolutions of patch embeddings and sub-sampling always use 1e-5.
    fpn_hidden_size (`int`, *optional*, defaults to 256):
        Channels of the feature pyramid of [`TwinsForSemanticSegmentation`].
    decoder_hidden_size (`int`, *optional*, defaults to 128):
        Channels of the decode head of [`TwinsForSemanticSegmentation`].
    classifier_dropout_prob (`float`, *optional*, defaults to 0.1):
        Probability of dropping a channel before the classifier of [`TwinsForSemanticSegmentation`].
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of the pixels that the loss of [`TwinsForSemanticSegmentation`] ignores.

    Raises:
        ValueError: if a field's value is out of range or does not fit the other fields. The message names the field,
            the expected and the given value.

    Example:

    ```python
    >>> from hf_twins import TwinsConfig, TwinsModel

    >>> # Initializing a twins-svt-small style configuration
    >>> configuration = TwinsConfig.from_variant("twins-svt-small")

    >>> # Initializing a model (with random weights) from it
    >>> model = TwinsModel(configuration)

    >>> # Accessing the model configuration
    >>> configuration = model.config
    ```"""

    model_type = "twins"
    # The default plan is for language models. `TwinsEncoder` has the plan for Twins.
    base_model_fsdp_plan = {}
    checkpoint_reader = TwinsCheckpointReader()

    num_channels: int = 3
    patch_size: int = 4
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    num_attention_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    depths: list[int] | tuple[int, ...] = (2, 2, 10, 4)
    mlp_ratios: list[float | int] | tuple[float | int, ...] = (4, 4, 4, 4)
    sr_ratios: list[int] | tuple[int, ...] = (8, 4, 2, 1)
    window_size: int | None = 7
    window_padding: str = "masked"
    patch_padding: bool = False
    use_stage_norm: bool = False
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    fpn_hidden_size: int = 256
    decoder_hidden_size: int = 128
    classifier_dropout_prob: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        # Convert tuples to lists, as JSON does, so that a reloaded configuration equals the saved one.
        for name in ("hidden_sizes", "num_attention_heads", "depths", "mlp_ratios", "sr_ratios"):
            setattr(self, name, list(getattr(self, name)))
        # `@strict` also calls this, but wraps the error in one that is not a ValueError.
        self.validate_architecture()
        check_num_labels(kwargs.get("num_labels"))
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, name: str, **overrides: Any) -> "TwinsConfig":
        """The configuration of a published variant.

        Args:
            name: one of `"twins-pcpvt-small"`, `"twins-pcpvt-base"`, `"twins-pcpvt-large"`, `"twins-svt-small"`,
                `"twins-svt-base"` and `"twins-svt-large"`.
            overrides: any other field of the configuration, e.g. `num_labels=10`. Without `num_labels` or `id2label`
                there are 1000 labels, as in the published classifiers.

        Raises:
            ValueError: if no variant has that name.
        """
        if name not in TWINS_ARCHITECTURES:
            raise ValueError(f"name must be one of {', '.join(TWINS_ARCHITECTURES)}, got {name!r}.")
        num_labels = {"num_labels": 1000} if overrides.get("id2label") is None else {}
        return cls(**TWINS_ARCHITECTURES[name] | num_labels | overrides)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the configuration fields in a folder or repository, and the arguments not used to load them."""
        load = super().get_config_dict
        return cls.checkpoint_reader.get_config_dict(load, pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a dictionary, ready for JSON.

        The field `auto_map` is kept only for classes of remote code, whose code files are saved, too. A model that was
        published with its code, loaded by the installed package and saved again, must not refer to missing files.
        """
        output = super().to_dict()
        if self._auto_class is None:
            output.pop("auto_map", None)
        return output

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone can return: `["stem", "stage1", ...]`."""
        return ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages. Each stage returns one of the hidden states."""
        return len(self.depths)

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def min_image_size(self) -> int:
        """Smallest height and width in pixels at which every stage has a token to attend to."""
        strides = [self.patch_size * 2**stage for stage in range(len(self.depths))]
        if self.patch_padding:
            return max(stride * (ratio - 1) + 1 for stride, ratio in zip(strides, self.sr_ratios))
        return max(stride * ratio for stride, ratio in zip(strides, self.sr_ratios))

    def validate_architecture(self) -> None:
        """Raise a ValueError that names the first field that is out of range or does not fit the others."""
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes must have one number for each stage, got an empty list.")
        for name in ("hidden_sizes", "num_attention_heads", "depths", "mlp_ratios", "sr_ratios"):
            values = getattr(self, name)
            if len(values) != len(self.hidden_sizes):
                raise ValueError(
                    f"{name} must have one number for each of the {len(self.hidden_sizes)} stages in "
                    f"hidden_sizes={self.hidden_sizes}, got {values}."
                )
            if not all(0 < value < float("inf") for value in values):
                raise ValueError(f"{name} must be positive numbers, got {values}.")
        for name in ("num_channels", "patch_size", "window_size", "fpn_hidden_size", "decoder_hidden_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        for hidden_size, num_heads in zip(self.hidden_sizes, self.num_attention_heads):
            if hidden_size % num_heads != 0:
                raise ValueError(
                    f"num_attention_heads must divide hidden_sizes stage by stage, but {num_heads} does not divide "
                    f"{hidden_size} (num_attention_heads={self.num_attention_heads}, hidden_sizes={self.hidden_sizes})."
                )
        for hidden_size, mlp_ratio in zip(self.hidden_sizes, self.mlp_ratios):
            if int(hidden_size * mlp_ratio) < 1:
                raise ValueError(
                    f"mlp_ratios must leave at least one channel, but {mlp_ratio} x {hidden_size} leaves none "
                    f"(mlp_ratios={self.mlp_ratios}, hidden_sizes={self.hidden_sizes})."
                )
        if self.window_padding not in WINDOW_PADDING_MODES:
            raise ValueError(
                f"window_padding must be one of {', '.join(WINDOW_PADDING_MODES)}, got {self.window_padding!r}."
            )
        for name in (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "drop_path_rate",
            "classifier_dropout_prob",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a probability in [0, 1), got {getattr(self, name)}.")
        for name in ("initializer_range", "layer_norm_eps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act must be one of {', '.join(ACT2FN)}, got {self.hidden_act!r}.")


__all__ = ["TwinsConfig"]
