"""NIfTI in, NIfTI out: masks for volumes, by the last stage of a run or by any other. Needs no dataset.

python -m vamcei_jax.predict --workdir=runs/uda --input=volumes --output=masks
python -m vamcei_jax.predict --weights=weights/mscmrseg_student --input=volumes --output=masks

With --samples=N, also an entropy map beside each mask (NAME_entropy.nii.gz, in nats) and uncertainty.csv; with
--probabilities, the classes' probabilities (NAME_probabilities.nii.gz, the class is the fourth axis).
"""

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run (its last stage predicts), or of one of its stages.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Folder of exported weights, in place of a run.")
_INPUT = flags.DEFINE_string("input", None, "A NIfTI volume, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the masks, each with its volume's name.")
_TTA = flags.DEFINE_bool("tta", None, "Take the mean over views: turned, scaled, flipped, within what was trained.")
_POSTPROCESS = flags.DEFINE_bool("postprocess", None, "Keep each structure's largest component, and fill holes.")
_SMOOTH = flags.DEFINE_float("smooth", None, "Smooth along the stack, by a Gaussian of this deviation in mm.", 0.0)
_SAMPLES = flags.DEFINE_integer("samples", 0, "Draws of the latents to take the mean of; 0 for their means.", 0)
_PROBABILITIES = flags.DEFINE_bool("probabilities", False, "Write probabilities too.")
_ODDS = flags.DEFINE_list("odds", None, "Multiply the probabilities of Myo, LV and RV, as 1,0.5,1 for less LV.")
_RESAMPLE = flags.DEFINE_bool("resample", True, "Resample pixels of another size than --weights were trained on.")
flags.register_validator("smooth", lambda mm: mm is None or math.isfinite(mm), "must be finite")
flags.mark_flags_as_required(["input", "output"])
flags.mark_flags_as_mutual_exclusive(["workdir", "weights"], required=True)

UNCERTAINTY_FILE = "uncertainty.csv"


def main() -> None:
  from tqdm import tqdm

  from vamcei_jax.data.nifti import list_volumes
  from vamcei_jax.restore import restore_locator, restore_predict, usual

  shipped = _WORKDIR.value is None
  folder, output = Path(_WEIGHTS.value if shipped else _WORKDIR.value), Path(_OUTPUT.value)
  odds = None if _ODDS.value is None else command_line.parse_odds(_ODDS.value)
  paths = list_volumes(Path(_INPUT.value))
  if any(path.parent.resolve() == output.resolve() for path in paths):
    raise InputError(f"{output}: masks bear the volumes' names and would replace them; choose another --output")
  predict, config = restore_predict(folder, shipped=shipped, views=_TTA.value, sampled=_SAMPLES.value > 0)
  clean = usual(config, "postprocess") if _POSTPROCESS.value is None else _POSTPROCESS.value
  smooth = usual(config, "smooth") if _SMOOTH.value is None else _SMOOTH.value
  odds = usual(config, "odds") or (1.0, 1.0, 1.0) if odds is None else odds
  locate = restore_locator(folder, config)

  options = {"samples": _SAMPLES.value, "clean": clean, "smooth": smooth, "odds": odds}
  options |= {"probabilities": _PROBABILITIES.value, "resample": _RESAMPLE.value}
  failures = []
  for path in tqdm(paths, "volumes", unit="volume", disable=None):
    try:
      found = predict_file(path, output, predict, locate, config, **options)
    except InputError as error:
      failures.append(str(error))
      continue
    except MemoryError:
      failures.append(f"{path}: too large for this machine's memory. Crop it.")
      continue
    update_rows(output / UNCERTAINTY_FILE, path.name, found)
  if len(failures) == len(paths):
    more = f" ({len(failures) - 1} other files failed as well)" if len(failures) > 1 else ""
    raise InputError(failures[0] + more)
  print(f"{len(paths) - len(failures)} of {len(paths)} volumes segmented: {output}")
  command_line.end(failures)


