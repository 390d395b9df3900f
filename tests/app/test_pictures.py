"""Galleries of small pictures."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from app import pictures


def decoded(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_travel_unchanged(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, channels), dtype=np.uint8)
    expected = pixels[..., 0] if channels == 1 else pixels
    np.testing.assert_array_equal(decoded(pictures.data_uri(pixels)), expected)


def test_large_images_are_scaled_down_in_proportion():
    pixels = np.zeros((512, 256, 3), dtype=np.uint8)
    assert decoded(pictures.data_uri(pixels)).shape == (128, 64, 3)


def test_names_stay_text():
    def page():
        import numpy as np

        from app import pictures

        name = '"><script>alert(1)</script><img src=http://elsewhere>'
        picture = pictures.Picture(np.zeros((4, 4, 3), np.uint8), name, (name,), name)
        pictures.gallery([picture])

    app = AppTest.from_function(page).run()
    assert not app.exception
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append((tag, dict(attributes)))

    Reader().feed(app.get("html")[0].proto.body)
    assert "script" not in [tag for tag, _ in tags]
    (image,) = [attributes for tag, attributes in tags if tag == "img"]
    assert image["src"].startswith("data:image/png")
    assert image["alt"].startswith('"><script>')
