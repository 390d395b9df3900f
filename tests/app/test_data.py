"""More data: downloads on a click, zips of images that are not trusted, splits, estimates."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import stat
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from analysis.errors import Cancelled
from analysis.features import sample_images
from app import jobs
from app.sources import checkpoints, computing, datasets, downloads, estimates, studies, uploads
from auglocal.errors import WorkError


def picture(seed=0, size=(16, 16)):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pack(*names, **contents):
    """A zip with an image under each name, or with other contents."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for index, name in enumerate(names):
            if isinstance(name, zipfile.ZipInfo) or name.endswith((".png", ".PNG")):
                archive.writestr(name, picture(index))
            else:
                archive.writestr(name, b"text")
        for name, content in contents.items():
            archive.writestr(name, content)
    stream.seek(0)
    return stream


# ------------------------------------------------------------------------------------------- zips


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.png", "a/2.png", "b/1.png"], ("a", "b")),
        (["pets/a/1.png", "pets/b/1.PNG", "pets/readme.txt"], ("a", "b")),
        (["1.png", "2.png", ".hidden.png", "__MACOSX/1.png"], ("no class",)),
        (["all/1.png", "all/2.png"], ("no class",)),
        (["x/train/a/1.png", "x/train/b/1.png", "x/val/a/2.png", "x/val/b/2.png"], ("a", "b")),
    ],
)
def test_a_zip_of_images_becomes_data_that_can_be_read(names, classes):
    dataset = uploads.keep_images("my pets.zip", pack(*names))
    assert datasets.datasets_on_disk()[dataset] == "my pets"
    sample = sample_images(dataset)
    expected = [n for n in names if n.lower().endswith(".png") and "hidden" not in n]
    expected = [n for n in expected if "MACOSX" not in n and "train" not in n]
    assert len(sample.images) == len(expected)
    assert sample.classes == classes
    assert not datasets.is_missing_folder(dataset)
    assert ("train" in datasets.splits_of(dataset)) == ("x/train/a/1.png" in names)


def test_the_same_zip_is_kept_once_and_can_be_deleted(library):
    first = uploads.keep_images("a.zip", pack("1.png"))
    assert uploads.keep_images("b.zip", pack("1.png")) == first
    assert list(datasets.uploaded_images()) == [first]
    uploads.delete_images(first)
    assert list((library / "images").iterdir()) == []


def test_only_uploaded_images_are_ever_deleted(image_folder):
    uploads.delete_images(f"imagefolder:{image_folder}")
    assert (image_folder / "train").is_dir()


def link(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: io.BytesIO(b"no zip"), "not a zip that can be read"),
        (lambda: pack("/etc/1.png"), "leads out of the zip"),
        (lambda: pack("a/../../1.png"), "leads out of the zip"),
        (lambda: pack("..\\1.png"), "leads out of the zip"),
        (lambda: pack("c:1.png"), "name that no file should have"),
        (lambda: pack("a\n/1.png"), "name that no file should have"),
        (lambda: pack(link("1.png")), "is a link or a device"),
        (lambda: pack("1.png", "more.zip"), "is another archive"),
        (lambda: pack("a/b/c/d/1.png"), "deeper than 3 folders"),
        (lambda: pack("readme.txt"), "holds no images"),
        (lambda: pack("1.png", "a/2.png"), "laid out otherwise"),
        (lambda: pack(**{"1.png": b"<html>"}), "is not a readable image"),
        (lambda: pack(**{"1.png": picture()[:60]}), "is not a readable image"),
    ],
)
def test_a_zip_that_could_do_harm_is_refused_whole(content, sentence, library):
    with pytest.raises(ValueError, match=sentence):
        uploads.keep_images("x.zip", content())
    assert not [path for path in (library / "images").glob("**/*") if path.is_file()]
    assert datasets.uploaded_images() == {}


def test_an_encrypted_image_is_refused():
    stream = pack("1.png")
    content = bytearray(stream.getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    with pytest.raises(ValueError, match="is encrypted"):
        uploads.keep_images("x.zip", io.BytesIO(bytes(content)))


@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("MOST_ENTRIES", 2, "has 3 entries, and at most 2"),
        ("MOST_BYTES", 100, "MiB unpacked, and at most"),
        ("MOST_IMAGE_BYTES", 100, "is larger than"),
        ("MOST_PIXELS", 100, "has 16 x 16 pixels"),
        ("MOST_SETS", 0, "There are already 0 uploaded sets"),
    ],
)
def test_limits_are_told(limit, value, sentence, monkeypatch):
    monkeypatch.setattr(uploads, limit, value)
    with pytest.raises(ValueError, match=sentence):
        uploads.keep_images("x.zip", pack("1.png", "2.png", "3.png"))


def test_a_zip_is_uploaded_and_compared_without_classes(open_app, wait_for_job):
    app = open_app("similarity")
    images = pack(*(f"{index}.png" for index in range(40)))
    app.file_uploader(key="images-upload").upload("holidays.zip", images.getvalue()).run()
    assert not app.exception
    assert not app.error
    assert app.selectbox(key="data").value in datasets.uploaded_images()
    assert "holidays" in app.selectbox(key="data").options
    app.number_input(key="samples").set_value(40).run()
    app.number_input(key="batch_size").set_value(8).run()
    app.button(key="run-cka").click().run()
    wait_for_job()
    app.run()
    assert not app.error
    assert len(app.get("plotly_chart")) == 5


