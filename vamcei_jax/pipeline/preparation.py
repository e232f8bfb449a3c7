"""Preparation of a run's data, with a table of what is in them."""

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vamcei_jax.config.schema import DataConfig
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.datasets import left_out, refuse_shared
from vamcei_jax.pipeline.domains import prepare_domain
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import LOCATOR


def prepare_run(config: ConfigDict) -> bool:
  """Prepares the datasets of a run, and prints what is in them.

  Args:
    config: of the run.

  Returns:
    Whether all files can be used.

  Raises:
    InputError: the config or a folder cannot be used, or source and target share an image.
  """
  stages = resolve(config).stages
  settings = [stage.data for stage in stages.values()]
  roles = [(settings[0], role, "image") for role in ("source", "target")]
  if LOCATOR in stages:  # the field of the target is known after the stage `locate`
    roles.append((settings[1], "source", "mask"))
  builders = {}
  for data, role, centres in roles:
    builders[role] = builder = prepare_domain(data, role, centres=centres, leave_out=True)
    print_domain(data, role, centres, builder)
  refuse_shared(builders["source"], builders["target"])
  return not any(map(left_out, builders.values()))


def print_domain(data: DataConfig, role: str, centres: str, builder: tfds.core.DatasetBuilder) -> None:
  """Prints what is in a prepared domain, and the files that were left out."""
  field = " x ".join(map(str, data.size))
  unscaled = f"pixels, {data.zoom:.3g} of the files' grid whatever its spacing,"
  pixels = unscaled if data.spacing is None else f"pixels of {data.spacing:g} mm"
  domain = data.source if role == "source" else data.target
  print(f"{role}: {data.name}/{domain}, {field} {pixels} about the {centres}, in {builder.data_path}")
  summaries = [summarise_split(builder, split) for split in builder.info.splits]
  print(format_summary(summaries))
  for summary in summaries:
    if absent := [name for name in CLASSES if summary[name] == "none"]:
      print(f"{summary['split']}: no {', '.join(absent)} in its masks; look at config.data.label_values")
  for file, reason in left_out(builder).items():
    print(f"left out: {file}: {reason}")
  print(flush=True)


def summarise_split(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, str]:
  """What is in a split of a prepared dataset: column -> cell."""
  slices, spacings, ranges, labelled = [], [], [], 0
  counts = np.zeros(len(CLASSES))
  for example in builder.as_data_source(split):
    slices.append(len(example["truth"]))
    spacings.append(np.linalg.norm(example["affine"][:3, :3], axis=0))
    ranges.append(example["range"])
    if example["labelled"]:
      labelled += 1
      counts += np.bincount(example["truth"].ravel(), minlength=len(CLASSES))
  across, row, column = np.transpose(spacings)
  span = lambda values: "–".join(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values))))
  shares = [f"{count / counts.sum():.1%}" if count else "none" for count in counts] if labelled else [""] * len(CLASSES)
  return {
    "split": split,
    "volumes": str(len(slices)),
    "masks": str(labelled),
    "slices": str(sum(slices)),
    "in plane, mm": span([*row, *column]),
    "across, mm": span(across),
    "intensities": span(np.ravel(ranges)),
    **dict(zip(CLASSES, shares, strict=True)),
  }


def format_summary(rows: list[dict[str, str]]) -> str:
  """Rows of cells as a table with a header."""
  table = [list(rows[0]), *(list(row.values()) for row in rows)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  aligned = lambda row: "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
  return "\n".join("  " + aligned(row) for row in table)
