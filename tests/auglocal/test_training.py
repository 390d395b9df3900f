"""The training loop: exact resumption, what it records, and how it stops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from auglocal.checkpoint import load_checkpoint
from auglocal.config import TrainConfig
from auglocal.errors import InputError, WorkError
from auglocal.files import file_sha256
from auglocal.material import prepare_material
from auglocal.runs import (
    RunFolder,
    create_run,
    load_state,
    open_run,
    read_metrics,
    save_state,
)
from auglocal.step import train_step
from auglocal.training import Listener, prepare_state, train


@pytest.fixture
def config(image_folder: Path) -> TrainConfig:
    return TrainConfig(
        dataset=f"imagefolder:{image_folder}",
        epochs=2,
        batch_size=10,
        validation_samples=8,
        device="cpu",
    )


def run(config: TrainConfig, path: Path, stop_after: int | None = None) -> bool:
    """Train, or go on, and stop after so many batches."""
    material = prepare_material(config, download=False)
    folder = RunFolder(path) if path.exists() else create_run(path, config, overwrite=False)
    steps: list[int] = []
    listener = Listener(
        on_step=lambda report: steps.append(report.step),
        should_stop=lambda: stop_after is not None and len(steps) >= stop_after,
    )
    return train(config, material, folder, listener)


@pytest.mark.parametrize("rule", ["bp", "auglocal", "infopro"])
def test_a_run_stopped_inside_each_epoch_ends_as_one_that_was_not(
    rule: str, config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, rule=rule, snapshot_epochs=(0, 1))
    assert run(config, tmp_path / "whole")
    assert not run(config, tmp_path / "parts", stop_after=1)
    assert not run(config, tmp_path / "parts", stop_after=4)
    assert run(config, tmp_path / "parts")
    whole, parts = (RunFolder(tmp_path / name) for name in ("whole", "parts"))
    assert file_sha256(whole.checkpoint) == file_sha256(parts.checkpoint)
    assert file_sha256(whole.best) == file_sha256(parts.best)
    for epoch in config.snapshot_epochs:
        assert file_sha256(whole.snapshot(epoch)) == file_sha256(parts.snapshot(epoch))
    for line, same in zip(read_metrics(whole), read_metrics(parts), strict=True):
        measured = {"seconds", "images_per_second", "peak_memory"}
        assert line.keys() == same.keys()
        assert all(line[name] == same[name] for name in line.keys() - measured)
    saved, resumed = load_state(whole), load_state(parts)
    assert saved is not None
    assert resumed is not None
    momenta = (state["optimizer"]["state"][0]["momentum_buffer"] for state in (saved, resumed))
    assert torch.equal(*momenta)


@pytest.mark.parametrize("rule", ["bp", "auglocal"])
def test_memory_options_leave_a_run_as_it_is_and_may_change_when_it_goes_on(
    rule: str, config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, rule=rule, weight_decay=0.01)
    assert run(config, tmp_path / "whole")
    frugal = replace(config, recompute=True, step_per_block=True)
    assert not run(frugal, tmp_path / "parts", stop_after=1)
    assert not run(frugal, tmp_path / "parts", stop_after=4)
    assert not run(config, tmp_path / "parts", stop_after=1)
    assert run(frugal, tmp_path / "parts")
    saved, resumed = (load_state(RunFolder(tmp_path / name)) for name in ("whole", "parts"))
    assert saved is not None
    assert resumed is not None
    assert saved["network"].keys() == resumed["network"].keys()
    for key, value in saved["network"].items():
        assert torch.equal(value, resumed["network"][key])
    momenta, same = (state["optimizer"]["state"] for state in (saved, resumed))
    assert momenta.keys() == same.keys()
    for index, values in momenta.items():
        assert torch.equal(values["momentum_buffer"], same[index]["momentum_buffer"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stepping_block_by_block_is_stepping_once(momentum: float, config: TrainConfig) -> None:
    config = replace(config, momentum=momentum, weight_decay=0.1)
    material = prepare_material(config, download=False)
    split = material.training
    weights = []
    for step_per_block in (False, True):
        state = prepare_state(config, material, None)
        for start in (0, 8, 16):
            images = material.normalise(split.images[start : start + 8])
            labels = split.labels[start : start + 8]
            train_step(state, images, labels, 0.1, step_per_block=step_per_block)
        weights.append(state.network.state_dict())
        assert all(parameter.grad is None for parameter in state.network.parameters())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_an_epochs_line_has_every_block_and_what_it_cost(
    config: TrainConfig, tmp_path: Path
) -> None:
    run(replace(config, epochs=1), tmp_path / "run")
    (line,) = read_metrics(RunFolder(tmp_path / "run"))
    assert list(line["losses"]) == list(line["accuracies"])
    assert next(iter(line["losses"])) == "stem"
    assert list(line["losses"])[-1] == "head"
    assert all(0 <= value <= 1 for value in line["accuracies"].values())
    assert line["peak_memory"] > 10_000_000
    assert line["images_per_second"] > 0
    assert 0 <= line["test_accuracy"] <= 1


def test_the_networks_learn_to_tell_bright_from_dark(config: TrainConfig, tmp_path: Path) -> None:
    for rule in ("bp", "auglocal"):
        path = tmp_path / rule
        run(replace(config, rule=rule, epochs=6, augment=False), path)
        assert read_metrics(RunFolder(path))[-1]["test_accuracy"] == 1.0


def test_the_checkpoint_says_what_was_trained_on_what(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, epochs=1, dataset_title="Shades")
    run(config, tmp_path / "run")
    metadata = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").metadata
    assert metadata.dataset == "Shades"
    assert metadata.classes == ("dark", "light")
    assert metadata.input_size == (3, 16, 16)
    assert metadata.epoch == 1
    assert metadata.accuracy is not None
    assert (metadata.accuracy["split"], metadata.accuracy["samples"]) == ("test", 16)
    assert str(tmp_path.parent) not in metadata.to_json()


def test_reconstructions_are_held_to_the_images_of_the_data(config: TrainConfig) -> None:
    material = prepare_material(config, download=False)
    state = prepare_state(replace(config, rule="infopro"), material, None)
    for auxiliary in state.network.auxiliaries.values():
        assert tuple(auxiliary.extra.mean.flatten().tolist()) == pytest.approx(material.mean)
        assert tuple(auxiliary.extra.std.flatten().tolist()) == pytest.approx(material.std)


def test_snapshots_are_the_backbone_after_their_epochs(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, width=0.25, modules=3)
    run(replace(config, snapshot_epochs=(0, 1, 2)), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    untrained, first, last = (load_checkpoint(folder.snapshot(epoch)) for epoch in (0, 1, 2))
    assert [file.metadata.epoch for file in (untrained, first, last)] == [0, 1, 2]
    assert not any(file.auxiliary for file in (untrained, first, last))
    material = prepare_material(config, download=False)
    fresh = prepare_state(config, material, None).network.backbone.state_dict()
    assert all(torch.equal(untrained.backbone[key], value) for key, value in fresh.items())
    final = load_checkpoint(folder.checkpoint)
    assert all(torch.equal(last.backbone[key], value) for key, value in final.backbone.items())
    assert last.metadata.local_accuracies == final.metadata.local_accuracies
    key = "head.linear.weight"
    assert not torch.equal(first.backbone[key], last.backbone[key])


def test_snapshots_do_not_change_what_is_learned(config: TrainConfig, tmp_path: Path) -> None:
    config = replace(config, width=0.25, modules=3)
    run(config, tmp_path / "without")
    run(replace(config, snapshot_epochs=(0, 1), snapshot_dtype="bf16"), tmp_path / "with")
    without, kept = (
        load_checkpoint(tmp_path / name / "checkpoint.safetensors") for name in ("without", "with")
    )
    assert all(torch.equal(kept.backbone[key], value) for key, value in without.backbone.items())
    assert (
        load_checkpoint(RunFolder(tmp_path / "with").snapshot(1)).metadata.weights_dtype == "bf16"
    )


def test_local_accuracies_are_measured_at_snapshots_and_at_the_end(
    config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, epochs=3, width=0.25, modules=4, snapshot_epochs=(1,))
    run(config, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    lines = read_metrics(folder)
    for split in ("test", "validation"):
        assert [f"{split}_local_accuracies" in line for line in lines] == [True, False, True]
        for line in (lines[0], lines[2]):
            local = line[f"{split}_local_accuracies"]
            assert list(local) == list(line["losses"])
            assert local["head"] == line[f"{split}_accuracy"]
    recorded = load_checkpoint(folder.checkpoint).metadata.local_accuracies
    assert recorded == lines[2]["test_local_accuracies"]


def test_no_best_checkpoint_where_nothing_is_held_out(config: TrainConfig, tmp_path: Path) -> None:
    run(replace(config, epochs=1, validation_samples=None), tmp_path / "run")
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_the_best_checkpoint_is_the_epoch_of_the_best_validation_accuracy(
    config: TrainConfig, tmp_path: Path
) -> None:
    run(replace(config, epochs=4), tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    accuracies = [line["validation_accuracy"] for line in read_metrics(folder)]
    expected = accuracies.index(max(accuracies)) + 1
    assert load_checkpoint(folder.best).metadata.epoch == expected


def test_a_nan_loss_names_the_block_where_it_began_and_keeps_the_last_good_state(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    run(config, path, stop_after=4)  # one epoch of four steps
    good = load_state(RunFolder(path))
    assert good is not None
    checkpoint = file_sha256(path / "checkpoint.safetensors")
    material = prepare_material(config, download=False)

    def poison(state: object, *arguments: object, **options: object) -> None:
        network = state.network
        with torch.no_grad():
            network.backbone.layers["stage2_block1"].conv1.weight.fill_(torch.nan)
        return train_step(state, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("auglocal.acceleration.train_step", poison)
        with pytest.raises(WorkError, match="block stage2_block1 became NaN .* epoch 2"):
            train(config, material, RunFolder(path), Listener())
    kept = load_state(RunFolder(path))
    assert kept is not None
    assert kept["epoch"] == good["epoch"]
    assert all(torch.equal(kept["network"][key], good["network"][key]) for key in good["network"])
    assert file_sha256(path / "checkpoint.safetensors") == checkpoint


def test_a_huge_learning_rate_stops_the_run_in_a_sentence(
    config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(WorkError, match="smaller --learning-rate"):
        run(replace(config, learning_rate=1e30), tmp_path / "run")


def test_metrics_written_after_the_commit_point_are_made_again(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    run(config, path, stop_after=5)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "losses": {}}\n{"epoch": 2, "los')
    run(config, path)
    lines = read_metrics(RunFolder(path))
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["losses"]


def test_state_of_another_network_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(replace(config, rule="bp"), path, stop_after=1)
    with pytest.raises(InputError, match="rule is 'bp' in resume.pt and 'auglocal' in config"):
        train(config, prepare_material(config, download=False), RunFolder(path), Listener())


def test_state_that_does_not_say_of_what_is_refused_if_it_does_not_fit(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    run(replace(config, rule="bp"), path, stop_after=1)
    saved = load_state(RunFolder(path))
    assert saved is not None
    del saved["config"], saved["threads"]
    save_state(RunFolder(path), saved)
    with pytest.raises(InputError, match="saved state does not fit the run's configuration"):
        train(config, prepare_material(config, download=False), RunFolder(path), Listener())


def test_going_on_with_other_threads_warns(config: TrainConfig, tmp_path: Path) -> None:
    path = tmp_path / "run"
    config = replace(config, rule="bp", epochs=1)
    run(config, path, stop_after=1)
    saved = load_state(RunFolder(path))
    assert saved is not None
    assert saved["threads"] == torch.get_num_threads()
    save_state(RunFolder(path), {**saved, "threads": 77})
    warnings: list[str] = []
    material = prepare_material(config, download=False)
    train(config, material, RunFolder(path), Listener(on_warning=warnings.append))
    assert len(warnings) == 1
    assert "computed with 77 threads so far" in warnings[0]
    train(config, material, RunFolder(path), Listener(on_warning=warnings.append))
    assert len(warnings) == 1


def test_what_a_killed_process_left_half_written_is_removed(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    config = replace(config, rule="bp", epochs=1, snapshot_epochs=(1,))
    run(config, path, stop_after=1)
    (path / "snapshots").mkdir()
    leftovers = [path / ".resume.pt.x1y2", path / "snapshots" / ".epoch-0001.safetensors.z3"]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    run(config, path)
    assert not any(leftover.exists() for leftover in leftovers)
    assert RunFolder(path).snapshot(1).exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 cut short"])
def test_a_damaged_saved_state_is_refused(
    content: bytes, config: TrainConfig, tmp_path: Path
) -> None:
    folder = create_run(tmp_path / "run", config, overwrite=False)
    folder.resume.write_bytes(content)
    with pytest.raises(InputError, match=r"resume\.pt is damaged"):
        load_state(folder)


def test_equal_seeds_give_equal_steps_and_other_seeds_do_not(config: TrainConfig) -> None:
    material = prepare_material(config, download=False)
    split = material.training
    weights = []
    for seed in (0, 0, 1):
        state = prepare_state(replace(config, seed=seed), material, None)
        train_step(state, material.normalise(split.images[:8]), split.labels[:8], 0.1)
        weights.append(state.network.backbone.head.linear.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_folder_that_holds_a_run_is_left_alone(config: TrainConfig, tmp_path: Path) -> None:
    create_run(tmp_path / "run", config, overwrite=False)
    with pytest.raises(InputError, match="already holds a run; give --resume"):
        create_run(tmp_path / "run", config, overwrite=False)
    create_run(tmp_path / "run", replace(config, seed=5), overwrite=True)
    assert open_run(tmp_path / "run")[1].seed == 5


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        open_run(tmp_path)
