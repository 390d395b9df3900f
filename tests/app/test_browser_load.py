"""Ten sessions at once: every one gets its own answer, and the server's memory stays bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

SESSIONS = 10
IMAGES = 40
PATIENCE = 240_000  # milliseconds for the last of ten jobs in a queue
# Beyond what the server takes once PyTorch is there and one study has run.
MOST_GROWTH = 400 * 2**20


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in use now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def server_of(port: str) -> int:
    """The process whose command line names this port."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--server.port" in words and port.encode() in words:
                return int(folder.name)
    raise AssertionError(f"no server at port {port}")


def expected_value(seed: int) -> str:
    """CKA of the chosen cell as the page writes it, computed here."""
    from analysis.models import open_model
    from analysis.run import run_study

    shipped = Path(os.environ["AUGLOCAL_SHIPPED"])
    models = [open_model(shipped / f"{name}-net.safetensors") for name in ("bp", "auglocal")]
    study = run_study(
        models, dataset="digits", samples=IMAGES, seed=seed, batch_size=5, measures=["cka"]
    )
    assert study.cka is not None
    pair = study.cka.pair(*study.cka.models)
    cell = pair.rows.index("stage2_block1"), pair.columns.index("stage3_block3")
    return f"{pair.values[cell]:.3f}"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads memory from /proc")
def test_ten_sessions_each_get_their_own_answer(page, address):
    browser = page.context.browser
    query = f"data=digits&samples={IMAGES}&batch_size=5&row=stage2_block1&column=stage3_block3"

    def start(seed: int):
        session = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
        session.set_default_timeout(PATIENCE)
        session.goto(f"{address}/similarity?{query}&seed={seed}")
        session.locator(".st-key-run-cka button").click()
        return session

    def finish(session, seed: int) -> None:
        detail = session.locator(".st-key-detail")
        detail.get_by_text(expected_value(seed), exact=True).wait_for()
        assert f"seed={seed}" in session.url

    first = start(100)
    finish(first, 100)
    pid = server_of(address.rpartition(":")[2])
    before = resident_bytes(pid)
    sessions = [start(seed) for seed in range(SESSIONS)]
    for seed, session in enumerate(sessions):
        finish(session, seed)
        session.context.close()
    assert resident_bytes(pid) - before < MOST_GROWTH
