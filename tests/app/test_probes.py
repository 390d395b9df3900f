"""Probes by depth."""

from __future__ import annotations

import numpy as np


def lines_of(figure):
    return [trace for trace in figure["data"] if trace.get("name")]


def test_shows_shipped_probes_at_once(open_app, figures_of):
    app = open_app("probes")
    assert not app.exception
    (figure,) = figures_of(app)
    assert [trace["name"] for trace in lines_of(figure)] == ["BP, bp-net", "AugLocal, auglocal-net"]
    assert "697 training images" in " ".join(caption.value for caption in app.caption)


def test_fewer_checkpoints_show_fewer_curves(open_app, figures_of, sha256s):
    app = open_app("probes")
    app.multiselect(key="models").set_value([sha256s[1]]).run()
    assert [trace["name"] for trace in lines_of(figures_of(app)[0])] == ["AugLocal, auglocal-net"]
    assert app.query_params["models"] == sha256s[1][:12]


def test_nothing_picked_is_a_state_of_its_own(open_app):
    app = open_app("probes")
    app.multiselect(key="models").set_value([]).run()
    assert not app.exception
    assert app.subheader[0].value == "Nothing picked"


def test_a_link_names_checkpoints_and_missing_ones_are_told(open_app, sha256s):
    app = open_app("probes", models=f"{sha256s[0][:12]},0123456789ab")
    assert app.multiselect(key="models").value == [sha256s[0]]
    assert app.warning[0].value == "This link refers to a checkpoint not on this machine."


def test_only_missing_probes_are_computed(open_app, wait_for_job, figures_of, shipped, add_net):
    add_net(shipped / "third.safetensors", "bp", 5)
    app = open_app("probes")
    everything = app.multiselect(key="models").options
    assert len(everything) == 3
    third = next(entry for entry in _entries() if entry.name == "third")
    app.multiselect(key="models").set_value(
        [*app.multiselect(key="models").value, third.sha256]
    ).run()
    app.number_input(key="samples").set_value(1000).run()
    assert len(lines_of(figures_of(app)[0])) == 2
    assert app.button(key="run-probe").label == "Run probes"


def _entries():
    from app.sources import checkpoints

    return checkpoints.checkpoint_files()[0]


def test_probes_are_computed_in_a_job(open_app, wait_for_job, figures_of, monkeypatch):

    app = open_app("probes")
    app.number_input(key="samples").set_value(50).run()
    seen = []

    def work(request, entries):
        def steps(report, cancelled):
            seen.append((request.measure, request.samples, len(entries)))
            raise ValueError("There are too few images")

        return steps

    from app.sources import computing

    monkeypatch.setattr(computing, "_work", work)
    app.button(key="run-probe").click().run()
    wait_for_job()
    app.run()
    assert seen == [("probe", 50, 2)]
    assert "There are too few images" in app.error[0].value


def test_the_split_and_the_balance_of_classes_are_part_of_the_question(open_app):
    app = open_app("probes", split="validation", balanced="True")
    assert not app.exception
    assert app.segmented_control(key="split").options == ["test", "validation"]  # never train
    assert app.button(key="run-probe").label == "Run probes"
    assert (app.query_params["split"], app.query_params["balanced"]) == ("validation", "True")
    app.segmented_control(key="split").set_value("test").run()
    app.toggle(key="balanced").set_value(False).run()
    assert "Run probes" not in [button.label for button in app.button]
    assert {"split", "balanced"}.isdisjoint(app.query_params)


def test_curves_grow_while_layers_are_fitted_and_cancel_keeps_them(
    open_app, publishing, wait_for_job, figures_of, make_study
):
    def half(request, entries):
        study = make_study([entry.sha256 for entry in entries])
        for probe in study.probes:
            for values in (probe.accuracy, probe.low, probe.high):
                values[4:] = np.nan
        return study

    publishing.make = half
    app = open_app("probes", samples="44")
    app.button(key="run-probe").click().run()
    assert publishing.published.wait(30)
    app.run()
    assert not app.exception
    (figure,) = figures_of(app)
    names = [trace.get("name") for trace in figure["data"] if trace.get("name")]
    assert {"BP, bp-net", "AugLocal, auglocal-net"} <= set(names)
    assert any("Partial" in caption.value for caption in app.caption)
    next(button for button in app.button if button.label == "Cancel").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert len(figures_of(app)) == 1
    assert app.button(key="run-probe").label == "Run probes in full"
    words = " ".join(text.value for text in app.markdown)
    assert "**Partial**: stopped after 4 of 10 layers" in words
    # A part is never taken for the answer.
    assert not app.get("download_button")
