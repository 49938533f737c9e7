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
"""Export of Twins models to ONNX, OpenVINO, AOTInductor and ExecuTorch.

    from hf_twins.export.source import load_source
    from hf_twins.export.to_onnx import export_onnx

    export_onnx(load_source("timm/twins_svt_small.in1k"), "outputs/onnx")

An export is a folder that is written atomically. It contains the model's file, `twins_export.json`, which says how to
run it, `config.json` with the names of the labels, `preprocessor_config.json`, and `run_exported.py`, which runs the
model without this package.
"""
