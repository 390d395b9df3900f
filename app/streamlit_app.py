"""Navigation and the shared sidebar; `streamlit run app` starts here."""

from __future__ import annotations

import os

import streamlit as st
from streamlit import net_util

from app import links, offering
from app.sources import catalogue

SIDEBAR = 208  # pixels; short names need no more
WIDEST = 1280  # pixels; longer lines are hard to read

# A page elsewhere that tries our WebSocket is refused; without this, Streamlit asks a server on the
# internet for this machine's address first.
net_util.get_external_ip = lambda: None


# PyTorch's threads that wait for each other sleep rather than spin: a study of two networks took 14
# to 20 s instead of 70 to 83 s on two cores that others used as well. PyTorch reads this when it is
# imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def compare() -> None:
    """Lead links to the page Compare, as Similarity was called, to what they show."""
    st.switch_page("views/similarity.py", query_params=st.query_params.to_dict())


st.set_page_config(page_title="AugLocal", layout="wide", initial_sidebar_state=SIDEBAR)
page = st.navigation(
    [
        st.Page("views/overview.py", title="Overview", default=True),
        st.Page("views/checkpoints.py", title="Checkpoints"),
        st.Page("views/similarity.py", title="Similarity"),
        st.Page("views/probes.py", title="Probes"),
        st.Page("views/geometry.py", title="Geometry"),
        st.Page("views/lens.py", title="Lens"),
        st.Page("views/dynamics.py", title="Dynamics"),
        st.Page("views/auxiliary.py", title="Auxiliary networks"),
        st.Page("views/train.py", title="Train"),
        st.Page("views/method.py", title="Method"),
        st.Page(compare, url_path="compare", visibility="hidden"),
    ]
)
st.session_state[offering.SHOWN_JOBS] = set()
links.follow(page.url_path)
with links.one_write(), st.container(width=WIDEST):
    page.run()
if offering.queued_elsewhere():
    with st.sidebar:
        offering.queue()
catalogue.warm()
