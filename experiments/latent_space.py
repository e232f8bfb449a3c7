"""Do the two domains meet in the latent space? Latents of both, by class, before and after adaptation.

python -m experiments.latent_space --workdir=runs/uda

A point is the mean μ of the full-resolution latent over a class's pixels in a slice, put into two dimensions by PCA and
by t-SNE, for the stages no_adaptation and vamcei. Beside the pictures, what adaptation minimises, measured over all
slices: the global KL at every scale (eqs. 5-8, by both estimators, in nats a latent dimension) and the distance between
the domains' prototypes of each class (eq. 9; 1 - cosine). Classes are those of the truth in both domains: patients of
the test split, where a domain has one, else validation, else train.
"""

import json
from pathlib import Path

from absl import flags

from vamcei_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run; latent_space.png and .json are written there.")
flags.mark_flag_as_required("workdir")

STAGES = {"no_adaptation": "before", "vamcei": "after"}
PATIENTS = 12  # of a domain, at most
POINTS = 20  # for a picture, at least


def main() -> None:
  import numpy as np

  from vamcei_jax.config import read_config
  from vamcei_jax.errors import InputError
  from vamcei_jax.evaluation.figures import save_scatter
  from vamcei_jax.evaluation.latents import class_means, measure_gap
  from vamcei_jax.files import write_text
  from vamcei_jax.pipeline import prepare_datasets
  from vamcei_jax.restore import restore_stage

  try:
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
  except ImportError:
    raise InputError("scikit-learn is not installed: .venv/bin/python -m pip install -e '.[experiments]'") from None

  workdir = Path(_WORKDIR.value)
  if missing := [stage for stage in STAGES if stage not in read_config(workdir).stages]:
    raise InputError(f"{workdir}: a run without the stage {missing[0]}; train configs/uda.py or one like it")
  if missing := [stage for stage in STAGES if not (workdir / stage / "checkpoints").is_dir()]:
    raise InputError(f"{workdir / missing[0]}: not there yet; let the run reach this stage")
  slices, measured, rows = None, {}, {"PCA": [], "t-SNE": []}
  for stage, when in STAGES.items():
    config, networks = restore_stage(workdir / stage)
    if slices is None:
      slices = {role: labelled_slices(builder, config) for role, builder in prepare_datasets(config, workdir).items()}
    classes = {role: own for role, (_, own) in slices.items()}
    encoded = {role: encode(config, networks, images) for role, (images, _) in slices.items()}
    pooled, features = ({role: own[part] for role, own in encoded.items()} for part in (0, 1))
    measured[stage] = measure_gap(pooled, features, classes)
    points = {role: class_means(features[role], classes[role]) for role in slices}
    vectors = np.concatenate([vectors for vectors, _ in points.values()])
    if len(vectors) < POINTS:
      raise InputError(f"{workdir}: only {len(vectors)} slices hold enough of a class; a picture needs {POINTS}")
    domains = np.repeat(list(points), [len(vectors) for vectors, _ in points.values()])
    shown = np.concatenate([own for _, own in points.values()])
    title = f"{when} ({stage}): {describe(measured[stage])}"
    perplexity = min(30, len(vectors) // 4)
    for name, method in (("PCA", PCA(2)), ("t-SNE", TSNE(2, perplexity=perplexity, random_state=0))):
      rows[name].append((f"{name}, {title}", method.fit_transform(vectors), domains, shown))
    print(title)
  save_scatter(workdir / "latent_space.png", list(rows.values()))
  write_text(workdir / "latent_space.json", json.dumps(measured, indent=2) + "\n")
  print(f"Picture and numbers: {workdir}")


def labelled_slices(builder, config) -> tuple:
  """Images (N, h, w) and classes (N, h, w) of the first patients of the split that is scored, or of "train"."""
  import itertools

  import numpy as np

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.data.preprocess import preprocess_classes
  from vamcei_jax.errors import InputError

  for split in ("test", "validation", "train"):
    if patients := list(itertools.islice(load_patients(builder, split), PATIENTS)):
      break
  else:
    raise InputError(f"{builder.info.full_name}: no labelled patient; classes can't be told apart")
  classes = [preprocess_classes(own.truth, own.spacing, preprocess_settings(config), own.centre) for own in patients]
  return np.concatenate([own.image for own in patients]), np.concatenate(classes)


def encode(config, networks, images) -> tuple:
  """Of all images: (mean, log variance) by scale as the global alignment sees them, and μ at full resolution."""
  import jax
  import numpy as np

  from vamcei_jax.evaluation.inference import BATCH
  from vamcei_jax.methods.supervised import make_segmenter
  from vamcei_jax.models.unet import pool_latent

  segmenter = make_segmenter(config)

  @jax.jit
  def look(params, batch):
    latents = segmenter.apply({"params": params}, batch).latents
    return [pool_latent(latent) for latent in latents], latents[0].mu

  batches = [images[start : start + BATCH, ..., None] for start in range(0, len(images), BATCH)]
  encoded = [jax.device_get(look(networks["segmenter"], batch)) for batch in batches]
  return jax.tree.map(lambda *parts: np.concatenate(parts), *encoded)


def describe(measured: dict) -> str:
  """The measured distances in a line."""
  import numpy as np

  kl, distances = measured["global_kl"]["paper"], measured["prototype_distance"]
  return f"global KL {np.mean(kl):.3f} nats a dimension, prototypes {np.mean(list(distances.values())):.3f} apart"


if __name__ == "__main__":
  command_line.run(main)
