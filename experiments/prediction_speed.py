"""How much faster is the student than what it was taught by?

python -m experiments.prediction_speed --workdir=runs/multistage

Seconds a volume, from prepared image to class probabilities, of the student and of both teachers with the translator:
medians over interleaved rounds, after each network has been compiled.
"""

import json
import statistics
import time
from pathlib import Path

from absl import flags

from vamcei_jax import command_line

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a multi-stage run; prediction_speed.json is written there.")
flags.mark_flag_as_required("workdir")

ROUNDS = 20  # each predicts one volume with either


def main() -> None:
  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.files import write_text
  from vamcei_jax.methods.distillation import mean_probabilities
  from vamcei_jax.pipeline import prepare_datasets
  from vamcei_jax.restore import restore_predict
  from vamcei_jax.stages import teacher_weights

  workdir = Path(_WORKDIR.value)
  student, own = restore_predict(workdir / "distill")
  weights = teacher_weights(own)
  teachers = [restore_predict(workdir / teacher)[0] for teacher in weights]
  contenders = {
    "student": student,
    "teachers": lambda image: mean_probabilities([teacher(image) for teacher in teachers], tuple(weights.values())),
  }

  target = prepare_datasets(own, workdir)["target"]
  images = [patient.image for patient in load_patients(target, "validation")]
  seconds = {name: [] for name in contenders}
  for number in range(ROUNDS + 1):
    for name, predict in contenders.items():
      started = time.perf_counter()
      predict(images[number % len(images)])
      seconds[name].append(time.perf_counter() - started)
  medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first one compiles
  ratio = medians["teachers"] / medians["student"]
  for name, median in medians.items():
    print(f"{name:<10}{1e3 * median:8.1f} ms a volume")
  print(f"The student is {ratio:.1f} times faster.")
  write_text(workdir / "prediction_speed.json", json.dumps({"seconds": medians, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
  command_line.run(main)
