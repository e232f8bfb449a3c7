"""Measures how much faster the student predicts than its teachers.

python -m experiments.prediction_speed --workdir=runs/multistage

Seconds a volume, from the prepared image to class probabilities, of the student and of its teachers with the
translator: medians over interleaved rounds, after each network was compiled.
"""

import json
import statistics
import time
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
ROUNDS = 20  # each predicts one volume by the student and by its teachers


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("workdir", None, "DIR: Folder of a multi-stage run; prediction_speed.json is written there.")


def main() -> None:
  """Runs the command."""
  measure_speed(cli.required_path("workdir"))


def measure_speed(workdir: Path, rounds: int = ROUNDS) -> dict:
  """Writes prediction_speed.json, and returns its content.

  Args:
    workdir: of a multi-stage run.
    rounds: volumes that each contender predicts.

  Returns:
    {"seconds": contender -> median seconds a volume, "ratio": of the teachers to the student}.

  Raises:
    InputError: the run has no trained student.
  """
  from vamcei_jax.data.loader import load_patients
  from vamcei_jax.files import write_text
  from vamcei_jax.inference.load import load_segmenter
  from vamcei_jax.methods.distillation import mean_probabilities
  from vamcei_jax.pipeline.domains import prepare_datasets
  from vamcei_jax.pipeline.stages import teacher_weights

  student = load_segmenter(workdir / "distill")
  weights = teacher_weights(student.config)
  teachers = [load_segmenter(workdir / teacher).segment for teacher in weights]
  contenders = {
    "student": student.segment,
    "teachers": lambda image: mean_probabilities([segment(image) for segment in teachers], tuple(weights.values())),
  }
  target = prepare_datasets(student.config.data, workdir)["target"]
  images = [patient.image for patient in load_patients(target, "validation")]
  seconds = {name: [] for name in contenders}
  for number in range(rounds + 1):
    for name, segment in contenders.items():
      started = time.perf_counter()
      segment(images[number % len(images)])
      seconds[name].append(time.perf_counter() - started)
  medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first one compiles
  results = {"seconds": medians, "ratio": medians["teachers"] / medians["student"]}
  for name, median in medians.items():
    print(f"{name:<10}{1e3 * median:8.1f} ms a volume")
  print(f"The student is {results['ratio']:.1f} times as fast as its teachers.")
  write_text(workdir / "prediction_speed.json", json.dumps(results, indent=2) + "\n")
  return results


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
