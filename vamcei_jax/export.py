"""What a run has learned, to ship: the network of its last stage, or of the stage named, with its configuration.

python -m vamcei_jax.export --workdir=runs/best --output=weights/student --tta --postprocess

python -m vamcei_jax.predict --weights=weights/student … uses it, by default with the flags that are given here.
"""

from pathlib import Path

from absl import flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run (its last stage is taken), or of one of its stages.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for weights.safetensors and config.json.")
_TTA = flags.DEFINE_bool("tta", False, "Predict by the mean over views, unless told otherwise.")
_POSTPROCESS = flags.DEFINE_bool("postprocess", False, "Predict with postprocessing, unless told otherwise.")
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
  from vamcei_jax.checkpoints import is_finished
  from vamcei_jax.restore import last_stage, restore_stage
  from vamcei_jax.stages import STAGES
  from vamcei_jax.weights import write_weights

  folder = last_stage(Path(_WORKDIR.value))
  config, networks = restore_stage(folder)
  if not is_finished(folder / "checkpoints", config):
    raise InputError(f"{folder}: training did not end; give its command again first")
  alone = STAGES[config.stages[-1]].target == "target" and "segmenter" in networks
  if not alone or config.data.get("located", False):
    raise InputError(f"{folder}: needs networks of other stages to predict; name another stage of the run")
  config = config.copy_and_resolve_references()
  config.data.root, config.data.prepared_dir = None, "~/.cache/vamcei_jax/data"  # where they were is nobody's business
  config.inference = {"tta": _TTA.value, "postprocess": _POSTPROCESS.value}
  write_weights(Path(_OUTPUT.value), config, networks)
  print(f"{_OUTPUT.value}: weights of {folder}")


if __name__ == "__main__":
  command_line.run(main)