def predict_file(
  path: Path,
  output: Path,
  predict: Callable,
  locate: Callable,
  config: ConfigDict,
  *,
  samples: int = 0,
  clean: bool = False,
  smooth: float = 0.0,
  odds: Sequence[float] = (1.0, 1.0, 1.0),
  probabilities: bool = False,
  resample: bool = True,
) -> list[dict]:
  """Writes what is said of one volume.

  Args:
    path: of the volume.
    output: folder of what is written.
    predict, locate, config: see vamcei_jax/restore.py.
    samples: how often the latents are drawn; 0 for their means.
    clean: whether the classes are postprocessed.
    smooth: standard deviation in mm of a Gaussian along the stack, by which probabilities are smoothed; 0 for none.
    odds: by which the probabilities of Myo, LV and RV are multiplied, before they are made to sum to 1.
    probabilities: whether they are written too.
    resample: whether pixels of another size than exported weights were trained on are resampled; see match_pixels.

  Returns:
    The rows of its uncertainty, one a structure, if latents are drawn.

  Raises:
    InputError: a volume that cannot be read, or whose pixels cannot be meant, or a map that cannot be written.
  """
  import jax
  from tqdm import tqdm

  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.nifti import MAPS, read_volume, volume_name, write_classes, write_map
  from vamcei_jax.data.preprocess import match_pixels, preprocess_image, restore_probabilities
  from vamcei_jax.evaluation.postprocess import postprocess, shift_prior, smooth_slices
  from vamcei_jax.evaluation.uncertainty import entropy, structure_uncertainty, summarise_draws
  from vamcei_jax.restore import usual

  view = config.data.get("view", "short_axis")
  volume = read_volume(path, view)
  own = preprocess_settings(config)
  try:
    settings = match_pixels(own, volume.spacing, usual(config, "pixel_mm")) if resample else own
  except InputError as error:
    raise InputError(f"{path}: {error}") from None
  if settings != own:
    pixels = "×".join(f"{mm:.3g}" for mm in volume.spacing[1:])
    tqdm.write(f"{path}: pixels of {pixels} mm, resampled to those of {settings.spacing * own.zoom:.3g} mm trained on")
  centre = locate(volume)
  image = preprocess_image(volume.voxels, volume.spacing, settings, centre)
  smoothed = lambda probs: smooth_slices(probs, volume.spacing[0], smooth)
  restored = lambda probs: restore_probabilities(probs, volume.voxels.shape, volume.spacing, settings, centre)
  restore = lambda probs: shift_prior(restored(smoothed(probs)), odds)
  if samples:
    # The same draws for every volume: what is said of one does not depend on which others lie beside it.
    keys = jax.random.split(jax.random.key(0), samples)
    probs, draws = summarise_draws(restore(predict(image, key)) for key in keys)
  else:
    probs = restore(predict(image))
  classes = postprocess(probs) if clean else probs.argmax(-1)

  name = volume_name(path)
  named = lambda kind: output / f"{name}_{kind}{path.name.removeprefix(name)}"
  for earlier in (output / path.name, *map(named, MAPS)):
    earlier.unlink(missing_ok=True)
  if probabilities:
    write_map(named("probabilities"), probs, path, view)
  rows = []
  if samples:
    entropies = entropy(probs)
    write_map(named("entropy"), entropies, path, view)
    uncertainty = structure_uncertainty(classes, draws, entropies, volume.spacing)
    rows = [{"volume": path.name, "structure": structure, **values} for structure, values in uncertainty.items()]
  # Last: a volume that has a mask has all its maps.
  write_classes(output / path.name, classes, config.data.label_values, path, view)
  return rows


def update_rows(path: Path, volume: str, rows: list[dict]) -> None:
  """Puts a volume's rows into a csv in place of those that it had; numbers have six digits. No row, no file."""
  from vamcei_jax.files import write_text

  rounded = lambda value: f"{value:.6g}" if isinstance(value, float) else value
  rows = [{name: rounded(value) for name, value in row.items()} for row in rows]
  if path.exists():
    with path.open(newline="", encoding="utf-8") as table:
      rows = [row for row in csv.DictReader(table) if row["volume"] != volume] + rows
  if not rows:
    path.unlink(missing_ok=True)
    return
  table = io.StringIO()
  writer = csv.DictWriter(table, rows[0], lineterminator="\n")
  writer.writeheader()
  writer.writerows(sorted(rows, key=lambda row: row["volume"]))
  write_text(path, table.getvalue())


if __name__ == "__main__":
  command_line.run(main)
