"""One image under the lens: the page in every state, and what is kept of uploads."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

from analysis.errors import Cancelled
from app import jobs
from app.sources import checkpoints, computing, lens

QUERY = {"data": "digits", "samples": "40", "seed": "0", "lens_train": "60"}
FITTED: dict[str, bytes] = {}


def requests_of(sha256s):
    return [lens.LensRequest(sha256, "digits", 40, 0, 60) for sha256 in sha256s]


@pytest.fixture
def fitted(sha256s):
    """Lenses of the shipped pair, as jobs leave them."""
    entries = {entry.sha256: entry for entry in checkpoints.checkpoint_files()[0]}
    for request in requests_of(sha256s):
        if request.sha256 not in FITTED:
            work = lens._work([request], [entries[request.sha256]])
            assert work(lambda *step: None, lambda: False) == 1
            FITTED[request.sha256] = request.path.read_bytes()
        request.path.parent.mkdir(parents=True, exist_ok=True)
        request.path.write_bytes(FITTED[request.sha256])
    return sha256s


def heatmaps(figures):
    return [figure for figure in figures if figure["data"][0]["type"] == "heatmap"]


def picture(size=(40, 24), colour=(200, 30, 30), kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format=kind, **options)
    return stream.getvalue()


def fit_buttons(app) -> list[str]:
    return [button.label for button in app.button if button.label.startswith("Fit")]


def start(app):
    """The button that starts the fit; the page has others, which fetch data."""
    return next(button for button in app.button if button.label.startswith("Fit"))


def uploader(app):
    """The door for one's own image; the page has another one, for a zip of them."""
    return app.file_uploader(key="image-upload-0")


def shown_text(app) -> str:
    parts = [*app.markdown, *app.caption, *app.warning, *app.error, *app.info]
    return " ".join(re.sub(r"\\(.)", r"\1", part.value) for part in parts)


# ------------------------------------------------------------------------------------------ states


def test_offers_to_fit_what_is_not_fitted_yet(open_app):
    app = open_app("lens", **QUERY)
    assert not app.exception
    assert fit_buttons(app) == ["Fit the probes of bp-net and auglocal-net"]
    assert "60 training images" in shown_text(app)
    assert not app.get("plotly_chart")


def test_probes_are_fitted_once_in_a_job_and_found_again(open_app, wait_for_job, figures_of):
    app = open_app("lens", **QUERY)
    start(app).click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    assert not fit_buttons(app)
    assert len(heatmaps(figures_of(app))) == 2
    again = open_app("lens", **QUERY)
    assert len(heatmaps(figures_of(again))) == 2
    other = open_app("lens", **{**QUERY, "lens_train": "70"})
    assert "70 training images, about" in shown_text(other)


def test_what_is_fitted_is_shown_while_the_other_is_offered(open_app, figures_of, fitted):
    requests_of(fitted)[1].path.unlink()
    app = open_app("lens", **QUERY)
    assert not app.exception
    assert fit_buttons(app) == ["Fit the probes of auglocal-net"]
    assert len(heatmaps(figures_of(app))) == 1


def test_says_what_to_do_where_there_are_no_checkpoints(open_app, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(tmp_path))
    app = open_app("lens")
    assert not app.exception
    assert app.subheader[0].value == "No checkpoints yet"


def test_data_that_are_not_here_are_said_to_be_missing(open_app, tmp_path):
    app = open_app("lens", data=f"imagefolder:{tmp_path / 'nowhere'}")
    assert not app.exception
    assert "The images are not here" in [heading.value for heading in app.subheader]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("there are too few images"), "There are too few images."),
        (Cancelled("x"), "Cancelled; nothing was saved."),
        (RuntimeError("secret"), "Something unexpected went wrong (RuntimeError)"),
    ],
)
def test_a_job_that_does_not_end_well_says_so(open_app, wait_for_job, monkeypatch, error, expected):
    def work(requests, entries):
        def steps(report, cancelled):
            raise error

        return steps

    monkeypatch.setattr(lens, "_work", work)
    app = open_app("lens", **QUERY)
    start(app).click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert expected in shown_text(app)
    assert "secret" not in shown_text(app)
    assert fit_buttons(app) == ["Fit the probes of bp-net and auglocal-net"]


def test_a_running_job_shows_its_progress_and_can_be_cancelled(open_app, wait_for_job, monkeypatch):
    begun = threading.Event()

    def work(requests, entries):
        def steps(report, cancelled):
            report("Reading training images", 1, 4)
            begun.set()
            while not cancelled():
                begun.wait(0.01)
            raise Cancelled("stopped")

        return steps

    monkeypatch.setattr(lens, "_work", work)
    app = open_app("lens", **QUERY)
    start(app).click().run()
    begun.wait(10)
    app.run()
    cancel = next(b for b in app.button if b.label == "Cancel")
    cancel.click().run()
    wait_for_job()
    app.run()
    assert "Cancelled" in shown_text(app)


