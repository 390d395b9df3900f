"""The list of checkpoints and the door for more."""

from __future__ import annotations

import pytest

from app import texts
from app.sources import checkpoints


def test_lists_shipped_checkpoints_with_what_they_say(open_app):
    app = open_app("checkpoints")
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table["Name"]) == ["auglocal-net", "bp-net"]
    assert list(table["Rule"]) == ["AugLocal", "BP"]
    assert list(table["Accuracy"]) == [90.0, 90.0]
    assert texts.plain("resnet20, 10 layers") in list(app.table[0].value["Value"])


def test_an_uploaded_checkpoint_is_checked_kept_and_deleted(open_app, tmp_path, add_net, library):
    path = tmp_path / "mine.safetensors"
    sha256 = add_net(path, "bp", 9)
    app = open_app("checkpoints")
    app.file_uploader[0].upload("![x](http:a).safetensors", path.read_bytes()).run()
    assert not app.exception
    assert not app.error
    assert (library / "checkpoints" / f"{sha256}.safetensors").exists()
    assert app.selectbox(key="checkpoint").value == sha256
    assert "\\!\\[x\\]\\(http\\:a\\)" in app.success[0].value
    assert "uploaded" in list(app.dataframe[0].value["From"])
    assert app.query_params["checkpoint"] == sha256[:12]
    next(button for button in app.button if button.label == "Delete").click().run()
    assert not app.exception
    assert not app.warning
    assert app.query_params["checkpoint"] == app.selectbox(key="checkpoint").value[:12]
    assert not list((library / "checkpoints").iterdir())
    assert "uploaded" not in list(app.dataframe[0].value["From"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("weights.pth", b"PK\x03\x04 pickled"),
        ("page.safetensors", b"<!DOCTYPE html><title>Sign in</title>"),
        ("empty.safetensors", b""),
        ("foreign.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(open_app, library, name, content):
    app = open_app("checkpoints")
    app.file_uploader[0].upload(name, content).run()
    assert not app.exception
    assert "safetensors" in app.error[0].value
    assert "Traceback" not in app.error[0].value
    assert not list((library / "checkpoints").iterdir())


def test_a_damaged_file_among_good_ones_is_named_and_left_out(open_app, shipped):
    (shipped / "broken.safetensors").write_bytes(b"\x00" * 100)
    app = open_app("checkpoints")
    assert not app.exception
    assert "broken.safetensors" in app.text[0].value
    assert len(app.dataframe[0].value) == 2


def test_no_checkpoints_is_a_state_of_its_own(open_app, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(tmp_path))
    app = open_app("checkpoints")
    assert not app.exception
    assert app.subheader[0].value == "No checkpoints yet"
    assert len(app.file_uploader) == 1


def test_a_checkpoint_can_be_used_for_a_comparison(open_app, sha256s):
    app = open_app("checkpoints", checkpoint=sha256s[0][:12])
    next(button for button in app.button if button.label == "Use as B").click().run()
    assert app.title[0].value == "Similarity"
    assert app.selectbox(key="b").value == sha256s[0]


def test_the_number_of_uploads_is_bounded(monkeypatch, library, tmp_path, add_net):
    monkeypatch.setattr(checkpoints, "MOST_UPLOADS", 1)
    for seed in (1, 2):
        add_net(tmp_path / f"{seed}.safetensors", "bp", seed)
    checkpoints.keep_upload("1.safetensors", (tmp_path / "1.safetensors").read_bytes())
    checkpoints.keep_upload("1.safetensors", (tmp_path / "1.safetensors").read_bytes())
    with pytest.raises(ValueError, match="already 1 uploaded"):
        checkpoints.keep_upload("2.safetensors", (tmp_path / "2.safetensors").read_bytes())


def test_the_size_of_uploads_is_bounded(monkeypatch, library):
    monkeypatch.setattr(checkpoints, "MOST_UPLOADED_BYTES", 10)
    with pytest.raises(ValueError, match="larger than"):
        checkpoints.keep_upload("x.safetensors", b"0" * 11)


def test_plain_text_has_no_markdown_left():
    assert texts.plain("![a](http://b/c)") == "\\!\\[a\\]\\(http\\:\\/\\/b\\/c\\)"
    assert texts.plain("a\nb") == "a b"
