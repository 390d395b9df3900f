"""Navigation and the shared sidebar; `streamlit run app` starts here."""

from __future__ import annotations

import streamlit as st
from streamlit import net_util

from app import widgets
from app.sources import computing

SIDEBAR = 208  # pixels; four short names need no more
WIDEST = 1280  # pixels; longer lines are hard to read

# A page elsewhere that tries our WebSocket is refused; without this, Streamlit asks a server on the
# internet for this machine's address first.
net_util.get_external_ip = lambda: None

st.set_page_config(page_title="AugLocal", layout="wide", initial_sidebar_state=SIDEBAR)
page = st.navigation(
    [
        st.Page("views/overview.py", title="Overview", default=True),
        st.Page("views/checkpoints.py", title="Checkpoints"),
        st.Page("views/compare.py", title="Compare"),
        st.Page("views/probes.py", title="Probes"),
        st.Page("views/geometry.py", title="Geometry"),
    ]
)
with st.container(width=WIDEST):
    page.run()
running = computing.registry().running()
if running is not None and page.title in ("Overview", "Checkpoints"):
    with st.sidebar:
        widgets.progress(running.key)
