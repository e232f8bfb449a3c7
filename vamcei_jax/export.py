"""What a run has learned, to ship: the network of its last stage, or of the stage named, with its configuration.

python -m vamcei_jax.export --workdir=runs/best --output=weights/student --tta --postprocess

python -m vamcei_jax.predict --weights=weights/student … uses it, by default with the flags that are given here, and,
where the run has no `data.spacing`, with pixels of other sizes than its target had resampled to those.
"""

import math
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run (its last stage is taken), or of one of its stages.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for weights.safetensors and config.json.")
_TTA = flags.DEFINE_bool("tta", False, "Predict by the mean over views, unless told otherwise.")
_POSTPROCESS = flags.DEFINE_bool("postprocess", False, "Predict with postprocessing, unless told otherwise.")
_SMOOTH = flags.DEFINE_float("smooth", 0.0, "Predict with this --smooth, in mm, unless told otherwise.", 0.0)
_ODDS = flags.DEFINE_list("odds", ["1", "1", "1"], "Predict with these --odds, unless told otherwise.")
flags.register_validator("smooth", math.isfinite, "must be finite")
flags.mark_flags_as_required(["workdir", "output"])


def main() -> None:
  from vamcei_jax.config import CONFIG_FILE, read_config
  from vamcei_jax.evaluation.inference import trained_views
  from vamcei_jax.restore import last_stage, restore_final
  from vamcei_jax.stages import STAGES
  from vamcei_jax.weights import WEIGHTS_FILE, write_weights

  odds = command_line.parse_odds(_ODDS.value)
  folder, output = last_stage(Path(_WORKDIR.value)), Path(_OUTPUT.value)
  if (output / CONFIG_FILE).exists() and not (output / WEIGHTS_FILE).exists():
    raise InputError(f"{output}: holds a run; choose another --output")
  config = read_config(folder)
  if STAGES[config.stages[-1]].target != "target" or config.data.get("located", False):
    raise InputError(f"{folder}: needs networks of other stages to predict; name another stage of the run")
  if config.stages[-1] == "translate":
    raise InputError(f"{folder}: a stage that translates and segments nothing; name another stage of the run")
  if _TTA.value and len(trained_views(config.augment)) == 1:
    raise InputError(f"{folder}: trained without rotation, scale or flip; export it without --tta")
  if (networks := restore_final(folder, config)) is None:
    raise InputError(f"{folder}: no whole checkpoint of its last step; give the run's command again first")
  pixel_mm = trained_pixels(config)
  config.data.root, config.data.prepared_dir = None, "~/.cache/vamcei_jax/data"  # where they were is nobody's business
  config.inference = {"tta": _TTA.value, "postprocess": _POSTPROCESS.value, "smooth": _SMOOTH.value, "odds": odds}
  config.inference.pixel_mm = pixel_mm
  write_weights(output, config, networks)
  print(f"{output}: weights of {folder}")


def trained_pixels(config: ConfigDict) -> list[float] | None:
  """The smallest and the largest pixel, in mm, of the target volumes that a stage was trained on.

  None for one that resamples by the headers itself, and where its prepared data are not there any more.
  """
  import tensorflow_datasets as tfds

  from vamcei_jax.data.loader import load_spacings, naming_damage

  if config.data.spacing is not None:
    return None
  folder = Path(config.data.prepared_dir).expanduser() / config.data.get("datasets", ["", ""])[1]
  if not (folder / "dataset_info.json").exists():
    way_out = "make them again with python -m vamcei_jax.prepare, or predict will take all pixels as they are"
    print(f"{folder}: prepared data are not there; {way_out}", file=sys.stderr)
    return None
  with naming_damage(folder):
    target = tfds.builder_from_directory(folder)
  pixels = [mm for spacing in load_spacings(target, "train") for mm in spacing[1:]]
  return [float(f"{mm:.4g}") for mm in (min(pixels), max(pixels))]


if __name__ == "__main__":
  command_line.run(main)
