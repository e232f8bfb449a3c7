"""Scores files of predicted masks by true masks: `evaluate` reads and measures them, its Table writes the results."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vamcei_jax.config.files import CONFIG_FILE
from vamcei_jax.data.labels import CLASSES, LABEL_VALUES, LabelValues, are_label_values
from vamcei_jax.data.nifti import Volume, check_grid, read_classes, read_mask, read_volume
from vamcei_jax.data.preprocess import Preprocess, preprocess_image
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.metrics import measure
from vamcei_jax.evaluation.pairing import Pairs, Source, pair_files
from vamcei_jax.evaluation.report import Case, list_empty_masks, write_report
from vamcei_jax.evaluation.statistics import (
  Comparison,
  Scores,
  Summary,
  annotated,
  compare,
  format_table,
  summarise,
  write_csv,
  write_results,
)

PRINTED = ("dice", "assd_mm", "hd95_mm")


@dataclasses.dataclass(frozen=True)
class Table:
  """Scores of predicted masks. `str` gives the tables of Dice, ASSD and HD95 over patients.

  Attributes:
    methods: method -> patient -> structure -> metric -> value, for the patients of all methods. The last method is that
      of `predictions`; with `against`, the first one is that of `against`.
    failures: a line for each file that was not scored, and for each label without a prediction.
    pairs: the files.
    label_values: the masks' values of each class.

  Example:
    >>> table = vamcei_jax.evaluate("masks", "labels")
    >>> print(table)
    >>> table.scores["patient1"]["LV"]["hd95_mm"]
  """

  methods: Mapping[str, Scores]
  failures: tuple[str, ...]
  pairs: Pairs = dataclasses.field(repr=False)
  label_values: LabelValues

  @property
  def scores(self) -> Scores:
    """Patient -> structure -> metric -> value of the predictions.

    Example:
      >>> table.scores["patient1"]["LV"]["dice"]
    """
    return list(self.methods.values())[-1]

  @property
  def summary(self) -> Summary:
    """Structure -> metric -> {"mean", "std", "median", "worst"} over patients; see statistics.summarise.

    Example:
      >>> table.summary["LV"]["dice"]["mean"]
    """
    return summarise(self.scores)

  @property
  def comparison(self) -> Comparison:
    """Structure -> metric -> Wilcoxon's test against the other masks; see statistics.compare. Empty without others.

    Example:
      >>> table.comparison["LV"]["dice"]["p_value"]
    """
    return compare(self.scores, next(iter(self.methods.values()))) if len(self.methods) > 1 else {}

  def __str__(self) -> str:
    summaries = {method: summarise(patients) for method, patients in self.methods.items()}
    parts, comparison = [], self.comparison
    for metric in PRINTED:
      p_values = {structure: tests[metric]["p_value"] for structure, tests in comparison.items()}
      parts.append(format_table(summaries, metric, p_values))
    if empty := list_empty_masks(self.methods):
      parts.append(f"Empty masks: {len(empty)}, the first {', '.join(empty[0])}; the report lists them")
    if self.pairs.notes:
      parts.append("\n".join(self.pairs.notes))
    return "\n\n".join(parts)

  def save(
    self,
    folder: str | os.PathLike,
    *,
    about: Mapping[str, str] | None = None,
    log: Sequence[Mapping] = (),
    config: str = "",
  ) -> tuple[str, ...]:
    """Writes metrics.json (of all methods), metrics.csv (of the predictions) and report.html.

    Args:
      folder: is made if it does not exist.
      about: further lines below the report's heading: name -> value.
      log, config: lines of metrics.jsonl and configuration of a run, for the report.

    Returns:
      A line for each case that the report shows without its image.

    Raises:
      InputError: the folder is a file or a run.

    Example:
      >>> table.save("scores")
    """
    folder, failures = Path(folder), []
    check_output(folder)
    origins = {role: where for role, where in self.pairs.origins.items() if role != "images"}
    write_results(folder / "metrics.json", self.methods, **origins)
    write_csv(folder / "metrics.csv", self.scores)

    def load_case(name: str) -> Case:
      case, failure = read_case(self.pairs, name, self.label_values)
      failures.extend(failure)
      return case

    title = f"Evaluation of {list(self.methods)[-1]}"
    about = origins | dict(about or {})
    write_report(folder / "report.html", title, about, self.methods, load_case, log=log, config=config)
    return tuple(failures)


def evaluate(
  predictions: Source,
  labels: Source,
  *,
  label_values: LabelValues = LABEL_VALUES,
  against: Source | None = None,
  images: Source | None = None,
) -> Table:
  """Scores predicted masks by true masks.

  Masks are read in the canonical orientation, so that a prediction and its label may be stored along other axes.
  Predictions without a label are not scored.

  Args:
    predictions: a folder, a single NIfTI file, or name -> file. nnU-Net's channel (_0000) in names is ignored.
    labels: likewise. Of a folder, the label of NAME is NAME_manual if it has such files, else NAME. The label of a
      single prediction may have any name.
    label_values: of background, Myo, LV and RV in all masks; several values of a class as a tuple.
    against: other predictions to compare with, likewise.
    images: of the patients, likewise, for the report.

  Returns:
    A Table. It lists files that cannot be used as failures.

  Raises:
    InputError: no prediction can be scored, or no patient is in both `predictions` and `against`.

  Example:
    >>> table = evaluate("predictions", "labels", label_values=(0, 1, 2, 3))
    >>> table.summary["LV"]["dice"]["mean"]
    >>> table.save("scores")
  """
  check_label_values(label_values, "label_values")
  pairs = pair_files(predictions, labels, against=against, images=images)
  methods, failures = {}, []
  for method, files in pairs.predictions.items():
    methods[method], failed = score_files(files, pairs.labels, label_values)
    if not methods[method]:
      raise InputError(failed[0])
    failures += failed
  first, last = next(iter(methods.values())), list(methods.values())[-1]
  common = [name for name in last if name in first]
  if not common:
    where = f"no patient in common with {pairs.origins['predictions']}"
    raise InputError(f"{pairs.origins['against']}: {where}; nothing can be compared")
  methods = {method: annotated({name: scores[name] for name in common}) for method, scores in methods.items()}
  return Table(methods, (*failures, *pairs.missing), pairs, label_values)


def score_files(
  predictions: Mapping[str, Path], labels: Mapping[str, Path], label_values: LabelValues
) -> tuple[Scores, list[str]]:
  """Scores of the predictions by name, and a line for each one that cannot be scored."""
  scores, failures = {}, []
  for name, path in tqdm(predictions.items(), "scores", unit="volume", disable=None):
    try:
      truth = read_mask(labels[name], label_values)
      scores[name] = measure(read_classes(path, truth, label_values), truth.voxels, truth.spacing)
    except InputError as error:
      failures.append(str(error))
  return scores, failures


def read_case(pairs: Pairs, name: str, label_values: LabelValues) -> tuple[Case, list[str]]:
  """A patient for the report, and the reason in one line if images are given and its image cannot be used."""
  truth = read_mask(pairs.labels[name], label_values)
  masks = {method: read_classes(files[name], truth, label_values) for method, files in pairs.predictions.items()}
  image, failures = None, []
  if pairs.images is not None:
    try:
      if name not in pairs.images:
        raise InputError(f"{pairs.labels[name]}: no image of it in {pairs.origins['images']}; shown without")
      image = read_image(pairs.images[name], truth)
    except InputError as error:
      failures.append(str(error))
  return Case(image, truth.voxels, masks, truth.spacing[1:]), failures


def read_image(path: Path, truth: Volume) -> np.ndarray:
  """The image of a mask, (D, H, W) in [0, 1].

  Raises:
    InputError: the image cannot be read, or its grid is not that of the mask.
  """
  volume = read_volume(path)
  check_grid(path, volume, truth)
  return preprocess_image(volume.voxels, volume.spacing, Preprocess(size=volume.voxels.shape[1:]))


def check_output(folder: Path) -> None:
  """Raises an InputError if a folder cannot be made or written, or is that of a run, whose report would be replaced."""
  nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
  if not nearest.is_dir():
    what = "a file" if nearest.exists() else "a link that leads nowhere"
    raise InputError(f"{nearest}: {what}; choose another --output")
  if not os.access(nearest, os.W_OK | os.X_OK):
    raise InputError(f"{nearest}: cannot be written; choose another --output")
  if (folder / CONFIG_FILE).exists():
    raise InputError(f"{folder}: a run, whose own report would be replaced; choose another --output")


def check_label_values(values: object, origin: str) -> None:
  """Raises an InputError, which names their origin, if these are no LabelValues."""
  if not are_label_values(values):
    expected = f"expected {len(CLASSES)} different values, or tuples of values, such as 0,200,500,600 or (0,(1,4),2,3)"
    raise InputError(f"{origin}={values}: {expected}")
