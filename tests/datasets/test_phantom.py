import numpy as np
import pytest

from vamcei_jax.data.preprocess import Preprocess, preprocess_classes, preprocess_image
from vamcei_jax.datasets import prepare
from vamcei_jax.datasets.phantom import Phantom, PhantomConfig
from vamcei_jax.phantom.scanner import draw_patient

PREPROCESS = Preprocess(size=(40, 36), zoom=0.5)
SPACING = (8.0, 1.5, 1.5)


def build(domain, data_dir, **options):
  config = PhantomConfig(name=f"{domain}-test", domain=domain, preprocess=PREPROCESS, **options)
  builder = Phantom(config=config, data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return builder


@pytest.fixture(scope="module", params=["bssfp", "lge"])
def prepared(request, tmp_path_factory):
  builder = build(request.param, tmp_path_factory.mktemp("data"), seed=7, train=3, validation=1, test=2)
  return request.param, builder


def examples(builder):
  return [example for split in ("train", "validation", "test") for example in builder.as_data_source(split)]


def test_splits_have_the_sizes_asked_for_and_share_no_patient(prepared):
  _, builder = prepared
  assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
    "train": 3,
    "validation": 1,
    "test": 2,
  }
  assert len({example["patient"] for example in examples(builder)}) == 6
  assert len({example["truth"].tobytes() for example in examples(builder)}) == 6


def test_examples_are_drawn_patients_preprocessed(prepared):
  domain, builder = prepared
  for example in examples(builder):
    patient = draw_patient(7, int(example["patient"].removeprefix(b"patient")), domain)
    np.testing.assert_array_equal(example["image"], preprocess_image(patient.voxels, SPACING, PREPROCESS))
    np.testing.assert_array_equal(example["mask"], preprocess_classes(patient.classes, SPACING, PREPROCESS))
    np.testing.assert_array_equal(example["truth"], patient.classes)
    np.testing.assert_allclose(example["affine"], patient.affine, rtol=1e-6)  # TFDS stores float32
    assert example["labelled"]
    assert example["image"].shape[1:] == PREPROCESS.size


@pytest.mark.parametrize(("plane", "name"), [("short_axis", "lge-13b3889d6a2d"), ("axial", "lge-3396ac54b3bc")])
def test_data_that_version_0_1_prepared_are_found(tmp_path, plane, name):
  """The digest in the name of the folder is that of version 0.1 for the same settings."""
  arguments = dict(data_dir=str(tmp_path), root=None, preprocess=PREPROCESS, label_values=(0, 200, 500, 600))
  builder = prepare("phantom", "lge", "target", seed=7, train=1, validation=1, test=1, plane=plane, **arguments)
  assert builder.builder_config.name == name


def test_two_runs_may_prepare_the_same_at_once(tmp_path, monkeypatch):
  arguments = dict(data_dir=str(tmp_path), root=None, preprocess=PREPROCESS, label_values=(0, 200, 500, 600))
  prepare_once = lambda: prepare("phantom", "lge", "target", seed=7, train=1, validation=1, test=1, **arguments)
  slower = Phantom._split_generators

  def after_another_run(self, dl_manager):
    monkeypatch.setattr(Phantom, "_split_generators", slower)
    prepare_once()
    return slower(self, dl_manager)

  monkeypatch.setattr(Phantom, "_split_generators", after_another_run)
  builder = prepare_once()
  assert {split: len(builder.as_data_source(split)) for split in builder.info.splits} == {
    "train": 1,
    "validation": 1,
    "test": 1,
  }
