"""Averages the parameters of exported weights that one network was trained into: a model soup.

python -m experiments.average_weights --weights=DIR,DIR --output=DIR

The weights must have the same network and the same defaults of prediction. Configuration and defaults are those of the
first one. Networks that were fine-tuned from the same start can often be averaged, and the mean is then more robust
than each of them (Wortsman et al., Model soups, ICML 2022). Networks with different starts cannot.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_list("weights", None, "DIR,DIR: Folders of exported weights.")
    flags.DEFINE_string("output", None, "DIR: New folder for the mean.")


def main() -> None:
  """Runs the command."""
  average_weights([Path(folder) for folder in FLAGS.weights], cli.required_path("output"))
  print(f"{FLAGS.output}: mean of {len(FLAGS.weights)} weights")


def average_weights(folders: Sequence[Path], output: Path) -> None:
  """Writes the mean of weights.

  Args:
    folders: of exported weights, at least two.
    output: a folder that does not exist.

  Raises:
    InputError: a folder has no weights, another network or other defaults than the first; or the output exists.
  """
  import jax
  import numpy as np

  from vamcei_jax.inference.weights import read_weights, write_weights

  if len(folders) < 2:
    raise InputError("--weights: name at least two folders")
  if output.exists():
    raise InputError(f"{output}: exists; choose another --output")
  config, inference, first = read_weights(folders[0])
  kind = config.name, config.model, inference
  networks = [first]
  for folder in folders[1:]:
    other_config, other_inference, other = read_weights(folder)
    if (other_config.name, other_config.model, other_inference) != kind:
      raise InputError(f"{folder}: another network or other defaults of prediction than {folders[0]}")
    networks.append(other)
  write_weights(output, config, inference, jax.tree.map(lambda *arrays: np.mean(arrays, axis=0), *networks))


if __name__ == "__main__":
  cli.run(define_flags, main, __doc__)