def test_an_interrupted_job_is_told(open_app, sha256s):
    key = lens.job_key(requests_of(sha256s))
    computing.registry()._write(jobs.Job(key, "Fitting"))
    app = open_app("lens", **QUERY)
    assert "Interrupted, because the app was closed" in shown_text(app)


def test_a_damaged_lens_is_fitted_again(open_app, fitted):
    for request in requests_of(fitted):
        request.path.write_bytes(b"PK\x03\x04")
    app = open_app("lens", **QUERY)
    assert not app.exception
    assert fit_buttons(app) == ["Fit the probes of bp-net and auglocal-net"]


# -------------------------------------------------------------------------------------------- view


def test_shows_a_strip_a_network_a_curve_and_neighbours(open_app, figures_of, fitted):
    app = open_app("lens", **QUERY)
    assert not app.exception
    figures = figures_of(app)
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert [title for title in titles if title.startswith("Probes of")] == [
        "Probes of BP, bp-net",
        "Probes of AugLocal, auglocal-net",
    ]
    assert any(title.startswith("Probability of") for title in titles)
    assert sum(title.startswith("Nearest to it in") for title in titles) == 2
    text = shown_text(app)
    assert "60 training images and never to this one" in text
    assert "temperature 1, not calibrated" in text
    assert "BP trains no auxiliary networks." in text


def test_what_a_strip_shows_is_what_the_model_and_its_probes_say(open_app, figures_of, fitted):
    app = open_app("lens", **QUERY, image="7")
    import torch

    from analysis.models import open_model
    from auglocal.data import load_dataset

    entry = next(e for e in checkpoints.checkpoint_files()[0] if e.sha256 == fitted[0])
    model = open_model(entry.path)
    image = load_dataset("digits").splits["test"].take(torch.tensor([7]))
    with torch.no_grad():
        expected = model.backbone(model.preprocess(image)).softmax(1)[0].numpy()
    document = decode(heatmaps(figures_of(app))[0]["data"][0]["z"])
    np.testing.assert_allclose(document[::-1, -1], expected, atol=1e-5)
    np.testing.assert_allclose(document.sum(axis=0), 1, atol=1e-5)


def decode(value):
    """A matrix as plotly sends it."""
    import base64

    raw = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
    return raw.reshape([int(part) for part in value["shape"].split(",")])


def test_a_link_reproduces_the_view(open_app, fitted):
    query = {**QUERY, "image": "5", "layer": "stem", "class": "3", "metric": "euclidean"}
    app = open_app("lens", a=fitted[1][:12], b=fitted[0][:12], **query, lens_way="By number")
    assert not app.exception
    assert app.number_input(key="image_number").value == 5
    assert app.selectbox(key="layer").value == "stem"
    assert app.selectbox(key="class").value == "3"
    assert "By Euclidean distance" in shown_text(app)
    for name, value in query.items():
        assert app.query_params[name] == value
    assert app.query_params["a"] == fitted[1][:12]


def test_one_network_alone_has_one_strip(open_app, figures_of, fitted):
    app = open_app("lens", **QUERY)
    app.selectbox(key="b").set_value("").run()
    assert not app.exception
    assert len(heatmaps(figures_of(app))) == 1
    assert app.query_params["b"] == "none"
    again = open_app("lens", **QUERY, b="none")
    assert not again.warning
    assert again.selectbox(key="b").value == ""
    assert len(heatmaps(figures_of(again))) == 1


def test_hard_images_come_in_the_order_of_disagreement(open_app, fitted):
    lenses = [lens.find(request) for request in requests_of(fitted)]
    mean = np.mean([part.disagreement for part in lenses], axis=0)
    order = lenses[0].test_indices[np.argsort(-mean, kind="stable")]
    app = open_app("lens", **QUERY)
    assert app.query_params["image"] == str(order[0])
    app.number_input(key="image_place").set_value(3).run()
    assert app.query_params["image"] == str(order[2])
    assert not app.exception


def test_images_are_picked_by_class_and_by_number(open_app, fitted):
    app = open_app("lens", **QUERY)
    app.segmented_control(key="lens_way").set_value("By class").run()
    app.selectbox(key="image_class").set_value("4").run()
    app.number_input(key="image_place").set_value(1).run()
    assert "**4**" in [part.value for part in app.markdown]
    assert app.selectbox(key="class").value == "4"
    app.segmented_control(key="lens_way").set_value("By number").run()
    app.number_input(key="image_number").set_value(11).run()
    assert app.query_params["image"] == "11"
    assert not app.exception


