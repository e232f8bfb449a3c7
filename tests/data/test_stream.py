"""Slices that are read from disk, against those in memory."""

import jax
import numpy as np
import pytest

from tests.runs import final_state
from vamcei_jax.data.loader import batch_indices, draw_keys, load_slices
from vamcei_jax.data.stream import StoredSlices, stream_batches
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.domains import prepare_domain
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.run import run
from vamcei_jax.pipeline.teachers import load_stage
from vamcei_jax.training.log import read_log
from vamcei_jax.training.loop import fits


@pytest.fixture
def builders(tiny_config):
  return {role: prepare_domain(resolve(tiny_config).stages["vamcei"].data, role) for role in ("source", "target")}


def test_slices_on_disk_are_those_in_memory(builders):
  for role, builder in builders.items():
    labels = role == "source"
    expected = load_slices(builder, "train", labels=labels)
    teacher = np.random.default_rng(0).uniform(size=(len(expected["image"]), 3)).astype(np.float16)
    stored = StoredSlices(builder, "train", labels=labels, beside={"teacher": teacher})
    assert len(stored) == len(teacher)
    assert stored.nbytes == sum(values.nbytes for values in expected.values()) + teacher.nbytes
    assert set(stored[0]) == {"image", "teacher"} | ({"label"} if labels else set())
    for number in range(len(stored)):
      for name, values in (expected | {"teacher": teacher}).items():
        np.testing.assert_array_equal(stored[number][name], values[number])
    assert stored.load().keys() == stored[0].keys()


def test_slices_without_a_structure_can_be_left_out(builders, tiny_config, monkeypatch):
  """From memory and from disk alike."""
  source, raw = builders["source"], type(builders["source"]).as_data_source

  def emptied(self, *arguments, **options):
    """The base of every heart cut off, and the first patient's whole."""
    examples = list(raw(self, *arguments, **options))
    if isinstance(examples[0]["mask"], np.ndarray):
      for patient, example in enumerate(examples):
        example["mask"] = example["mask"] * (np.arange(len(example["mask"])) < 3 * (patient > 0))[:, None, None]
    return examples

  monkeypatch.setattr(type(source), "as_data_source", emptied)
  every = load_slices(source, "train", labels=True)
  filled = np.flatnonzero(every["label"].any((1, 2)))
  assert 0 < len(filled) < len(every["label"]) / 2
  assert len(StoredSlices(source, "train", labels=True, empty="apical")) == len(filled)  # empty slices: basal
  stored = StoredSlices(source, "train", labels=True, empty="none", beside={"number": np.arange(len(filled))})
  assert len(stored) == len(filled)
  loaded = stored.load()
  assert stored.nbytes == sum(values.nbytes for values in loaded.values())
  for number, index in enumerate(filled):
    assert stored[number]["number"] == loaded["number"][number] == number
    for name, values in every.items():
      np.testing.assert_array_equal(stored[number][name], values[index])
      np.testing.assert_array_equal(loaded[name][number], values[index])

  tiny_config.data.empty_slices = "none"
  loaded_stage = load_stage(resolve(tiny_config).stages["vamcei"], builders, {}, {})
  assert len(loaded_stage["source"]) == len(filled)
  assert len(loaded_stage["target"]) == len(load_slices(builders["target"], "train", labels=False)["image"])

  blank = lambda example: example | {"mask": np.zeros_like(example["mask"])}
  empty = lambda self, *arguments, **options: [blank(example) for example in emptied(self, *arguments, **options)]
  monkeypatch.setattr(type(source), "as_data_source", empty)
  with pytest.raises(InputError, match="no slice with a structure"):
    StoredSlices(source, "train", labels=True, empty="none")


def test_empty_slices_beyond_the_apex_can_be_included(builders, monkeypatch):
  source, raw = builders["source"], type(builders["source"]).as_data_source

  def emptied(self, *arguments, **options):
    """Both ends of every heart cut off."""
    examples = list(raw(self, *arguments, **options))
    for example in examples:
      if isinstance(example["mask"], np.ndarray):
        number = np.arange(len(example["mask"]))
        example["mask"] = example["mask"] * ((number > 1) & (number < len(number) - 2))[:, None, None]
    return examples

  monkeypatch.setattr(type(source), "as_data_source", emptied)
  depths = [len(example["mask"]) for example in emptied(source, "train")]
  starts = np.cumsum([0, *depths[:-1]])
  included = np.concatenate([np.arange(start, start + depth - 2) for start, depth in zip(starts, depths, strict=True)])
  loaded = StoredSlices(source, "train", labels=True, empty="apical").load()
  np.testing.assert_array_equal(loaded["image"], load_slices(source, "train", labels=True)["image"][included])


def test_a_source_without_masks_is_refused(builders, monkeypatch):
  raw = type(builders["source"]).as_data_source

  def unlabelled(self, *arguments, **options):
    return [example | {"labelled": False} for example in raw(self, *arguments, **options)]

  monkeypatch.setattr(type(builders["source"]), "as_data_source", unlabelled)
  with pytest.raises(InputError, match="no mask of patient0, patient1; a source needs all of them"):
    StoredSlices(builders["source"], "train", labels=True)


@pytest.mark.parametrize("partitionable", [True, False])  # set by a program that calls vamcei_jax.train
def test_batches_from_disk_are_the_loader_s(builders, partitionable):
  """For the share of a host, from any step on."""
  with jax.threefry_partitionable(partitionable):
    check_batches(builders)


def check_batches(builders):
  key, batch, share = jax.random.key(3), 8, slice(4, 8)
  stored = {role: StoredSlices(builder, "train", labels=role == "source") for role, builder in builders.items()}
  slices = {role: of_role.load() for role, of_role in stored.items()}
  streamed = list(stream_batches(stored, key, range(5, 9), batch, share, ahead=2))
  assert len(streamed) == 4
  for step, got in enumerate(streamed, 5):
    for role, maps in slices.items():
      with jax_settings():
        index = batch_indices(draw_keys(key, role)[0], step, len(maps["image"]), batch)[share]
      for name, values in maps.items():
        np.testing.assert_array_equal(got[role][name], values[np.asarray(index)])


def test_data_is_streamed_where_it_does_not_fit(builders):
  stored = {"source": StoredSlices(builders["source"], "train", labels=True)}
  device = jax.devices("cpu")[0]
  assert fits(stored, device, 0.3)
  assert not fits(stored, device, 0.0)


def test_a_run_from_disk_is_the_run_from_memory(tiny_run, tiny_config, tmp_path, capsys, without_pictures):
  tiny_config.stages = ("vamcei",)
  tiny_config.data.resident = 0.0
  run(tiny_config, tmp_path)
  assert "vamcei: slices are read from disk" in capsys.readouterr().out
  losses = lambda workdir: [line["loss"] for line in read_log(workdir / "metrics.jsonl") if line["stage"] == "vamcei"]
  np.testing.assert_allclose(losses(tmp_path), losses(tiny_run), rtol=1e-5)
  flat = lambda workdir: np.concatenate([x.ravel() for x in jax.tree.leaves(final_state(workdir, "vamcei").params)])
  assert np.abs(flat(tmp_path) - flat(tiny_run)).mean() < 1e-6