def test_a_bad_zip_is_refused_in_one_sentence(open_app):
    app = open_app("similarity")
    app.file_uploader(key="images-upload").upload("x.zip", b"PK nothing").run()
    assert "not a zip that can be read" in app.error[0].value


# -------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(tmp_path):
    """Files at an address on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_a_file_is_fetched_with_progress_and_once_only(server, tmp_path):
    folder, url = server
    content = bytes(range(256)) * 10_000
    (folder / "set.tar").write_bytes(content)
    seen, target = [], tmp_path / "set.tar"
    report = lambda *step: seen.append(step)  # noqa: E731
    downloads.fetch(f"{url}/set.tar", target, md5(content), report, lambda: False)
    assert target.read_bytes() == content
    assert seen[-1] == ("Downloading, MB", 3, 3)
    (folder / "set.tar").unlink()
    downloads.fetch(f"{url}/set.tar", target, md5(content), report, lambda: False)


@pytest.mark.parametrize("name", ["set.tar", "nothing.tar"])
def test_what_does_not_arrive_as_it_should_leaves_nothing_behind(server, tmp_path, name):
    folder, url = server
    (folder / "set.tar").write_bytes(b"something else")
    sentence = "not the file that it should be" if name == "set.tar" else "could not be downloaded"
    with pytest.raises(WorkError, match=sentence):
        downloads.fetch(
            f"{url}/{name}", tmp_path / name, md5(b"right"), lambda *step: None, lambda: False
        )
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_cancelled_download_leaves_nothing_behind(server, tmp_path):
    folder, url = server
    (folder / "set.tar").write_bytes(b"x")
    with pytest.raises(Cancelled):
        downloads.fetch(
            f"{url}/set.tar", tmp_path / "set.tar", md5(b"x"), lambda *step: None, lambda: True
        )
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_data_set_is_downloaded_on_a_click_and_never_before(
    open_app, wait_for_job, monkeypatch, tmp_path
):
    fetched = []
    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    monkeypatch.setattr(downloads, "fetch", lambda url, path, *rest: fetched.append(path.name))
    monkeypatch.setattr(
        downloads, "_unpack", lambda name: (datasets.DATA / "cifar-10-batches-py").mkdir()
    )
    app = open_app("similarity")
    assert fetched == []
    assert "CIFAR-10" not in app.selectbox(key="data").options
    app.button(key="get-cifar10").click().run()
    wait_for_job()
    app.run()
    assert fetched == ["cifar-10-python.tar.gz"]
    assert "CIFAR-10" in app.selectbox(key="data").options
    assert app.button(key="have-cifar10").disabled


def test_a_failed_download_says_what_to_do(open_app, wait_for_job, monkeypatch, tmp_path):
    def fail(*words):
        raise WorkError("cifar-10-python.tar.gz could not be downloaded; try again.")

    monkeypatch.setattr(datasets, "DATA", tmp_path / "data")
    monkeypatch.setattr(downloads, "fetch", fail)
    app = open_app("similarity")
    app.button(key="get-cifar10").click().run()
    wait_for_job()
    app.run()
    assert "could not be downloaded; try again" in app.error[0].value.replace("\\", "")
    assert computing.registry().find(downloads.key("cifar10")).state == jobs.FAILED


@pytest.mark.parametrize("name", datasets.DOWNLOADABLE)
def test_torchvision_still_lists_addresses_and_checksums(name):
    for url, file, checksum in downloads._files(name):
        assert url.startswith("http")
        assert Path(file).suffix in (".gz", ".mat")
        assert len(checksum) == 32


# -------------------------------------------------------------------------------------- estimates


def test_time_goes_with_images_and_networks(sha256s, shipped):
    entries, _ = checkpoints.checkpoint_files()
    request = studies.Request("cka", tuple(sha256s), "digits", 1000, 0, 125)
    # the shipped study: 1,000 images, two networks, 3 s
    assert estimates.seconds(request, entries) == pytest.approx(3 + estimates.START)
    double = replace(request, samples=2000)
    assert estimates.seconds(double, entries) == pytest.approx(6 + estimates.START)
    with_floor = replace(request, floor=0)
    assert estimates.seconds(with_floor, entries) == pytest.approx(4.5 + estimates.START)


def test_a_study_of_this_machine_counts_before_one_that_came_along(sha256s, make_study, save):
    request = studies.Request("cka", tuple(sha256s), "digits", 1000, 0, 125)
    study = make_study(sha256s)
    slow = replace(study, provenance=replace(study.provenance, seconds=30.0))
    studies.result_path(request).parent.mkdir(parents=True)
    save(slow, studies.result_path(request))
    entries, _ = checkpoints.checkpoint_files()
    assert estimates.seconds(request, entries) == pytest.approx(30 + estimates.START)


def test_what_was_never_measured_has_no_estimate(sha256s):
    request = studies.Request("rsa", tuple(sha256s), "digits", 1000, 0, 125)
    assert estimates.seconds(request, checkpoints.checkpoint_files()[0]) is None


def test_an_uploaded_set_stands_in_an_address_without_its_folder(library):
    folder = library / "images" / "0123456789abcdef"
    folder.mkdir(parents=True)
    folder.with_suffix(".json").write_text('{"title": "pets"}')
    dataset = f"imagefolder:{folder}"
    assert datasets.written(dataset) == "images:0123456789abcdef"
    assert datasets.read_written("images:0123456789abcdef") == dataset
    assert datasets.read_written("images:../../etc") == f"imagefolder:{library / 'images' / 'etc'}"
    assert datasets.written("digits") == datasets.read_written("digits") == "digits"
