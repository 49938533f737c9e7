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


import pytest

from hf_twins import TwinsConfig
from hf_twins._utils.labels import label_fields, label_names


NAMES = [f"name {index}" for index in range(12)]


def test_names_are_in_the_order_of_their_ids():
    fields = label_fields(NAMES)
    assert fields["label2id"]["name 11"] == 11
    # As JSON has them that was sorted as text.
    config = TwinsConfig(id2label={str(index): NAMES[index] for index in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)})
    assert label_names(config) == NAMES


def test_ids_with_gaps_are_refused():
    with pytest.raises(ValueError, match=r"id2label must have the keys 0 to 2, got 0, 2, 5"):
        label_names(TwinsConfig(id2label={0: "a", 2: "b", 5: "c"}))
