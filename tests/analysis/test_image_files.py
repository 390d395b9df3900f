"""Image files as networks take them, and files that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.__main__ import main
from analysis.errors import InputError
from analysis.image_files import MOST_PIXELS, find_images, read_image
from analysis.models import open_model


@pytest.fixture
def picture(tmp_path):
    """Write an image of given pixels and give its path."""

    def make(name, pixels, **options):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)
        return path

    return make


def test_an_image_of_the_right_size_keeps_its_pixels(picture):
    pixels = np.random.default_rng(0).integers(256, size=(6, 4, 3))
    image = read_image(picture("a.png", pixels), (3, 6, 4))
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.permute(1, 2, 0), pixels)


def test_the_middle_of_a_wide_image_is_taken_at_the_shorter_sides_scale(picture):
    pixels = np.zeros((8, 24, 3))
    pixels[:, 8:16] = 200
    image = read_image(picture("wide.png", pixels), (3, 4, 4))
    assert image.shape == (3, 4, 4)
    assert (image[:, :, 1:3] == 200).all()
    assert image.float().mean() > 150


def test_grey_colour_palette_and_transparency_become_what_the_network_takes(picture):
    grey = picture("grey.png", np.full((4, 4), 90))
    assert (read_image(grey, (3, 4, 4)) == 90).all()
    colour = picture("colour.png", np.full((4, 4, 3), 90))
    assert read_image(colour, (1, 4, 4)).shape == (1, 4, 4)
    clear = picture("clear.png", np.full((4, 4, 4), 90))
    assert read_image(clear, (3, 4, 4)).shape == (3, 4, 4)


def test_an_image_is_turned_as_its_camera_says(picture):
    pixels = np.zeros((4, 4, 3))
    pixels[0] = 255  # the top row
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = read_image(picture("turned.png", pixels, exif=exif), (3, 4, 4))
    assert (image[:, 3] == 255).all()
    assert (image[:, 0] == 0).all()


def test_a_folder_gives_its_images_by_name(picture, tmp_path):
    for name in ("b/2.png", "b/1.png", "a/3.PNG"):
        picture(name, np.zeros((2, 2, 3)), format="PNG")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path])]
    assert found == ["a/3.PNG", "b/1.png", "b/2.png"]


def test_files_that_are_no_images_are_refused_in_a_sentence(tmp_path, picture):
    cases = {"no image that can be read": b"<html>not found</html>", "empty": b""}
    for content in cases.values():
        path = tmp_path / "x.png"
        path.write_bytes(content)
        with pytest.raises(InputError, match="no image that can be read; give one of"):
            read_image(path, (3, 4, 4))
    good = picture("good.png", np.random.default_rng(0).integers(256, size=(64, 64, 3)))
    good.write_bytes(good.read_bytes()[:2000])
    with pytest.raises(InputError, match="damaged image"):
        read_image(good, (3, 4, 4))
    with pytest.raises(InputError, match="There is no file"):
        find_images([tmp_path / "missing.png"])
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="There is no image in"):
        find_images([tmp_path / "none"])


def test_an_image_that_claims_too_many_pixels_is_refused_before_they_are_read(tmp_path):
    side = int(MOST_PIXELS**0.5) + 1
    header = f"P6 {side} {side} 255\n".encode()
    path = tmp_path / "bomb.ppm"
    path.write_bytes(header + bytes(64))
    with pytest.raises(InputError, match="pixels, more than"):
        read_image(path, (3, 4, 4))


def test_predict_gives_the_logits_of_the_network(picture, make_checkpoint, tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "network.safetensors")
    generator = np.random.default_rng(0)
    paths = [
        picture(f"images/{name}.png", generator.integers(256, size=(32, 32, 3))) for name in "ab"
    ]
    assert main(["predict", str(checkpoint), str(tmp_path / "images"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    model = open_model(checkpoint)
    assert document["classes"] == list(model.metadata.classes)
    images = torch.stack([read_image(path, (3, 32, 32)) for path in paths]).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.metadata.mean, model.metadata.std))
    with torch.no_grad():
        expected = model.backbone((images - mean) / std)
    for row, path, logits in zip(document["images"], paths, expected, strict=True):
        assert row["file"] == str(path)
        np.testing.assert_allclose(row["logits"], logits, rtol=1e-4, atol=1e-4)
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert len(row["top"]) == 5
        assert row["top"][0]["class"] == document["classes"][int(logits.argmax())]


def test_predict_takes_another_normalisation(picture, make_checkpoint, tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "network.safetensors")
    picture("a.png", np.random.default_rng(0).integers(256, size=(32, 32, 3)))
    arguments = ["predict", str(checkpoint), str(tmp_path / "a.png"), "--json"]
    outputs = []
    for more in ([], ["--mean", "0.5,0.4,0.3", "--std", "0.5,0.25,0.2"], ["--mean", "0,0,0"]):
        assert main([*arguments, *more]) == 0
        outputs.append(json.loads(capsys.readouterr().out)["images"][0]["logits"])
    assert outputs[0] == outputs[1] != outputs[2]
    for wrong in (["--std", "0"], ["--mean", "0.5,0.5"]):
        assert main([*arguments, *wrong]) == 2
    assert "3 numbers each, std above 0" in capsys.readouterr().err
    assert main([*arguments, "--top", "0"]) == 2
    with pytest.raises(SystemExit):
        main([*arguments, "--mean", "red"])


def test_predict_prints_a_line_an_image(picture, make_checkpoint, tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "network.safetensors")
    path = picture("a.png", np.zeros((40, 60, 3)))
    assert main(["predict", str(checkpoint), str(path), "--top", "2"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: ")
    assert line.count("%") == 2
