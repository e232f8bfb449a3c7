"""Averages the parameters of several exported weights of one architecture (a model soup).

python -m experiments.average_weights --weights=DIR,DIR --output=DIR

All weights must have the same architecture, pixels, classes and defaults of prediction. Only the size of their field
may differ. The config.json of the mean is that of the first weights: predict uses their field, and the file describes
their training alone. Networks that were fine-tuned from the same start can often be averaged, and the mean is then more
robust than each of them (Wortsman et al., Model soups, ICML 2022). Networks with different starts cannot be averaged in
this way.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.config.schema import InferenceConfig, StageConfig
from vamcei_jax.data.labels import folded_values
from vamcei_jax.data.preprocess import preprocess_settings
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_list("weights", None, "DIR,DIR: Folders of exported weights.")
    flags.DEFINE_string("output", None, "DIR: New folder for the mean.")


def main() -> None:
  """Runs the command."""
  average_weights([expanded(folder) for folder in FLAGS.weights], cli.required_path("output"))
  print(f"{FLAGS.output}: mean of {len(FLAGS.weights)} weights")


def average_weights(folders: Sequence[Path], output: Path) -> None:
  """Writes the mean of weights.

  Args:
    folders: of exported weights, at least two, all different.
    output: a folder that does not exist.

  Raises:
    InputError: a folder has no weights, or weights that cannot be averaged with the first; or the output exists.
  """
  import jax
  import numpy as np

  from vamcei_jax.inference.weights import read_weights, write_weights

  if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
    raise InputError("--weights: name at least two folders, each once")
  if output.exists():
    raise InputError(f"{output}: exists; choose another --output")
  config, inference, first = read_weights(folders[0])
  networks = [first]
  for folder in folders[1:]:
    other, other_inference, parameters = read_weights(folder)
    if _kind(other, other_inference) != _kind(config, inference):
      raise InputError(f"{folder}: another architecture, pixels, classes or defaults of prediction than {folders[0]}")
    networks.append(parameters)
  write_weights(output, config, inference, jax.tree.map(lambda *arrays: np.mean(arrays, axis=0), *networks))


def _kind(config: StageConfig, inference: InferenceConfig) -> tuple:
  """What networks that are averaged must have in common: all but the size of the field."""
  data = config.data
  pixels = dataclasses.replace(preprocess_settings(data), size=(1, 1))
  values = data.plane, folded_values(data.label_values)
  around_hearts = inference.extent_mm is not None
  return config.name, config.model, pixels, values, around_hearts, dataclasses.replace(inference, extent_mm=None)


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
