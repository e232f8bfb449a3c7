"""NIfTI in, NIfTI out: masks for volumes, by the last stage of a run or by any other. Needs no dataset.

python -m vamcei_jax.predict --workdir=runs/uda --input=volumes --output=masks
"""

import time
from pathlib import Path

from absl import flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run (its last stage predicts), or of one of its stages.")
_INPUT = flags.DEFINE_string("input", None, "A NIfTI volume, or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the masks, each with its volume's name.")
flags.mark_flags_as_required(["workdir", "input", "output"])

SUFFIXES = (".nii", ".nii.gz")


def main() -> None:
  from vamcei_jax.config import preprocess_settings
  from vamcei_jax.data.nifti import read_volume, write_classes
  from vamcei_jax.data.preprocess import preprocess_image, restore_probabilities
  from vamcei_jax.pipeline import restore_predict

  workdir, output = Path(_WORKDIR.value), Path(_OUTPUT.value)
  paths = list_volumes(Path(_INPUT.value))
  if any(path.parent.resolve() == output.resolve() for path in paths):
    raise InputError(f"{output}: masks bear the volumes' names and would replace them; choose another --output")
  predict, config = restore_predict(workdir)
  settings = preprocess_settings(config)

  for path in paths:
    read_volume(path)  # a file that cannot be read is named before anything is written

  started = time.perf_counter()
  for number, path in enumerate(paths, start=1):
    volume = read_volume(path)
    probs = predict(preprocess_image(volume.voxels, volume.spacing, settings))
    classes = restore_probabilities(probs, volume.voxels.shape, volume.spacing, settings).argmax(-1)
    write_classes(output / path.name, classes, config.data.label_values, like=path)
    print(f"{number}/{len(paths)}  {output / path.name}  {time.perf_counter() - started:.1f} s", flush=True)


def list_volumes(source: Path) -> list[Path]:
  """The volumes that `source` names: itself, or the NIfTI files in it but for masks (NAME_manual beside NAME).

  Raises:
    InputError: nothing there.
  """
  if source.is_file() and source.name.endswith(SUFFIXES):
    return [source]
  if source.is_file():
    raise InputError(f"{source}: not a {' or '.join(SUFFIXES)} file; convert it first")
  if not source.is_dir():
    raise InputError(f"{source}: not found; --input takes a NIfTI file or a folder of them")
  paths = sorted(p for p in source.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))
  names = {path.name for path in paths}
  volumes = [path for path in paths if not ("_manual." in path.name and path.name.replace("_manual.", ".") in names)]
  if not volumes:
    raise InputError(f"{source}: no {' or '.join(SUFFIXES)} file in it")
  return volumes


if __name__ == "__main__":
  command_line.run(main)
