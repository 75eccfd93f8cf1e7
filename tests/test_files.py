"""Files and folders that are never half written, and JSON that is always valid."""

import contextlib
import json
import math

import pytest

from tf_mcvae.files import optional, replacing, write_json


def write(path, text, as_folder):
    if as_folder:
        path.mkdir()
    (path / "a.txt" if as_folder else path).write_text(text)


@pytest.mark.parametrize("as_folder", [False, True])
def test_content_is_replaced(as_folder, tmp_path):
    path = tmp_path / "name"
    for text in ("old", "new"):
        with replacing(path) as temporary:
            write(temporary, text, as_folder)
        assert (path / "a.txt" if as_folder else path).read_text() == text
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("as_folder", [False, True])
def test_old_content_stays_when_writing_fails(as_folder, tmp_path):
    path = tmp_path / "name"
    write(path, "old", as_folder)
    with contextlib.suppress(OSError), replacing(path) as temporary:
        write(temporary, "new", as_folder)
        raise OSError("disk full")
    assert (path / "a.txt" if as_folder else path).read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_optional_fails_with_a_warning(tmp_path):
    with (
        pytest.warns(RuntimeWarning, match=r"The card could not be made(?s:.*)no such colour"),
        optional("The card"),
        replacing(tmp_path / "card"),
    ):
        raise RuntimeError("no such colour")
    assert not list(tmp_path.iterdir())


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1.5, math.nan], "b": (math.inf, "x")})
    values = json.loads((tmp_path / "a.json").read_text())
    assert values == {"a": [1.5, None], "b": [None, "x"]}
