"""The first page."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from dataclasses import replace

from analysis.study import study_record


def pictures_of(app):
    images = [image for part in app.get("image") for image in part.proto.imgs]
    prefix = "data:image/svg+xml;base64,"
    return [base64.b64decode(image.url.removeprefix(prefix)).decode() for image in images]


def test_shows_accuracies_sentence_and_picture_of_a_shipped_pair(open_app):
    app = open_app()
    assert not app.exception
    assert [metric.value for metric in app.metric] == ["90.0%", "90.0%"]
    assert app.subheader[0].value == "bp\\-net and auglocal\\-net on scikit\\-learn digits"
    similarity, probes = pictures_of(app)
    assert "CKA with BP, same depth" in similarity
    assert "Accuracy of linear probes" in probes
    assert any("not of training runs" in caption.value for caption in app.caption)


def test_shows_what_to_do_where_there_is_no_study(open_app, monkeypatch, tmp_path):
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(tmp_path))
    app = open_app()
    assert not app.exception
    assert app.subheader[0].value == "No study yet"
    assert not pictures_of(app)


def test_survives_a_damaged_study_beside_a_good_one(open_app, shipped):
    (shipped / "another.study.json").write_text("{")
    app = open_app()
    assert not app.exception
    assert len(pictures_of(app)) == 2


def test_puts_cifar_before_digits(open_app, shipped, make_study, save):
    study = make_study(
        ["d" * 64, "e" * 64], dataset_title="CIFAR-10 (JPEG)", dataset="imagefolder:data/cifar"
    )
    save(study, shipped / "zz.study.json")
    app = open_app()
    assert len(pictures_of(app)) == 4
    headings = [heading.value for heading in app.subheader]
    assert headings[0].endswith("on CIFAR\\-10 \\(JPEG\\)")
    assert headings[1].endswith("on scikit\\-learn digits")


def test_a_study_of_snapshots_leads_to_dynamics(open_app, shipped, make_study, save):
    study = make_study(rules=("bp", "bp"), names=("early", "late"))
    first, last = study.question.checkpoints
    question = replace(study.question, checkpoints=(replace(first, epoch=1), last))
    save(replace(study, question=question), shipped / "snapshots.study.json")
    app = open_app()
    assert len(app.metric) == 2  # accuracies of the pair; snapshots have none on the card
    assert sum("by epoch" in picture for picture in pictures_of(app)) == 2
    next(button for button in app.button if button.label == "Follow training").click().run()
    assert app.title[0].value == "Dynamics"


def upload(app, content):
    return app.file_uploader(key="study-upload").upload("any.study.json", content).run()


def test_a_study_that_is_here_already_is_not_kept_twice(open_app, shipped, library):
    app = upload(open_app(), (shipped / "pair.study.json").read_bytes())
    assert not app.exception
    assert app.error[0].value == "This study is on this machine already\\."
    assert not list((library / "studies").glob("*"))


def test_studies_that_differ_little_have_cards_beside_each_other(open_app, shipped):
    record = json.loads((shipped / "pair.study.json").read_text())
    record["answers"]["probes"][0]["accuracy"][0] += 0.01
    app = upload(open_app(), json.dumps(record).encode())
    assert not app.exception
    assert len([button for button in app.button if button.label == "Compare layer by layer"]) == 2
    assert not app.run().exception


def test_a_card_of_networks_that_are_not_here_says_so(open_app, make_study):
    record = json.dumps(study_record(make_study(("d" * 64, "e" * 64)))).encode()
    app = upload(open_app(), record)
    buttons = [button for button in app.button if button.label == "Compare layer by layer"]
    buttons[-1].click().run()
    assert app.title[0].value == "Layer by layer"
    assert "upload it first" in app.warning[0].value


def test_a_long_title_is_cut(open_app, make_study):
    record = study_record(make_study(("d" * 64, "e" * 64))) | {"title": "long " * 500}
    app = upload(open_app(), json.dumps(record).encode())
    assert max(len(part.value) for part in app.subheader) < 200


def test_a_name_in_a_study_stays_text(open_app, shipped, make_study, save):
    study = make_study(
        ["d" * 64, "e" * 64], dataset_title="<img src=x onerror=alert(1)> [a](http://b)"
    )
    save(study, shipped / "zz.study.json")
    app = open_app()
    heading = next(part.value for part in app.subheader if "img" in part.value)
    assert "\\<img" in heading
    assert "\\[a\\]\\(" in heading
    assert not any("<img" in picture for picture in pictures_of(app))


def test_its_buttons_lead_to_the_same_pair(open_app):
    app = open_app()
    next(button for button in app.button if button.label == "Compare layer by layer").click().run()
    assert app.title[0].value == "Similarity"
    assert len(app.get("plotly_chart")) == 5


def test_its_button_of_probes_picks_all_networks(open_app):
    app = open_app()
    next(button for button in app.button if button.label == "Probes").click().run()
    assert app.title[0].value == "Probes"
    assert len(app.multiselect(key="models").value) == 2


def test_needs_neither_torch_nor_sklearn(shipped):
    program = (
        "import sys\n"
        "from streamlit.testing.v1 import AppTest\n"
        "app = AppTest.from_file('app/streamlit_app.py', default_timeout=60).run()\n"
        "assert not app.exception and len(app.get('image')) == 2, app\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'scipy'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def run_study_of(app, label, wait_for_job):
    next(button for button in app.button if button.label == label).click().run()
    wait_for_job()
    return app.run()


def test_what_was_computed_here_is_listed_opened_and_deleted(open_app, wait_for_job, library):
    app = open_app("similarity", samples="24", seed="3", batch_size="8", kernel="rbf")
    app = run_study_of(app, "Compare", wait_for_job)
    assert list((library / "studies").glob("*.study.json"))
    app = open_app()
    assert "Computed on this machine" in [part.value for part in app.subheader]
    table = app.dataframe[0].value
    assert list(table["Measures"]) == ["cka"]
    assert table["Data"][0] == "scikit-learn digits, 24 test images"
    next(button for button in app.button if button.label == "Open").click().run()
    assert app.title[0].value == "Similarity"
    assert not [button for button in app.button if button.label == "Compare"]
    assert app.number_input(key="samples").value == 24
    assert app.segmented_control(key="kernel").value == "rbf"
    app = open_app()
    next(button for button in app.button if button.label == "Delete it").click().run()
    assert not list((library / "studies").iterdir())
    assert "Computed on this machine" not in [part.value for part in app.subheader]


def test_an_opened_study_is_told_and_listed(open_app, make_study):
    record = json.dumps(study_record(make_study())).encode()
    app = open_app()
    app.file_uploader(key="study-upload").upload("kept.study.json", record).run()
    assert "card is above" in app.success[0].value
    assert len(app.dataframe[0].value) == 1
    app.run()
    assert not app.success
