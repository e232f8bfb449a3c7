"""Exports the network of a finished run, or of one of its stages, as weights to share.

python -m vamcei_jax.export --workdir=runs/best --output=weights/student --postprocess
python -m vamcei_jax.export --workdir=runs/multistage/target_vamcei --output=weights/teacher

--tta, --postprocess and --smooth become the defaults of `predict --weights=weights/student`. If the training kept
the pixel grid (data.spacing=None), export also stores the pixel sizes of the target, and predict resamples pixels of
other sizes to them.
"""

from absl import flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

FLAGS = flags.FLAGS
OPTIONS = ("tta", "postprocess", "smooth")


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("workdir", None, "DIR: Folder of a run (its last stage is exported) or of one of its stages.")
    flags.DEFINE_string("output", None, "DIR: Folder for weights.safetensors and config.json.")
  with group("defaults of prediction with these weights"):
    cli.define_inference_flags(*OPTIONS)


def main() -> None:
  """Runs the command."""
  from vamcei_jax.inference.export import export_weights

  workdir, output = cli.required_path("workdir"), cli.required_path("output")
  export_weights(workdir, output, **cli.inference_options(*OPTIONS))
  print(f"{FLAGS.output}: weights of {FLAGS.workdir}")


def command() -> None:
  """Entry point of `vamcei-export`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
