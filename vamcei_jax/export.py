"""Exports the network of a finished run, or of one of its stages, as weights to ship.

python -m vamcei_jax.export --workdir=runs/best --output=weights/student --postprocess

The flags become the defaults of `predict --weights=weights/student`. Where the training kept the pixel grid
(data.spacing=None), the pixel sizes of its target are stored, and prediction resamples pixels of other sizes to them.
"""

from absl import flags

from vamcei_jax import cli

FLAGS = flags.FLAGS
OPTIONS = ("tta", "postprocess", "smooth")


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_string("workdir", None, "Folder of a run (its last stage is exported) or of one of its stages.")
  flags.DEFINE_string("output", None, "Folder for weights.safetensors and config.json.")
  cli.define_inference_flags(*OPTIONS)
  flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
  """Runs the command."""
  from vamcei_jax.inference.export import export_weights

  export_weights(FLAGS.workdir, FLAGS.output, **cli.inference_options(*OPTIONS))
  print(f"{FLAGS.output}: weights of {FLAGS.workdir}")


def command() -> None:
  """Entry point of `vamcei-export`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
