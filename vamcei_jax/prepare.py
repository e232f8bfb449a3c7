"""NIfTI folders -> prepared data: builds what a run reads, and says what is in it and what cannot be used.

python -m vamcei_jax.prepare --dataset=mscmrseg --source=DIR
python -m vamcei_jax.prepare --config=configs/folder.py --source=DIR

A run prepares its data by itself, but refuses files that it cannot use. Prepared by this command they are left out, and
named, and the exit code is 1; the run then does without them.
"""

import importlib
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, to prepare what its run reads.")
_DATASET = flags.DEFINE_string("dataset", None, "Short for --config=configs/DATASET.py.")
_SOURCE = flags.DEFINE_string("source", None, "Folder of the NIfTI volumes; short for --config.data.root.")

CONFIGS = {"phantom": "uda"}  # datasets whose config has another name


def main() -> None:
  from vamcei_jax import pipeline
  from vamcei_jax.data.labels import CLASSES
  from vamcei_jax.datasets import BUILDERS, left_out, refuse_shared
  from vamcei_jax.stages import LOCATOR, stage_configs

  if flags.FLAGS["config"].present == flags.FLAGS["dataset"].present:
    given = "not both" if flags.FLAGS["config"].present else "neither was given"
    raise InputError(f"name what to prepare by --dataset=NAME or by --config=FILE; {given}")
  if flags.FLAGS["config"].present:
    command_line.config_path()
    config = _CONFIG.value
  else:
    if _DATASET.value not in BUILDERS:
      raise InputError(f"--dataset={_DATASET.value}: no such dataset; choose one of {', '.join(BUILDERS)}")
    name = CONFIGS.get(_DATASET.value, _DATASET.value)
    if not Path("configs", f"{name}.py").is_file():
      raise InputError(f"configs/{name}.py: not found; give the command in the repository's root")
    config = importlib.import_module(f"configs.{name}").get_config()
  if _SOURCE.value is not None:
    config.data.root = _SOURCE.value

  configs = stage_configs(config)
  roles = [(next(iter(configs.values())), role, "image") for role in ("source", "target")]
  if LOCATOR in configs:  # the target's field follows from what the run's first stage finds
    roles.append((list(configs.values())[1], "source", "mask"))
  builders = {}
  for own, role, centres in roles:
    builders[role] = builder = pipeline.prepare_domain(own, role, centres=centres, leave_out=True)
    field = " x ".join(map(str, own.data.size))
    unscaled = f"pixels, {own.data.zoom:.3g} of the files' grid whatever its spacing,"
    pixels = unscaled if own.data.spacing is None else f"pixels of {own.data.spacing:g} mm"
    print(f"{role}: {own.data.name}/{own.data[role]}, {field} {pixels} about the {centres}, in {builder.data_path}")
    summaries = [summarise_split(builder, split) for split in builder.info.splits]
    print(format_summary(summaries))
    for summary in summaries:
      if absent := [name for name in CLASSES if summary[name] == "none"]:
        print(f"{summary['split']}: no {', '.join(absent)} in its masks; look at config.data.label_values")
    for file, reason in left_out(builder).items():
      print(f"left out: {file}: {reason}")
    print(flush=True)
  refuse_shared(builders["source"], builders["target"])
  if any(map(left_out, builders.values())):
    sys.exit(1)


def summarise_split(builder, split: str) -> dict[str, str]:
  """What a split of a prepared dataset holds, as the cells of a row by column."""
  import numpy as np

  from vamcei_jax.data.labels import CLASSES

  slices, spacings, ranges, labelled = [], [], [], 0
  counts = np.zeros(len(CLASSES))
  for example in builder.as_data_source(split):
    slices.append(len(example["truth"]))
    spacings.append(np.linalg.norm(example["affine"][:3, :3], axis=0))
    ranges.append(example["range"])
    if example["labelled"]:
      labelled += 1
      counts += np.bincount(example["truth"].ravel(), minlength=len(CLASSES))
  through, row, column = np.transpose(spacings)
  span = lambda values: "–".join(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values))))
  shares = [f"{count / counts.sum():.1%}" if count else "none" for count in counts] if labelled else [""] * len(CLASSES)
  return {
    "split": split,
    "volumes": str(len(slices)),
    "masks": str(labelled),
    "slices": str(sum(slices)),
    "in plane, mm": span([*row, *column]),
    "across, mm": span(through),
    "intensities": span(np.ravel(ranges)),
    **dict(zip(CLASSES, shares, strict=True)),
  }


def format_summary(rows: list[dict[str, str]]) -> str:
  """Rows of cells as a table with a header."""
  table = [list(rows[0]), *(list(row.values()) for row in rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  aligned = lambda row: "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
  return "\n".join("  " + aligned(row) for row in table)


if __name__ == "__main__":
  command_line.run(main)
