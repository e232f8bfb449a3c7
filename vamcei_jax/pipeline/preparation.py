"""Preparation of a run's data, with a table of what is in them."""

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vamcei_jax.config.schema import DataConfig
from vamcei_jax.data.geometry import spacing_of
from vamcei_jax.data.labels import CLASSES
from vamcei_jax.datasets import left_out, refuse_shared
from vamcei_jax.pipeline.domains import SAME_PATIENTS, domain_of, notes, prepare_domain
from vamcei_jax.pipeline.resolve import resolve
from vamcei_jax.pipeline.stages import ADAPT, LOCATOR
from vamcei_jax.pipeline.teacher_predictions import check_same_patients

# Sizes of hearts -> the medians that a group of patients can have.
HEART_SIZES = {"LV, ml": (15, 350), "heart, mm": (35, 100)}


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
  roles = [(settings[0], "target", "image")]
  if settings[0].source is not None:
    roles.insert(0, (settings[0], "source", "mask" if ADAPT in stages else "image"))
  if settings[0].same_patients is not None:
    roles.append((settings[0], SAME_PATIENTS, "image"))
  if LOCATOR in stages:  # the field of the target is known after the stage `locate`
    roles.append((settings[1], "source", "mask"))
  builders, sizes = {}, {}
  for data, role, centres in roles:
    first = role not in builders
    builders[role] = builder = prepare_domain(data, role, centres=centres, leave_out=True)
    sizes[role] = print_domain(data, role, centres, builder)
    if first:
      for note in notes(data, role, builder, masks=True):
        print(f"warning: {note}", flush=True)
  if "source" in builders:
    resampled = settings[0].spacing is not None
    for warning in size_warnings(sizes["source"], sizes["target"], resampled=resampled):
      print(f"warning: {warning}", flush=True)
    refuse_shared(builders["source"], builders["target"])
  if SAME_PATIENTS in builders:
    check_same_patients(builders)
  return not any(map(left_out, builders.values()))


def print_domain(data: DataConfig, role: str, centres: str, builder: tfds.core.DatasetBuilder) -> np.ndarray:
  """Prints what is in a prepared domain, and the files that were left out; returns its sizes, see measure_sizes."""
  field = " x ".join(map(str, data.size))
  unscaled = f"pixels, {data.zoom:.3g} of the files' grid whatever its spacing,"
  pixels = unscaled if data.spacing is None else f"pixels of {data.spacing:g} mm"
  print(f"{role}: {data.name}/{domain_of(data, role)}, {field} {pixels} about the {centres}, in {builder.data_path}")
  splits = {split: measure_sizes(builder, split) for split in builder.info.splits}
  summaries = [{**summarise_split(builder, split), **size_cells(sizes)} for split, sizes in splits.items()]
  print(format_summary(summaries))
  for summary in summaries:
    if absent := [name for name in CLASSES if summary[name] == "none"]:
      print(f"{summary['split']}: no {', '.join(absent)} in its masks; look at config.data.label_values")
  for file, reason in left_out(builder).items():
    print(f"left out: {file}: {reason}")
  print(flush=True)
  return np.concatenate(list(splits.values()))


def measure_sizes(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
  """Sizes of the patients of a split by their headers, NaN where a patient has no mask of the LV.

  Returns:
    (patients, 3): volume of the LV in ml; diameter of the left heart in mm, of a circle with the area of Myo and LV in
    the slice where they are largest; length of the longer side of the image in mm.
  """
  sizes = []
  for example in builder.as_data_source(split):
    spacing, truth = np.array(spacing_of(example["affine"])), example["truth"]
    millilitres = (truth == CLASSES.index("LV")).sum() * spacing.prod() / 1000
    left_heart = np.isin(truth, [CLASSES.index("LV"), CLASSES.index("Myo")])
    area = left_heart.sum((1, 2)).max() * spacing[1:].prod()
    heart = (millilitres, 2 * np.sqrt(area / np.pi)) if millilitres else (np.nan, np.nan)
    sizes.append((*heart, max(spacing[1:] * truth.shape[1:])))
  return np.array(sizes)


def median_sizes(sizes: np.ndarray) -> list[float]:
  """The medians of measure_sizes over the patients that were measured; NaN where none was."""
  measured = [column[np.isfinite(column)] for column in sizes.T]
  return [float(np.median(column)) if len(column) else np.nan for column in measured]


def size_cells(sizes: np.ndarray) -> dict[str, str]:
  """The median sizes of hearts in a split, as cells of the table."""
  medians = median_sizes(sizes)
  return {name: "" if np.isnan(size) else f"{size:.0f}" for name, size in zip(HEART_SIZES, medians, strict=False)}


def size_warnings(source: np.ndarray, target: np.ndarray, *, resampled: bool) -> list[str]:
  """What is suspicious about the sizes of hearts; often the spacing in the headers is wrong.

  Args:
    source, target: as of measure_sizes.
    resampled: whether pixels are resampled by the spacing in the headers.
  """
  medians = {"source": median_sizes(source), "target": median_sizes(target)}
  images = ", ".join(f"{sizes[-1]:.0f} mm in the {role}" for role, sizes in medians.items())
  check = "check the spacing in the headers; " + (
    "if it is wrong, keep the pixel grid: config.data.spacing=None"
    if resampled
    else "the networks do not use it, as config.data.spacing is None"
  )
  warnings = []
  for column, (name, (low, high)) in enumerate(HEART_SIZES.items()):
    found = {role: sizes[column] for role, sizes in medians.items() if not np.isnan(sizes[column])}
    both = " and ".join(f"{size:.0f} in the {role}" for role, size in found.items())
    if any(not low <= size <= high for size in found.values()):
      warnings.append(f"{name}: {both} (medians), and hearts have {low} to {high}; {check}")
    elif len(found) == 2 and max(found.values()) > 1.3 * min(found.values()):
      warnings.append(f"{name}: {both} (medians), a difference of more than 30 %; {check}")
  for role, sizes in medians.items():
    if np.isnan(sizes[0]):
      warnings.append(f"no mask in the {role}: its hearts cannot be measured; images are {images} wide (medians)")
  return warnings


def summarise_split(builder: tfds.core.DatasetBuilder, split: str) -> dict[str, str]:
  """What is in a split of a prepared dataset: column -> cell."""
  slices, spacings, ranges, labelled = [], [], [], 0
  counts = np.zeros(len(CLASSES))
  for example in builder.as_data_source(split):
    slices.append(len(example["truth"]))
    spacings.append(spacing_of(example["affine"]))
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