def test_a_number_beyond_the_split_gives_way(open_app, fitted):
    app = open_app("lens", **QUERY, image="99999999")
    assert not app.exception
    assert int(app.query_params["image"]) < 10_000


def test_other_choices_of_layer_and_class_move_the_marks(open_app, figures_of, fitted):
    app = open_app("lens", **QUERY)
    app.selectbox(key="layer").set_value("stem").run()
    app.selectbox(key="class").set_value("9").run()
    strip = heatmaps(figures_of(app))[0]
    ring = next(t for t in strip["data"] if t.get("marker", {}).get("symbol") == "circle-open")
    assert (ring["x"], ring["y"]) == ([0], [0])
    assert app.query_params["class"] == "9"


# ----------------------------------------------------------------------------------------- exports


@pytest.fixture
def view(fitted):
    from app.texts_lens import View

    entries = {entry.sha256: entry for entry in checkpoints.checkpoint_files()[0]}
    (request, _), entry = requests_of(fitted), entries[fitted[0]]
    seen = lens.data_images("digits", None, [7])[0]
    return View(entry, request, lens.find(request), seen, lens.answer(request, entry, seen.pixels))


def test_tables_hold_every_number(view):
    from app import texts_lens

    rows = list(csv.DictReader(io.StringIO(texts_lens.beliefs_csv([view]))))
    assert len(rows) == 11 * 10  # ten layers' probes and the classifier, ten classes
    sums: dict[str, float] = {}
    for row in rows:
        sums[row["layer"]] = sums.get(row["layer"], 0) + float(row["probability"])
    assert sums == pytest.approx(dict.fromkeys(sums, 1.0))
    found = lens.neighbours(view.lens, view.said, "cosine")
    near = list(csv.DictReader(io.StringIO(texts_lens.neighbours_csv([view], [found]))))
    assert len(near) == 10 * 5
    train = lens.labels("digits", None, "train")
    assert all(int(row["class"]) == train[int(row["training_image"])] for row in near)
    document = json.loads(texts_lens.lens_json([view], [found]))
    (network,) = document["networks"]
    assert network["sha256"] == view.entry.sha256
    assert network["readers"][-1]["kind"] == "classifier"
    assert len(network["neighbours"]["layers"]["stem"]) == 5


def test_the_lines_to_redo_it_give_the_same_numbers(view, monkeypatch, capsys):
    from app import texts_lens

    lines = texts_lens.python_lines([view], 7, [str(view.entry.path)])
    scope: dict[str, object] = {}
    exec(lines, scope)
    np.testing.assert_allclose(scope["answer"].probabilities, view.said.probabilities, atol=1e-6)


def test_the_verdict_is_true_whichever_way(view):
    from dataclasses import replace

    from app import texts_lens

    probabilities = np.zeros((11, 10))
    probabilities[:3, 1] = 1
    probabilities[3:, 2] = 1
    said = replace(view.said, probabilities=probabilities)
    seen = replace(view.seen, label=2)
    text = texts_lens.verdict(replace(view, said=said, seen=seen), 3).replace("\\", "")
    assert text == (
        "**BP** says 2 (1.000), which is right; all probes from stage1_block3 on say 2."
    )
    text = texts_lens.verdict(replace(view, said=said, seen=replace(seen, label=4)), 3)
    assert "but it is 4" in text
    text = texts_lens.verdict(replace(view, said=said, seen=replace(seen, label=None)), 0)
    assert "right" not in text
    assert "probes of all layers" in text
    assert "only the last" in texts_lens.verdict(replace(view, said=said), 9)


# ----------------------------------------------------------------------------------------- uploads


def test_an_uploaded_image_is_kept_by_its_checksum_and_answered(open_app, fitted, library):
    app = open_app("lens", **QUERY)
    app.segmented_control(key="lens_way").set_value("Your own").run()
    uploader(app).upload("![x](http:a).png", picture()).run()
    assert not app.exception
    assert not app.error
    (kept,) = (library / "images").glob("*.png")
    assert app.query_params["image"] == kept.stem[:12]
    assert "![x](http\u2060:a).png, as the network sees it: 32 x 32" in shown_text(app)
    assert "but it is" not in shown_text(app)
    again = open_app("lens", **QUERY, image=kept.stem[:12], lens_way="Your own")
    assert again.query_params["image"] == kept.stem[:12]
    assert not again.warning
    next(b for b in again.button if b.label == "Delete this image").click().run()
    assert not again.exception
    assert not list((library / "images").iterdir())


