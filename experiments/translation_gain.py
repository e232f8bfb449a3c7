"""Measures how much nearer translated images are to the target, by a segmenter that was trained on target labels.

python -m experiments.translation_gain --workdir=runs/multistage --judge=runs/domain_gap/lge_labels

The judge, a segmenter trained on real target images with their labels (experiments/domain_gap.py trains one), segments
the source's test patients as they are and translated to the target, and is scored by the source's masks. On the same
patients, the mean absolute error after translation there and back. Needs a dataset whose source has test patients, as
the phantom has.
"""

import json
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("workdir", None, "DIR: Folder of a multi-stage run; translation_gain.json is written there.")
    flags.DEFINE_string("judge", None, "DIR: Folder of a run trained on target labels.")


def main() -> None:
  """Runs the command."""
  measure_gain(cli.required_path("workdir"), cli.required_path("judge"))


def measure_gain(workdir: Path, judge: Path) -> dict:
  """Writes translation_gain.json, prints its table, and returns its content.

  Args:
    workdir: of a multi-stage run.
    judge: folder of a run trained on target labels.

  Returns:
    {"source", "translated": summaries of the judge's scores, "cycle_error": mean absolute error of the intensities in
    [0, 1] after translation there and back}.

  Raises:
    InputError: a folder has no network, or the source has no labelled test patient.
  """
  import jax
  import numpy as np

  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.data.preprocess import preprocess_settings
  from vamcei_jax.errors import InputError
  from vamcei_jax.evaluation.statistics import format_table, summarise
  from vamcei_jax.files import write_text
  from vamcei_jax.inference.load import load_segmenter, restore_stage
  from vamcei_jax.inference.volumes import translate_volume
  from vamcei_jax.methods import cyclegan
  from vamcei_jax.pipeline.domains import prepare_datasets
  from vamcei_jax.pipeline.validation import score

  config, translators = restore_stage(workdir / "translate")
  segment = load_segmenter(judge).segment
  network = jax.jit(cyclegan.make_predict(config))
  patients = list(load_patients(prepare_datasets(config.data, workdir)["source"], "test"))
  if not patients:
    raise InputError(f"{config.data.name}/{config.data.source}: no labelled test patient to judge translations on")

  images = [patient.image for patient in patients]
  translated = [translate_volume(network, translators, "to_target", image) for image in images]
  restored = [translate_volume(network, translators, "to_source", image) for image in translated]
  settings = preprocess_settings(config.data)
  summaries = {
    name: summarise(score(patients, [segment(image) for image in stack], settings))
    for name, stack in (("source", images), ("translated", translated))
  }
  error = float(np.mean([np.abs(a - b).mean() for a, b in zip(images, restored, strict=True)]))
  print(f"{len(patients)} test patients of {config.data.source}, by a judge of {config.data.target}")
  print(f"{format_table(summaries)}\nmean absolute error of the cycle: {error:.4f}")
  results = {**summaries, "cycle_error": error}
  write_text(workdir / "translation_gain.json", json.dumps(results, indent=2) + "\n")
  return results


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
