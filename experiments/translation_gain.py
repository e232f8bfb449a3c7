"""Does translation bring a domain nearer? Judged by a segmenter that has seen the real target and its labels.

python -m experiments.translation_gain --workdir=runs/multistage --judge=runs/domain_gap/lge_labels

Scores the judge, a segmenter trained on real target images with their labels (experiments/domain_gap.py makes one), on
the source's test patients as they are and translated to the target, with the source's masks. Beside it, the mean
absolute error of the way there and back on the same patients. Needs a dataset whose source has test patients, as the
phantom has.
"""

import json
from pathlib import Path

from absl import flags

from vamcei_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a multi-stage run; translation_gain.json is written there.")
_JUDGE = flags.DEFINE_string("judge", None, "Folder of a run trained on target labels.")
flags.mark_flags_as_required(["workdir", "judge"])


def main() -> None:
  import jax
  import numpy as np

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.errors import InputError
  from vamcei_jax.evaluation.statistics import format_table, summarise
  from vamcei_jax.evaluation.watch import score
  from vamcei_jax.files import write_text
  from vamcei_jax.methods import cyclegan
  from vamcei_jax.pipeline import prepare_datasets
  from vamcei_jax.restore import restore_predict, restore_stage, translate_volume

  workdir = Path(_WORKDIR.value)
  config, translators = restore_stage(workdir / "translate")
  judge, _ = restore_predict(Path(_JUDGE.value))
  network = jax.jit(cyclegan.make_predict(config))
  translate = lambda direction, image: translate_volume(network, translators, direction, image)

  patients = list(load_patients(prepare_datasets(config, workdir)["source"], "test"))
  if not patients:
    raise InputError(f"{config.data.name}/{config.data.source}: no labelled test patient to judge translations on")
  images = [patient.image for patient in patients]
  translated = [translate("to_target", image) for image in images]
  restored = [translate("to_source", image) for image in translated]

  settings = preprocess_settings(config)
  results = {
    name: summarise(score(patients, [judge(image) for image in seen], settings))
    for name, seen in (("source", images), ("translated", translated))
  }
  error = float(np.mean([np.abs(a - b).mean() for a, b in zip(images, restored, strict=True)]))
  print(f"{len(patients)} test patients of {config.data.source}, by a judge of {config.data.target}")
  print(f"{format_table(results)}\nmean absolute error of the cycle: {error:.4f}")
  write_text(workdir / "translation_gain.json", json.dumps({**results, "cycle_error": error}, indent=2) + "\n")


if __name__ == "__main__":
  command_line.run(main)