def test_a_link_to_an_image_elsewhere_is_told(open_app, fitted):
    app = open_app("lens", **QUERY, image="0123456789abcdef")
    assert not app.exception
    assert app.warning[0].value == "This link refers to an image not on this machine."
    app.number_input(key="image_place").set_value(2).run()
    assert not app.warning


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>",
        b"\x89PNG\r\n\x1a\n broken",
        picture()[:60],
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_image_is_refused(open_app, fitted, library, content):
    app = open_app("lens", **QUERY)
    app.segmented_control(key="lens_way").set_value("Your own").run()
    uploader(app).upload("x.png", content).run()
    assert not app.exception
    assert "x\\.png is no image that can be read, or a damaged one" in app.error[0].value
    assert not app.get("plotly_chart")  # nothing of the image before
    assert app.caption[-1].value == "Choose another image to go on."
    assert not list((library / "images").glob("*"))


def huge_png(width, height):
    """The head of a PNG of so many pixels; no reader needs more to refuse it."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + crc + b"\0\0\0\0IDAT\0\0\0\0"


def test_images_that_unpack_to_too_much_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="64 million pixels, and at most 50 million are read"):
        lens.keep_image("bomb.png", picture((8000, 8000)))
    with pytest.raises(ValueError, match="bomb.png has too many pixels: at most 50 million"):
        lens.keep_image("bomb.png", huge_png(20_000, 20_000))
    monkeypatch.setattr(lens, "MOST_UPLOADED_BYTES", 10)
    with pytest.raises(ValueError, match="larger than"):
        lens.keep_image("large.png", picture())


def test_the_number_of_uploads_is_bounded(monkeypatch):
    monkeypatch.setattr(lens, "MOST_UPLOADS", 1)
    lens.keep_image("1.png", picture())
    lens.keep_image("1.png", picture())
    with pytest.raises(ValueError, match="already 1 uploaded images; delete one first"):
        lens.keep_image("2.png", picture(colour=(0, 0, 0)))


def kept_pixels(content: bytes) -> np.ndarray:
    sha256 = lens.keep_image("x", content)
    with Image.open(lens._image_folder() / f"{sha256}.png") as image:
        assert image.mode == "RGB"
        return np.array(image)


def test_a_camera_s_turn_is_undone_and_its_notes_are_left_out():
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (0, 0, 0))
    notes = Image.Exif()
    notes[274] = 6  # to be turned clockwise
    notes[270] = "where it was taken"
    stream = io.BytesIO()
    image.save(stream, format="PNG", exif=notes)
    pixels = kept_pixels(stream.getvalue())
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 1].tolist() == [0, 0, 0]
    (path,) = lens._image_folder().glob("*.png")
    assert b"where it was taken" not in path.read_bytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "I;16", "CMYK"])
def test_pixels_of_every_kind_become_rgb_on_white(mode):
    stream = io.BytesIO()
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 1000], [65535, 500]], np.uint16))
    else:
        image = Image.new("RGBA", (2, 2), (255, 0, 0, 0)).convert(mode)
    image.save(stream, format="TIFF" if mode == "CMYK" else "PNG")
    pixels = kept_pixels(stream.getvalue())
    assert pixels.shape == (2, 2, 3)
    if mode in ("RGBA", "LA"):
        assert (pixels == 255).all()
    if mode == "I;16":
        assert pixels[0, 0, 0] == 0
        assert pixels[1, 0, 0] == 255


def test_large_images_are_kept_smaller():
    assert kept_pixels(picture((3000, 1500), kind="JPEG")).shape == (512, 1024, 3)


def test_a_network_sees_the_centre_at_its_own_size(fitted):
    entry = next(e for e in checkpoints.checkpoint_files()[0] if e.sha256 == fitted[0])
    image = Image.new("RGB", (96, 32), "white")
    image.paste((0, 0, 255), (32, 0, 64, 32))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    sha256 = lens.keep_image("x", stream.getvalue())
    seen = lens.uploaded_image(sha256, lens.open_entry(entry))
    assert seen.pixels.shape == (32, 32, 3)
    assert (seen.pixels == [0, 0, 255]).all()
    lens.delete_image(sha256)
    lens._fitted.clear()
    with pytest.raises(ValueError, match="is gone; upload it again"):
        lens.uploaded_image(sha256, lens.open_entry(entry))


def test_few_lenses_are_kept(fitted, monkeypatch):
    monkeypatch.setattr(lens, "KEPT_LENSES", 1)
    request = requests_of(fitted)[0]
    lens._keep(lens.find(request), request.path)
    assert [path.name for path in request.path.parent.glob("*.npz")] == [request.path.name]
