"""The first page."""

from __future__ import annotations

import subprocess
import sys


def test_shows_accuracies_sentence_and_two_figures_of_a_shipped_pair(open_app, figures_of):
    app = open_app()
    assert not app.exception
    assert [metric.value for metric in app.metric] == ["90.0%", "90.0%"]
    assert "scikit\\-learn digits" in app.metric[0].label
    titles = [figure["layout"]["title"]["text"] for figure in figures_of(app)]
    assert titles == ["Linear CKA, test split, n = 1,000", "Linear probes, test split, n = 1,000"]
    assert any("not of training runs" in caption.value for caption in app.caption)


def test_shows_what_to_do_where_there_is_no_study(open_app, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(tmp_path))
    app = open_app()
    assert not app.exception
    assert app.subheader[0].value == "No study yet"
    assert not app.get("plotly_chart")


def test_survives_a_damaged_study_beside_a_good_one(open_app, shipped):
    (shipped / "another.study.json").write_text("{")
    app = open_app()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 2


def test_puts_cifar_before_digits_and_lets_one_choose(open_app, shipped, make_study, save):
    study = make_study(
        ["d" * 64, "e" * 64], dataset_title="CIFAR-10 (JPEG)", dataset="imagefolder:data/cifar"
    )
    save(study, shipped / "zz.study.json")
    app = open_app()
    assert app.selectbox(key="pair").value == "CIFAR-10 (JPEG)"
    app.selectbox(key="pair").set_value("scikit-learn digits").run()
    assert "scikit\\-learn digits" in app.metric[0].label
    assert app.query_params["pair"] == "scikit-learn digits"


def test_its_buttons_lead_to_the_same_pair(open_app):
    app = open_app()
    next(button for button in app.button if button.label == "Compare layer by layer").click().run()
    assert app.title[0].value == "Similarity"
    assert len(app.get("plotly_chart")) == 5


def test_needs_neither_torch_nor_sklearn(shipped):
    program = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "app = AppTest.from_file('app/streamlit_app.py', default_timeout=60).run()\n"
        "assert not app.exception and len(app.get('plotly_chart')) == 2, app\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
