"""Files of limits: what `gates.toml` and `budget.toml` have in common."""

import re

import pytest

from cxr_edge.common.limits import read_limits
from cxr_edge.runtime import UsageError

KNOWN = ("flip_rate", "size_mb")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "limits.toml"


def test_tables_of_numbers_are_read_by_name(path):
    path.write_text('[all]\nsize_mb = 9.5\n["model.onnx"]\nsize_mb = 10\nflip_rate = inf\n')
    found = read_limits(path, KNOWN)
    assert found == {"all": {"size_mb": 9.5}, "model.onnx": {"size_mb": 10, "flip_rate": float("inf")}}
    path.write_text("")
    assert read_limits(path, KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[all]\nsizemb = 1", r"\[all\].*'sizemb'.*flip_rate, size_mb"),
        ("size_mb = 1", "size_mb"),
        ("[model.onnx]\nsize_mb = 1", r'\[model\.onnx\].*\["model\.onnx"\]'),
        ("[all]\nsize_mb = true", r"\[all\].*size_mb.*number"),
        ('[all]\nsize_mb = "10"', r"\[all\].*size_mb.*number"),
        ("[all]\nsize_mb = [1]", r"\[all\].*size_mb.*number"),
        ("[all", "TOML"),
        ("[all]\nsize_mb = 1\nsize_mb = 2", "TOML"),
    ],
)
def test_what_is_no_limit_is_refused_with_the_file_and_the_key(path, text, says):
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"{re.escape(str(path))}: .*{says}"):
        read_limits(path, KNOWN)


def test_a_file_that_cannot_be_read_is_refused(path):
    for wrong in (path, path.parent):
        with pytest.raises(UsageError, match=re.escape(str(wrong))):
            read_limits(wrong, KNOWN)
    path.write_bytes(b"[all]\n# \xff")
    with pytest.raises(UsageError, match="TOML"):
        read_limits(path, KNOWN)
