"""The list of checkpoints, what each one is, and the door for anybody's files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from app import texts, texts_checkpoints
from app.sources import checkpoints, library


def press(app, label):
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception


def entry_of(name):
    return next(entry for entry in checkpoints.checkpoint_files()[0] if entry.name == name)


@pytest.fixture
def foreign(tmp_path):
    """A ResNet-20 with torchvision-like names as DataParallel and a training script save it."""
    from auglocal.backbones.registry import build_backbone

    torch.manual_seed(3)
    backbone = build_backbone("resnet20", 10)
    state = {}
    for key, value in backbone.state_dict().items():
        name = key.replace("layers.stem.conv", "conv1").replace("layers.stem.norm", "bn1")
        if name.startswith("layers.stage"):
            stage, block = name.split(".")[1].removeprefix("stage").split("_block")
            rest = name.split(".", 2)[2].replace("norm", "bn").replace("shortcut", "downsample")
            name = f"layer{stage}.{int(block) - 1}.{rest}"
        state["module." + name.replace("head.linear", "fc")] = value
    path = tmp_path / "theirs.pth.tar"
    torch.save({"state_dict": state, "epoch": 7, "best_prec1": 91.5}, path)
    return path, backbone.eval()


# ------------------------------------------------------------------------ the list


def test_lists_shipped_checkpoints_with_what_they_say(open_app):
    app = open_app("checkpoints")
    assert not app.exception
    table = app.dataframe[0].value
    assert list(table["Name"]) == ["auglocal-net", "bp-net"]
    assert list(table["Rule"]) == ["AugLocal", "BP"]
    assert list(table["Accuracy"]) == [90.0, 90.0]
    assert list(table["Parameters"]) == [272474, 272474]
    assert texts.plain("resnet20, 10 layers") in list(app.table[0].value["Value"])


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
    press(app, "Use as B")
    assert app.title[0].value == "Similarity"
    assert app.selectbox(key="b").value == sha256s[0]


def test_only_what_differs_between_two_is_listed(open_app, sha256s):
    app = open_app("checkpoints", checkpoint=sha256s[0][:12])
    rows = next(
        table.value
        for table in app.table
        if "Option" in table.value and len(table.value.columns) == 3
    )
    assert {"rule", "seed"} <= set(rows["Option"])
    assert "architecture" not in set(rows["Option"])


def test_a_finished_run_is_among_them(open_app, tmp_path, add_net):
    run = tmp_path / "runs" / "my-run"
    run.mkdir(parents=True)
    add_net(run / "checkpoint.safetensors", "bp", 5)
    (run / "config.json").write_text(json.dumps({"epochs": 1}))
    line = {"epoch": 1, "losses": {"head": 1.0}, "accuracies": {"head": 0.5}, "test_accuracy": 0.4}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    app = open_app("checkpoints", checkpoint=entry_of("my-run").sha256[:12])
    assert "trained here" in list(app.dataframe[0].value["From"])
    assert "Training curves" in [tab.label for tab in app.tabs]
    assert len(app.get("plotly_chart")) == 2


# ------------------------------------------------------------------------ files of ours


def test_an_uploaded_checkpoint_is_checked_kept_and_deleted(open_app, tmp_path, add_net, library):
    path = tmp_path / "mine.safetensors"
    sha256 = add_net(path, "bp", 9)
    app = open_app("checkpoints")
    app.file_uploader(key="upload-0").upload("![x](http:a).safetensors", path.read_bytes()).run()
    assert not app.exception
    assert not app.error
    kept = library / "checkpoints" / f"{sha256}.safetensors"
    assert kept.read_bytes() == path.read_bytes()
    assert app.selectbox(key="checkpoint").value == sha256
    assert "![" not in app.success[0].value
    assert "uploaded" in list(app.dataframe[0].value["From"])
    assert app.query_params["checkpoint"] == sha256[:12]
    press(app, "Delete it")
    assert not app.warning
    assert app.query_params["checkpoint"] == app.selectbox(key="checkpoint").value[:12]
    left = [path for path in library.rglob("*") if path.is_file()]
    assert left == []
    assert "uploaded" not in list(app.dataframe[0].value["From"])


def test_several_files_at_once_are_told_of_one_by_one(open_app, tmp_path, add_net):
    for seed in (11, 12):
        add_net(tmp_path / f"{seed}.safetensors", "bp", seed)
    app = open_app("checkpoints")
    uploader = app.file_uploader(key="upload-0")
    uploader.set_value(
        [
            ("11.safetensors", (tmp_path / "11.safetensors").read_bytes(), None),
            ("bad.pth", b"<html>", None),
            ("12.safetensors", (tmp_path / "12.safetensors").read_bytes(), None),
        ]
    ).run()
    assert not app.exception
    assert len(app.success) == 2
    assert "bad.pth" in texts_of(app.error)


def texts_of(elements):
    return " ".join(element.value.replace("\\", "") for element in elements)


def test_a_checkpoint_can_be_renamed_and_labelled(open_app, tmp_path, add_net):
    sha256 = add_net(tmp_path / "mine.safetensors", "bp", 9)
    library.receive("mine.safetensors", (tmp_path / "mine.safetensors").read_bytes())
    app = open_app("checkpoints", checkpoint=sha256[:12])
    next(box for box in app.text_input if box.label == "Name").set_value("Ours, seed 9")
    next(box for box in app.selectbox if box.label == "Rule that trained it").set_value("dgl")
    press(app, "Keep")
    entry = entry_of("Ours, seed 9")
    assert (entry.sha256, entry.rule) == (sha256, "dgl")
    assert "DGL" in list(app.dataframe[0].value["Rule"])


# ------------------------------------------------------------------------ anybody's files


def test_a_file_of_somebody_else_opens_with_what_was_found(open_app, foreign, library):
    path, backbone = foreign
    app = open_app("checkpoints")
    app.file_uploader(key="upload-0").upload(path.name, path.read_bytes()).run()
    assert not app.exception
    assert "theirs is a resnet20 with 10 classes" in texts_of(app.success)
    assert "assumed" in texts_of(app.success)
    assert {"What the file said", "Images and classes"} <= {tab.label for tab in app.tabs}
    report = next(table.value for table in app.table if "Found" in table.value)
    found = {row["Found"]: row["In the file"].replace("\\", "") for _, row in report.iterrows()}
    assert found["Weights found under"] == "state_dict"
    assert found["Prefixes taken off"] == "module."
    assert "epoch 7" in found["Beside the weights"]
    from analysis.models import open_model

    entry = entry_of("theirs")
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    model = open_model(entry.path)
    with torch.no_grad():
        expected = backbone(model.preprocess(images))
        np.testing.assert_allclose(model.backbone(model.preprocess(images)), expected, atol=1e-5)


def test_another_set_of_weights_in_a_file_can_be_taken(open_app, foreign, tmp_path):
    path, _ = foreign
    saved = torch.load(path, weights_only=True)
    saved["ema_state_dict"] = {key: value + 1 for key, value in saved["state_dict"].items()}
    torch.save(saved, path)
    app = open_app("checkpoints")
    app.file_uploader[0].upload(path.name, path.read_bytes()).run()
    report = next(table.value for table in app.table if "Found" in table.value)
    assert any("ema" in text for text in report["In the file"])
    app.text_input(key="upload-state").set_value("ema_state_dict").run()
    app.file_uploader[0].upload("average.pth", path.read_bytes()).run()
    assert not app.exception
    biases = []
    for name in ("theirs", "average"):
        with safe_open(entry_of(name).path, framework="pt") as file:
            biases.append(file.get_tensor("head.linear.bias"))
    torch.testing.assert_close(biases[1], biases[0] + 1)


def test_what_a_file_does_not_say_is_set_by_hand(open_app, foreign):
    path, _ = foreign
    library.receive(path.name, path.read_bytes())
    before = entry_of("theirs")
    app = open_app("checkpoints", checkpoint=before.sha256[:12])
    boxes = {box.label: box for box in app.text_input}
    boxes["Mean of pixel values in 0 to 1, by channel (red first)"].set_value("0.1, 0.2, 0.3")
    boxes["Their standard deviation"].set_value("0.4, 0.5, 0.6")
    boxes["Data it was trained on"].set_value("CIFAR-10")
    press(app, "Apply")
    after = entry_of("theirs")
    about = checkpoints.metadata(after)
    assert (about.mean, about.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert about.dataset == "CIFAR-10"
    assert after.sha256 != before.sha256
    assert not before.path.exists()
    assert app.selectbox(key="checkpoint").value == after.sha256
    # The file's own classes are still those that were assumed.
    assert about.config["opened_from"]["assumed"] == ["classes"]
    # Links to what it was, and to the file it came from, lead to what it is now.
    for old in (before.sha256, hashlib.sha256(path.read_bytes()).hexdigest()):
        again = open_app("checkpoints", checkpoint=old[:12])
        assert again.selectbox(key="checkpoint").value == after.sha256
        assert not again.warning
    boxes = {box.label: box for box in app.text_input}
    boxes["Their standard deviation"].set_value("a lot")
    press(app, "Apply")
    assert "must be numbers" in texts_of(app.error)
    assert entry_of("theirs").sha256 == after.sha256


def test_preprocessing_is_tried_on_labelled_images(open_app, foreign):
    path, _ = foreign
    library.receive(path.name, path.read_bytes())
    app = open_app("checkpoints", checkpoint=entry_of("theirs").sha256[:12])
    app.selectbox(key="evidence-data").set_value("digits").run()
    press(app, "Try on 1,000 images")
    trials = next(frame.value for frame in app.dataframe if "Preprocessing" in frame.value.columns)
    assert len(trials) == 12
    # Random weights tell nothing of images.
    assert "better than chance" in texts_of(app.warning)
    assert "Use the best" not in [button.label for button in app.button]


def test_what_was_found_out_is_used(open_app, foreign):
    path, _ = foreign
    kept, _ = library.receive(path.name, path.read_bytes())
    trial = {
        "name": "ImageNet, BGR",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "channel_order": "BGR",
        "accuracy": 0.9,
        "low": 0.88,
        "high": 0.92,
        "cross_entropy": 0.3,
        "class_order": None,
    }
    classes = [f"class {index}" for index in range(10)]
    library.write_note(
        kept,
        evidence={
            "images": "500 images",
            "best": "ImageNet, BGR",
            "tells": True,
            "alike": ["ImageNet, BGR"],
            "classes": classes,
            "sentence": "ImageNet, BGR: right on 90%.",
            "trials": [trial],
        },
    )
    stem = "layers.stem.conv.weight"
    with safe_open(kept, framework="pt") as file:
        before = file.get_tensor(stem)
    app = open_app("checkpoints", checkpoint=kept.stem[:12])
    press(app, "Use the best")
    entry = entry_of("theirs")
    about = checkpoints.metadata(entry)
    assert about.mean == (0.485, 0.456, 0.406)
    assert about.classes == tuple(classes)
    assert about.config["opened_from"]["assumed"] == []
    with safe_open(entry.path, framework="pt") as file:
        torch.testing.assert_close(file.get_tensor(stem), before.flip(1))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.pth", b"PK\x03\x04 pickled", "damaged"),
        ("page.safetensors", b"<!DOCTYPE html><title>Sign in</title>", "web page"),
        ("empty.safetensors", b"", "empty"),
        ("foreign.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "no tensors"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(open_app, library, name, content, words):
    app = open_app("checkpoints")
    app.file_uploader(key="upload-0").upload(name, content).run()
    assert not app.exception
    sentence = texts_of(app.error)
    assert name in sentence
    assert words in sentence
    assert "Traceback" not in sentence
    assert [path for path in library.rglob("*") if path.is_file()] == []


def test_a_network_that_nobody_knows_leaves_nothing_behind(library, tmp_path):
    path = tmp_path / "odd.pt"
    torch.save({"first.weight": torch.ones(3, 4), "second.weight": torch.ones(5, 3)}, path)
    from app.sources.library import receive

    with pytest.raises(ValueError, match=r"from_module"):
        receive("odd.pt", path.read_bytes())
    assert [path for path in library.rglob("*") if path.is_file()] == []


def test_the_size_of_uploads_and_of_the_library_is_bounded(monkeypatch, library, tmp_path, add_net):
    from app.sources import library as kept

    monkeypatch.setattr(kept, "MOST_UPLOADED_BYTES", 10)
    with pytest.raises(ValueError, match="larger than"):
        kept.receive("x.safetensors", b"0" * 11)
    monkeypatch.undo()
    monkeypatch.setenv("AUGLOCAL_LIBRARY", str(library))
    add_net(tmp_path / "1.safetensors", "bp", 1)
    kept.receive("1.safetensors", (tmp_path / "1.safetensors").read_bytes())
    assert kept.room_note() == ""
    monkeypatch.setattr(kept, "MOST_LIBRARY_BYTES", kept.library_bytes() + 1000)
    assert "delete checkpoints that are no longer needed" in kept.room_note()
    with pytest.raises(ValueError, match="no room for another"):
        kept.receive("2.safetensors", b"0" * 2000)


def test_plain_text_has_no_markdown_left():
    assert texts.plain("![a](http://b/c)") == "\\!\\[a\\]\\(http\u2060\\:\\/\\/b\\/c\\)"
    assert texts.plain("a\nb") == "a b"
    assert texts.plain("www.a.b, c@d.e") == "www\u2060\\.a\\.b, c\u2060\\@d\\.e"


def test_numbers_and_names_are_read_as_they_are_typed():
    assert texts_checkpoints.parse_numbers("0.5, 1,2e-1", "mean") == (0.5, 1.0, 0.2)
    with pytest.raises(ValueError, match="must be numbers with commas"):
        texts_checkpoints.parse_numbers("0.5; 1", "mean")
    assert texts_checkpoints.parse_classes("cat, dog\nship,") == ("cat", "dog", "ship")
    assert texts_checkpoints.parse_classes(" ") is None
