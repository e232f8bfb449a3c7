"""Shows the latents of both domains by class, and measures their distance, before and after adaptation.

python -m experiments.latent_space --workdir=runs/uda

A point is the mean μ of the full-resolution latent over the pixels of a class in a slice, in two dimensions by PCA and
by t-SNE, of the stages no_adaptation and vamcei. The distances are those that adaptation minimises, over all slices:
the global KL at every scale (eqs. 5-8, by both estimators, in nats a latent dimension), and the distance between the
prototypes of each class (eq. 9; 1 - cosine). Classes are the true ones in both domains. The patients are those of the
test split, where a domain has labelled ones in it, else of validation, else of train.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

if TYPE_CHECKING:
  import tensorflow_datasets as tfds

  from vamcei_jax.config.schema import StageConfig
  from vamcei_jax.methods.state import Params

FLAGS = flags.FLAGS
STAGES = {"no_adaptation": "before", "vamcei": "after"}
PATIENTS = 12  # of a domain, at most
POINTS = 20  # in a picture, at least
Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # vectors (P, C), domains (P,) and classes (P,)


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("workdir", None, "DIR: Folder of a run; latent_space.png and .json are written there.")


def main() -> None:
  """Runs the command."""
  compare_latents(cli.required_path("workdir"))


def compare_latents(workdir: Path) -> dict:
  """Writes latent_space.png and latent_space.json, and returns the content of the latter.

  Args:
    workdir: of a run with the stages of STAGES.

  Returns:
    Stage -> distances, of evaluation.latents.measure_gap.

  Raises:
    InputError: scikit-learn is not installed, the run has not trained both stages, or there are too few slices.
  """
  try:
    import sklearn  # noqa: F401
  except ImportError:
    raise InputError("scikit-learn is not installed: .venv/bin/python -m pip install -e '.[experiments]'") from None
  from vamcei_jax.evaluation.figures import save_scatter
  from vamcei_jax.files import write_text
  from vamcei_jax.inference.load import restore_stage
  from vamcei_jax.pipeline.domains import prepare_datasets

  require_stages(workdir)
  slices, distances, pictures = {}, {}, {}
  for stage, when in STAGES.items():
    config, networks = restore_stage(workdir / stage)
    if not slices:
      datasets = prepare_datasets(config.data, workdir)
      slices = {domain: labelled_slices(builder, config) for domain, builder in datasets.items()}
    distances[stage], points = examine_stage(config, networks, slices)
    if len(points[0]) < POINTS:
      raise InputError(f"{workdir}: only {len(points[0])} slices have enough of a class; a picture needs {POINTS}")
    title = f"{when} ({stage}): {describe(distances[stage])}"
    for name, plane in project(points[0]).items():
      pictures.setdefault(name, []).append((f"{name}, {title}", plane, *points[1:]))
    print(title)
  save_scatter(workdir / "latent_space.png", list(pictures.values()))
  write_text(workdir / "latent_space.json", json.dumps(distances, indent=2) + "\n")
  print(f"Picture and numbers: {workdir}")
  return distances


def require_stages(workdir: Path) -> None:
  """Raises an InputError unless a run has reached all of STAGES."""
  from vamcei_jax.config.files import read_config

  stages = read_config(workdir)["stages"]
  for stage in STAGES:
    if stage not in stages:
      raise InputError(f"{workdir}: a run without the stage {stage}; train configs/uda.py or one like it")
    if not (workdir / stage / "checkpoints").is_dir():
      raise InputError(f"{workdir / stage}: not there yet; let the run reach this stage")


def labelled_slices(builder: "tfds.core.DatasetBuilder", config: "StageConfig") -> tuple[np.ndarray, np.ndarray]:
  """Images (N, h, w) and classes (N, h, w) of the first patients of the first split that has labelled ones.

  Raises:
    InputError: no split has.
  """
  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.data.preprocess import preprocess_classes, preprocess_settings

  settings = preprocess_settings(config.data)
  for split in ("test", "validation", "train"):
    if patients := list(itertools.islice(load_patients(builder, split), PATIENTS)):
      break
  else:
    raise InputError(f"{builder.info.full_name}: no labelled patient, and the classes must be known")
  classes = [preprocess_classes(each.truth, each.spacing, settings, each.centre) for each in patients]
  return np.concatenate([patient.image for patient in patients]), np.concatenate(classes)


def examine_stage(
  config: "StageConfig", networks: Mapping[str, "Params"], slices: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[dict, Points]:
  """The distances between the domains' latents, and the mean latents of the classes in each slice.

  Args:
    config, networks: of the stage.
    slices: domain -> images and classes, of labelled_slices.

  Returns:
    The distances, of evaluation.latents.measure_gap, and the points of both domains.
  """
  from vamcei_jax.evaluation.latents import class_means, measure_gap

  classes = {domain: labels for domain, (_, labels) in slices.items()}
  pooled, features = {}, {}
  for domain, (images, _) in slices.items():
    pooled[domain], features[domain] = encode(config, networks, images)
  points = {domain: class_means(features[domain], classes[domain]) for domain in slices}
  domains = np.repeat(list(points), [len(vectors) for vectors, _ in points.values()])
  vectors, indices = map(np.concatenate, zip(*points.values(), strict=True))
  return measure_gap(pooled, features, classes), (vectors, domains, indices)


def encode(
  config: "StageConfig", networks: Mapping[str, "Params"], images: np.ndarray
) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
  """The latents of images (N, h, w).

  Returns:
    For each scale, mean and log variance (N, n) as the global alignment sees them; and μ (N, h, w, C) at full
    resolution.
  """
  import jax

  from vamcei_jax.inference.volumes import BATCH
  from vamcei_jax.methods.supervised import make_segmenter
  from vamcei_jax.models.unet import pool_latent

  segmenter = make_segmenter(config)

  @jax.jit
  def encode_batch(params, batch):
    latents = segmenter.apply({"params": params}, batch).latents
    return [pool_latent(latent) for latent in latents], latents[0].mu

  batches = [images[start : start + BATCH, ..., None] for start in range(0, len(images), BATCH)]
  encoded = [jax.device_get(encode_batch(networks["segmenter"], batch)) for batch in batches]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *encoded)


def project(vectors: np.ndarray) -> dict[str, np.ndarray]:
  """Method -> vectors (P, C) in two dimensions (P, 2)."""
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  perplexity = min(30, len(vectors) // 4)
  methods = {"PCA": PCA(2), "t-SNE": TSNE(2, perplexity=perplexity, random_state=0)}
  return {name: method.fit_transform(vectors) for name, method in methods.items()}


def describe(distances: Mapping) -> str:
  """The measured distances in a line."""
  kl, prototypes = distances["global_kl"]["paper"], distances["prototype_distance"]
  return f"global KL {np.mean(kl):.3f} nats a dimension, prototypes {np.mean(list(prototypes.values())):.3f} apart"


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
