"""Images on a page: a gallery of small pictures with captions, sharp at any size.

Pictures travel inside the page's text as PNG, so that no request is needed for them. Names come
from files: everything is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import streamlit as st

LARGEST = 128  # pixels a side that are sent; larger images are scaled down
SIDE = 72  # pixels a side on the screen

STYLE = (
    "<style>.pictures{display:grid;gap:12px 10px;"
    "grid-template-columns:repeat(auto-fill,minmax(84px,1fr))}"
    ".pictures figure{margin:0;line-height:1.25;font-size:0.8rem;overflow-wrap:anywhere}"
    ".pictures img{display:block;width:SIDEpx;height:SIDEpx;object-fit:contain;"
    "image-rendering:pixelated;border-radius:3px;margin-bottom:4px;"
    "background:rgba(128,140,148,0.15)}"
    ".pictures figcaption span{opacity:0.75}</style>"
)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image of a gallery.

    Attributes:
        pixels: (H, W, C) uint8, C is 1 or 3.
        title: its first line.
        lines: what follows.
        details: a sentence for who points at it, or hears it.
    """

    pixels: npt.NDArray[np.uint8]
    title: str
    lines: tuple[str, ...] = ()
    details: str = ""


def gallery(pictures: Sequence[Picture], side: int = SIDE) -> None:
    """Draw pictures in as many columns as there is room for."""
    figures = "".join(map(_figure, pictures))
    style = STYLE.replace("SIDE", str(side))
    st.html(f'{style}<div class="pictures">{figures}</div>')


def _figure(picture: Picture) -> str:
    """One picture with its caption."""
    details = html.escape(picture.details or picture.title)
    lines = "".join(f"<br><span>{html.escape(line)}</span>" for line in picture.lines)
    return (
        f'<figure title="{details}"><img alt="{details}" src="{data_uri(picture.pixels)}">'
        f"<figcaption><b>{html.escape(picture.title)}</b>{lines}</figcaption></figure>"
    )


def data_uri(pixels: npt.NDArray[np.uint8]) -> str:
    """Pixels (H, W, C) as the address of a PNG that holds them."""
    return _encoded(pixels.tobytes(), pixels.shape)


@lru_cache(maxsize=256)
def _encoded(content: bytes, shape: tuple[int, ...]) -> str:
    """Encode once: a gallery stays while a slider moves."""
    from PIL import Image

    pixels = np.frombuffer(content, np.uint8).reshape(shape)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)  # small already; time matters
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
