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
from hf_twins._utils.labels import distinct_names, label_fields, label_names, read_label_names


NAMES = [f"name {index}" for index in range(12)]


def test_names_are_in_the_order_of_their_ids():
    fields = label_fields(NAMES)
    assert fields["label2id"]["name 11"] == 11
    # JSON files may have keys sorted as text.
    config = TwinsConfig(id2label={str(index): NAMES[index] for index in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)})
    assert label_names(config) == NAMES


def test_ids_with_gaps_are_refused():
    with pytest.raises(ValueError, match=r"id2label must have the keys 0 to 2, got 0, 2, 5"):
        label_names(TwinsConfig(id2label={0: "a", 2: "b", 5: "c"}))


def test_equal_names_are_distinguished_by_their_numbers():
    assert distinct_names(["crane", "dog", "crane"]) == ["crane (0)", "dog", "crane (2)"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"cat\ndog\n", ["cat", "dog"]),
        (b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", ["cat", "dog"]),
        (b" tench, Tinca tinca \n$x_1$\n\n", ["tench, Tinca tinca", "$x_1$"]),
        (b"0\n1\n2", ["0", "1", "2"]),
        (b"1 cat\n0 dog", ["1 cat", "0 dog"]),
    ],
)
def test_names_are_the_lines_of_a_file(content, names, tmp_path):
    (tmp_path / "names.txt").write_bytes(content)
    assert read_label_names(tmp_path / "names.txt") == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have at least two names, one per line, got nothing"),
        (b"cat,dog", "must have at least two names, one per line, got cat,dog"),
        (b"cat\n\ndog", "must have one name per line, got none on line 2: remove the line"),
        (
            b"crane\ndog\ncrane\n",
            "must have a name of its own for each label, got crane in lines 1 and 3: tell them apart",
        ),
        (b"0 cat\n1 dog", "must have names alone, .* got a number before each, as in '0 cat': remove the numbers"),
        (b"1: cat\n2: dog", "must have names alone"),
        (b"caf\xe9\ndog", "must be UTF-8 text with one name per line: save it as such"),
        ("cat\ndog".encode("utf-16"), "must be UTF-8 text"),
    ],
)
def test_file_without_valid_names_is_refused(content, message, tmp_path):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"names.txt {message}"):
        read_label_names(tmp_path / "names.txt")
