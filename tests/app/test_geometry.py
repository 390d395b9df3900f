"""Geometry by depth, and the images of a layer as points."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from analysis.errors import Cancelled
from analysis.study import load_study
from app.sources import computing, layer_features
from tests.app.conftest import fill
from tests.app.real_study import SAMPLES


@pytest.fixture
def shipped(real, tmp_path, monkeypatch):
    """The real study in the place of `checkpoints/`."""
    folder = tmp_path / "shipped"
    shutil.copytree(real, folder)
    monkeypatch.setenv("AUGLOCAL_SHIPPED", str(folder))
    layer_features._store.clear()
    return folder


@pytest.fixture
def study(shipped):
    return load_study(shipped / "pair.study.json")


@pytest.fixture
def with_points(open_app):
    """Open the page and read the features."""

    def open_page(**query):
        app = open_app("geometry", **query)
        if any(button.key == "start-reading" for button in app.button):
            app.button(key="start-reading").click().run()
        assert not app.exception
        assert not app.error
        return app

    return open_page


def titles(figures):
    return [figure["layout"]["title"]["text"] for figure in figures]


def pictures_of(app):
    return re.findall(r'alt="([^"]*)"', "".join(part.proto.body for part in app.get("html")))


def test_shows_a_group_of_measures_with_definitions_at_once(open_app, figures_of, study):
    app = open_app("geometry")
    assert not app.exception
    assert titles(figures_of(app)) == [
        f"{title}, test split, n = {SAMPLES}"
        for title in ("Effective rank", "Participation ratio", "Intrinsic dimension (TwoNN)")
    ]
    captions = " ".join(caption.value for caption in app.caption).replace("\\", "")
    assert "Source: Roy and Vetterli 2007." in captions
    assert "They cover the choice of this many images" in captions
    curve = next(trace for trace in figures_of(app)[1]["data"] if trace.get("name") == "BP, bp-net")
    np.testing.assert_allclose(curve["y"], study.geometry[0].values["participation_ratio"])


def test_each_group_has_its_measures_and_says_why_values_lack(open_app, figures_of):
    app = open_app("geometry")
    app.segmented_control(key="group").set_value("Neural collapse").run()
    found = figures_of(app)
    assert [title.split(",")[0] for title in titles(found)] == ["NC1", "NC2", "NC2", "NC3", "NC4"]
    hover = next(trace for trace in found[3]["data"] if trace.get("name"))["hovertext"]
    assert "undefined: " in hover[0]
    assert "no reason was kept" not in hover[0]
    assert app.query_params["group"] == "Neural collapse"


def test_what_is_not_computed_is_offered_and_computed_in_a_job(
    open_app, figures_of, shipped, wait_for_job
):
    app = open_app("geometry", samples="60")
    assert not figures_of(app)
    app.button(key="run-geometry").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert not app.error
    assert "n = 60" in titles(figures_of(app))[0]


def test_a_study_without_geometry_offers_it(open_app, shipped):
    fill(shipped)
    app = open_app("geometry")
    assert not app.exception
    assert app.button(key="run-geometry").label == "Measure geometry"
    assert app.button(key="start-reading").label == "Show the points"


def test_a_cancelled_and_a_failed_job_are_told(open_app, wait_for_job, monkeypatch):
    light = ValueError("There is no light")
    for error, place in ((Cancelled("stopped"), "info"), (light, "error")):

        def work(request, entries, error=error):
            def steps(report, cancelled):
                raise error

            return steps

        monkeypatch.setattr(computing, "_work", work)
        app = open_app("geometry", samples="40")
        app.button(key="run-geometry").click().run()
        wait_for_job()
        app.run()
        text = getattr(app, place)[0].value
        assert "nothing was saved" in text or "There is no light" in text


def test_nothing_picked_is_a_state_of_its_own(open_app):
    app = open_app("geometry")
    app.multiselect(key="models").set_value([]).run()
    assert not app.exception
    assert app.subheader[0].value == "Nothing picked"


def scatter(figures):
    return next(f for f in figures if f["layout"].get("dragmode") in ("lasso", "turntable"))


def num_points(figure):
    return sum(len(trace["hovertext"]) for trace in figure["data"] if "hovertext" in trace)


def test_points_are_read_on_request_only_and_then_kept(with_points, open_app, figures_of):
    assert len(figures_of(open_app("geometry"))) == 3
    app = with_points()
    figure = scatter(figures_of(app))
    assert figure["layout"]["title"]["text"] == f"PCA of stage3_block3, BP, n = {SAMPLES}"
    assert num_points(figure) == SAMPLES
    again = open_app("geometry")
    assert num_points(scatter(figures_of(again))) == SAMPLES


def places_of(figure):
    """(x, y) by image."""
    import base64

    def values(part):
        if isinstance(part, dict):
            return np.frombuffer(base64.b64decode(part["bdata"]), part["dtype"]).tolist()
        return part

    found = {}
    for trace in figure["data"]:
        if "hovertext" in trace:
            xs, ys = values(trace["x"]), values(trace["y"])
            for x, y, (place, _) in zip(xs, ys, trace["customdata"], strict=True):
                found[place] = (x, y)
    return np.array([found[place] for place in sorted(found)])


def test_points_keep_the_distances_of_the_layer_s_principal_plane(with_points, figures_of, shipped):
    """An independent second way: plain singular vectors of features read one layer at a time."""
    from analysis.features import sample_images, stream_features
    from analysis.models import open_model

    app = with_points(layer="stage1_block2")
    shown = places_of(scatter(figures_of(app)))
    sample = sample_images("digits", "test", SAMPLES, 0)
    model = open_model(shipped / "bp-net.safetensors", "cpu")
    features = next(
        values.mean(dim=(2, 3)).double().numpy()
        for name, values in stream_features(model, sample.images)
        if name == "stage1_block2"
    )
    features -= features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    plane = left[:, :2] * sizes[:2]

    def distances(points):
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        return apart / apart.max()

    np.testing.assert_allclose(distances(shown), distances(plane), atol=1e-4)


def test_the_slider_keeps_the_axes_and_turns_layers_to_each_other(with_points, figures_of):
    app = with_points()
    before = scatter(figures_of(app))
    app.select_slider(key="layer").set_value("stage3_block2").run()
    after = scatter(figures_of(app))
    assert after["layout"]["title"]["text"].startswith("PCA of stage3_block2")
    assert after["layout"]["xaxis"]["range"] == before["layout"]["xaxis"]["range"]
    # Turned to lie best on each other: the product of the two is symmetric and positive.
    product = places_of(before).T @ places_of(after)
    np.testing.assert_allclose(product, product.T, atol=1e-6 * abs(product).max())
    assert np.linalg.eigvalsh((product + product.T) / 2).min() >= 0
    assert app.query_params["layer"] == "stage3_block2"


def test_images_are_picked_by_number(with_points, figures_of):
    app = with_points()
    assert "No images picked" in [heading.value for heading in app.subheader]
    app.text_input(key="picked").set_value("3, 10-12").run()
    assert [text.split(",")[0] for text in pictures_of(app)] == [
        *("Image 3", "Image 10", "Image 11", "Image 12")
    ]
    assert app.query_params["picked"] == "3,10-12"
    app.button(key="clear-picked").click().run()
    assert not pictures_of(app)
    assert "picked" not in app.query_params


def test_a_class_can_be_picked_whole(with_points, study):
    app = with_points()
    app.selectbox(key="picked_class").set_value(4).run()
    expected = [place for place, label in enumerate(study.question.labels) if label == 4]
    assert len(pictures_of(app)) == len(expected)
    assert all(text.endswith(": 4") for text in pictures_of(app))
    assert app.selectbox(key="picked_class").value is None


def test_what_cannot_be_picked_is_told(with_points):
    app = with_points()
    app.text_input(key="picked").set_value("5, many").run()
    assert len(pictures_of(app)) == 1
    assert any("is no number" in caption.value for caption in app.caption)


def test_a_link_reproduces_the_view(with_points, figures_of, study):
    sha256 = study.question.checkpoints[1].sha256
    query = {"of": sha256[:12], "layer": "stem", "picked": "7,9", "group": "Activity"}
    app = with_points(**query, dimensions="3")
    assert figures_of(app)[0]["layout"]["title"]["text"].startswith("Sparsity")
    title = scatter(figures_of(app))["layout"]["title"]["text"]
    assert title == f"PCA of stem, AugLocal, n = {SAMPLES}"
    assert len(pictures_of(app)) == 2
    assert {trace["type"] for trace in scatter(figures_of(app))["data"]} == {"scatter3d"}
    for name, value in query.items():
        assert app.query_params[name] == value


@pytest.mark.parametrize(
    "query", [{"method": "x"}, {"dimensions": "7"}, {"picked": "1,x"}, {"layer": "nowhere"}]
)
def test_a_link_that_means_nothing_shows_the_defaults(with_points, figures_of, query):
    app = with_points(**query)
    assert not app.exception
    assert num_points(scatter(figures_of(app))) == SAMPLES


def test_tsne_is_computed_on_request_and_kept(with_points, open_app, figures_of):
    app = with_points(method="tsne", perplexity="9")
    assert len(figures_of(app)) == 3
    offer = next(text.value for text in app.markdown if "about" in text.value)
    assert f"t-SNE of {SAMPLES} images takes about 1 s a layer" in offer
    assert "for the 10 layers that have none yet" in offer
    app.button(key="embed-one").click().run()
    assert not app.exception
    figure = scatter(figures_of(app))
    assert figure["layout"]["title"]["text"].startswith("t-SNE of stage3_block3")
    assert np.sqrt((places_of(figure) ** 2).sum(axis=1).mean()) == pytest.approx(1)
    again = open_app("geometry", method="tsne", perplexity="9")
    assert scatter(figures_of(again))["layout"]["title"]["text"].startswith("t-SNE")
    other = open_app("geometry", method="tsne", perplexity="10")
    assert len(figures_of(other)) == 3


def test_umap_says_how_to_install_it(with_points, monkeypatch):
    monkeypatch.setattr(layer_features, "is_installed", lambda method: method != "umap")
    app = with_points(method="umap")
    assert "pip install umap-learn" in app.info[0].value


def test_a_layer_without_points_says_why(with_points, figures_of, monkeypatch):
    app = with_points(layer="stem")
    kept, _ = layer_features._store()
    aligned = next(iter(kept.values())).aligned[2]
    aligned.points.pop("stem")
    aligned.undefined["stem"] = "its features are the same for every image"
    app.run()
    assert not app.exception
    text = " ".join(part.value for part in app.markdown).replace("\\", "")
    assert "stem has none: its features are the same for every image." in text


def test_data_that_are_not_here_are_told_in_a_sentence(open_app, monkeypatch):
    app = open_app("geometry", samples="150", data="imagefolder:/nowhere")
    assert not app.exception
    app.button(key="start-reading").click().run()
    assert not app.exception
    text = app.error[0].value.replace("\\", "")
    assert "there is no folder /nowhere with train/CLASS/* and test/CLASS/*" in text
    assert app.button(key="start-reading").label == "Show the points"


def test_images_of_a_folder_are_shown_with_their_classes(with_points, image_folder):
    app = with_points(samples="12", data=f"imagefolder:{image_folder}", picked="0-11")
    assert sorted({text.rsplit(": ", 1)[1] for text in pictures_of(app)}) == ["dark", "light"]


def test_no_more_than_a_dozen_checkpoints_are_kept(study, shipped, monkeypatch):
    from app.sources import checkpoints

    monkeypatch.setattr(layer_features, "KEPT", 2)
    entry = checkpoints.checkpoint_files()[0][0]
    asked = [
        layer_features.Question(entry.sha256, "digits", "test", count, 0, 1) for count in (8, 9, 10)
    ]
    for question in asked:
        layer_features.read(question, entry, lambda stage, done, total: None)
    assert [layer_features.at_hand(question) is not None for question in asked] == [
        *(False, True, True)
    ]


def test_what_is_stopped_leaves_nothing_behind(study, shipped):
    from app.sources import checkpoints

    entry = checkpoints.checkpoint_files()[0][0]
    asked = layer_features.Question(entry.sha256, "digits", "test", 20, 0, 1)

    def stop(stage, done, total):
        if stage == "Reading images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        layer_features.read(asked, entry, stop)
    assert layer_features.at_hand(asked) is None


def test_the_scatter_has_its_lasso_and_saves_pictures_of_the_chosen_form(with_points):
    app = with_points()
    config = json.loads(app.get("plotly_chart")[-1].proto.config)
    assert config["modeBarButtonsToRemove"] == []
    assert config["toImageButtonOptions"]["format"] == "png"
    assert config["showSendToCloud"] is False
    app.segmented_control(key="picture_form").set_value("svg").run()
    config = json.loads(app.get("plotly_chart")[-1].proto.config)
    assert config["toImageButtonOptions"]["format"] == "svg"


def test_measures_grow_layer_by_layer_and_cancel_keeps_them(
    open_app, publishing, wait_for_job, figures_of, study
):
    def first_network(request, entries):
        return replace(study, geometry=study.geometry[:1], probes=(), cka=None)

    publishing.make = first_network
    app = open_app("geometry", samples="44")
    app.button(key="run-geometry").click().run()
    assert publishing.published.wait(30)
    app.run()
    assert not app.exception
    whole = titles(figures_of(open_app("geometry")))
    assert titles(figures_of(app)) == whole
    next(button for button in app.button if button.label == "Cancel").click().run()
    wait_for_job()
    app.run()
    assert not app.exception
    assert titles(figures_of(app)) == whole
    assert app.button(key="run-geometry").label == "Measure geometry in full"
