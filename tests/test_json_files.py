"""json_files.py: the JSON of models, whatever is in the file."""

import pytest

from lit_gpt.errors import DataError
from lit_gpt.json_files import read_json, read_json_if_there


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"a": "\xff"}', b"[" * 100_000])
def test_what_is_no_json_object_is_bad_data(content, tmp_path):
    path = tmp_path / "special_tokens_map.json"
    path.write_bytes(content)
    for read in (read_json, read_json_if_there):
        with pytest.raises(DataError, match=r"special_tokens_map\.json"):
            read(path)


def test_a_file_that_is_not_there_is_empty_only_where_that_is_asked_for(tmp_path):
    assert read_json_if_there(tmp_path / "a.json") == {}
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")
