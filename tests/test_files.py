"""Files that are never half written, and JSON that is always valid."""

import contextlib
import json

from tf_mcvae.files import replacing, write_json


def test_replacing_keeps_the_old_content_when_writing_fails(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with contextlib.suppress(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]


def test_json_is_valid_where_numbers_are_not_finite(tmp_path):
    write_json(tmp_path / "file.json", {"a": [float("nan"), 1.0], "b": (float("inf"), "x")})
    assert json.loads((tmp_path / "file.json").read_text()) == {"a": [None, 1.0], "b": [None, "x"]}
