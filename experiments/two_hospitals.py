"""Compares methods at two hospitals: bSSFP with masks of MS-CMRSeg -> the LGE of MS-CMRSeg, and of EMIDEC.

python -m experiments.two_hospitals --data=DIR --workdir=runs/two_hospitals

DIR has cine and lge, which experiments/lge_data.py writes without --acdc, and the EMIDEC folder, emidec. Each method is
trained for each hospital and seed, by configs/two_hospitals.py. All predictions have the same post-processing, and are
scored on the hospital's labelled patients. Writes two_hospitals.csv, with a row for each method, seed and patient: the
Dice, and the score that predict gives without a label. The tables are in two_hospitals.md. The same command resumes an
interrupted comparison. A call with other --methods or --seeds adds its results to the tables.

"supervised" is trained with the hospital's own masks, in cross-validation: four patients a fold on MS-CMRSeg, twelve on
EMIDEC. It has plain augmentation and twice the steps.
"""

import csv
import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

import vamcei_jax
from configs import two_hospitals
from configs.ablation import BOUND, TERMS
from experiments.tables import write_rows
from vamcei_jax import cli
from vamcei_jax.data.labels import STRUCTURES
from vamcei_jax.errors import InputError
from vamcei_jax.evaluation.statistics import format_seeds, sample_std
from vamcei_jax.files import locked, write_text
from vamcei_jax.usage import REQUIRED, group

if TYPE_CHECKING:
  from vamcei_jax.inference.segmenter import Segmenter

FLAGS = flags.FLAGS
HOSPITALS = {"lge": "MS-CMRSeg", "emidec": "EMIDEC"}  # the folder of a hospital, and its name in the tables
TABLE = "two_hospitals.csv"
COLUMNS = ("hospital", "method", "seed", "patient", *STRUCTURES, "score")
FOLDS = 5
SMOOTH = 2.5  # mm along the stack, as the shipped weights
# Augmentation that changes intensities only a little.
PLAIN = {"augment": {"gamma": 0.1, "contrast": 0.1, "noise": 0.02, "gin": 0.0, "ipa": 0.0}}
LESS_NOISE = {"model": {"logvar_range": (-6.0, -4.0)}}  # as in configs/mscmrseg_best.py; (-3.0, -1.0) in the others
# The headers of EMIDEC have lost the directions, so its networks are trained on every orientation.
EVERY_ORIENTATION = {"rotation": math.pi, "flip": (0, 1)}
# The multi-stage framework: CycleGAN, two VAMCEI networks, and their student.
FRAMEWORK = ("translate", "target_vamcei", "source_vamcei", "distill")


@dataclasses.dataclass(frozen=True)
class Method:
  """A method of the table.

  stages: of its run; the last one predicts.
  changes: what it changes in the configuration.
  base: the method that the tables compare it with.
  copies: the method whose first stage, with the same configuration, is copied and not trained again.
  terms: the unsupervised loss terms that it uses; the weights of the others are 0.
  longer: factor of the number of steps.
  supervised: whether it learns the hospital's own masks.
  """

  stages: tuple[str, ...]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  base: str | None = None
  copies: str | None = None
  terms: Sequence[str] = TERMS["all"]
  longer: int = 1
  supervised: bool = False


METHODS = {
  "no_adaptation_plain": Method(("no_adaptation",), PLAIN),
  "vamcei_plain": Method(("vamcei",), PLAIN, "no_adaptation_plain"),
  "no_adaptation": Method(("no_adaptation",), base="no_adaptation_plain"),
  "less_noise": Method(("no_adaptation",), LESS_NOISE, "no_adaptation"),
  "bound": Method(("vamcei",), base="no_adaptation", terms=BOUND),
  "global_kl": Method(("vamcei",), base="bound", terms=(*BOUND, "global_alignment")),
  "prototypes": Method(("vamcei",), base="bound", terms=(*BOUND, "prototypes")),
  "discriminator": Method(("vamcei",), base="bound", terms=(*BOUND, "generator")),
  "vamcei": Method(("vamcei",), base="no_adaptation"),
  "framework": Method(FRAMEWORK, base="no_adaptation"),
  "cyclegan": Method(FRAMEWORK[:2], base="no_adaptation", terms=(), copies="framework"),
  "supervised": Method(
    ("no_adaptation",),
    PLAIN | {"data": {"source": "masks", "empty_slices": "all"}},
    "no_adaptation_plain",
    longer=2,
    supervised=True,
  ),
}


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("data", None, "DIR: Folder of cine, lge and emidec.")
  flags.DEFINE_string("workdir", "runs/two_hospitals", "DIR: Folder of the runs and of the tables.")
  flags.DEFINE_list("seeds", "0,1,2", "N,N: Seeds.")
  flags.DEFINE_list("methods", ",".join(METHODS), "NAME,NAME: Methods, in this order.")


def main() -> None:
  """Runs the command."""
  data, workdir = cli.required_path("data"), cli.required_path("workdir").resolve()
  seeds = parse_seeds(FLAGS.seeds)
  check_methods(FLAGS.methods)
  for domain in ("cine", *HOSPITALS):
    if len(labelled(data / domain)) < FOLDS:
      raise InputError(f"{data / domain}: fewer than {FOLDS} images with labels/NAME.nii.gz; correct --data")
  with locked(workdir):
    rows = read_rows(workdir / TABLE)
    for seed in seeds:
      for hospital in HOSPITALS:
        for name in FLAGS.methods:
          this = {"hospital": HOSPITALS[hospital], "method": name, "seed": seed}
          scores = score_method(name, hospital, seed, data, workdir)
          rows = [row for row in rows if any(row[key] != value for key, value in this.items())]
          rows += [this | {"patient": patient} | values for patient, values in scores.items()]
          write_rows(workdir / TABLE, [dict.fromkeys(COLUMNS, "") | row for row in rows])
          write_text(workdir / "two_hospitals.md", tables(rows))
  print(tables(rows))


def parse_seeds(texts: Sequence[str]) -> list[int]:
  """The seeds of the flag. Raises an InputError if there are none, or one is no whole number from 0 on."""
  if not texts or not all(text.isdecimal() for text in texts):
    raise InputError(f"--seeds={','.join(texts)}: expected whole numbers, such as 0,1,2")
  return [int(text) for text in texts]


def check_methods(names: Sequence[str]) -> None:
  """Raises an InputError if there is no method, an unknown one, or one that comes before the method that it copies."""
  for number, name in enumerate(names or [""]):
    if name not in METHODS:
      raise InputError(f"--methods={name}: no such method; choose from {', '.join(METHODS)}")
    needed = METHODS[name].copies
    if needed and needed not in names[:number]:
      raise InputError(f"--methods={','.join(names)}: {name} needs {needed} before it")


def read_rows(path: Path) -> list[dict[str, Any]]:
  """The rows of an earlier call, without empty cells; none without a file.

  Raises:
    InputError: the file is not one that this program wrote.
  """
  if not path.exists():
    return []
  with path.open(encoding="utf-8", newline="") as file:
    table = csv.DictReader(file)
    if tuple(table.fieldnames or ()) != COLUMNS:
      raise InputError(f"{path}: not a table of this version of the program; remove it, or use another --workdir")
    rows = [{name: value for name, value in row.items() if value} for row in table]
  for row in rows:
    if row["method"] not in METHODS:
      raise InputError(
        f"{path}: {row['method']} is no method of this version; remove its rows, or use another --workdir"
      )
  return [
    row | {"seed": int(row["seed"])} | {name: float(row[name]) for name in (*STRUCTURES, "score") if name in row}
    for row in rows
  ]


def labelled(domain: Path) -> list[str]:
  """Names of the patients of a folder that have an image and a mask."""
  images, labels = ({file.name for file in (domain / kind).glob("*.nii.gz")} for kind in ("images", "labels"))
  return sorted(name.removesuffix(".nii.gz") for name in images & labels)


def score_method(name: str, hospital: str, seed: int, data: Path, workdir: Path) -> dict[str, dict[str, float]]:
  """Trains a method, unless it is trained, and predicts the hospital's labelled patients; see score_run."""
  folder, patients = workdir / hospital / f"seed{seed}", labelled(data / hospital)
  if not METHODS[name].supervised:
    return score_run(name, folder / name, make_config(name, hospital, seed, data), patients)
  scores: dict[str, dict[str, float]] = {}
  for fold in range(FOLDS):
    held_out = patients[fold::FOLDS]
    root = workdir / "folds" / f"{hospital}{fold}"
    link_patients(data / hospital, sorted(set(patients) - set(held_out)), root / "masks")
    link_patients(data / hospital, held_out, root / hospital)
    config = make_config(name, hospital, seed, root)
    scores |= score_run(name, folder / f"{name}{fold}", config, held_out)
  return scores


def make_config(name: str, hospital: str, seed: int, root: Path) -> ConfigDict:
  """The configuration of a method's run.

  Args:
    name: of the method.
    hospital: folder of its volumes.
    seed: of the run.
    root: folder of the domains.
  """
  method, config = METHODS[name], two_hospitals.get_config()
  config.seed, config.stages = seed, method.stages
  config.data.root, config.data.target = str(root), hospital
  config.update(method.changes)
  config.train.steps *= method.longer
  config.train.eval_every *= method.longer
  if hospital == "emidec":
    config.augment.update(EVERY_ORIENTATION)
  for term in set(TERMS["all"]) - set(method.terms):
    weight = config.loss.weights[term]
    config.loss.weights[term] = (0.0,) * len(weight) if isinstance(weight, tuple) else 0.0
  return config


def score_run(name: str, run: Path, config: ConfigDict, patients: Sequence[str]) -> dict[str, dict[str, float]]:
  """Trains a run, unless it is trained, and predicts patients.

  Args:
    name: of the method.
    run: folder of the run.
    config: of the run.
    patients: labelled patients of config.data.target.

  Returns:
    patient -> structure -> Dice; "score" is the Dice that the network expects, see vamcei_jax.Quality.
  """
  copied = METHODS[name].copies
  if copied and not run.exists():
    copy = run.with_name(f".{name}")
    shutil.copytree(run.with_name(copied) / config.stages[0], copy / config.stages[0], dirs_exist_ok=True)
    copy.rename(run)  # complete, even if this program is interrupted
  vamcei_jax.train(config, run)
  segmenter = segmenter_of(run)
  target = Path(config.data.root, config.data.target)
  files = lambda folder: {patient: folder / f"{patient}.nii.gz" for patient in patients}
  images, labels, masks = files(target / "images"), files(target / "labels"), files(run / "masks")
  scores = {}
  for patient in patients:
    prediction = segmenter(images[patient])
    prediction.save(masks[patient])
    scores[patient] = round(prediction.quality.score, 4)
  table = vamcei_jax.evaluate(masks, labels, label_values=config.data.label_values)
  return {
    patient: {each: metrics["dice"] for each, metrics in by.items()} | {"score": scores[patient]}
    for patient, by in table.scores.items()
  }


def segmenter_of(run: Path) -> "Segmenter":
  """The network of a run, with the post-processing of all methods."""
  return vamcei_jax.load_segmenter(run, postprocess=True, smooth=SMOOTH)


def link_patients(domain: Path, patients: Sequence[str], output: Path) -> None:
  """Makes a folder with links to the images and masks of some patients of a domain, in place of an earlier one."""
  shutil.rmtree(output, ignore_errors=True)
  for kind in ("images", "labels"):
    (output / kind).mkdir(parents=True)
    for patient in patients:
      name = Path(kind, f"{patient}.nii.gz")
      (output / name).symlink_to((domain / name).resolve())


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
  """A Markdown table for each hospital: the Dice of each method, mean ± standard deviation over seeds.

  "gain" is the difference to the base of the method, over the seeds that both have. The last three columns are the
  standard deviation over patients, of the mean over seeds; the mean score; and the number of seeds.
  """
  lines = []
  for hospital in dict.fromkeys(row["hospital"] for row in rows):
    chosen = [row for row in rows if row["hospital"] == hospital]
    structures = [name for name in STRUCTURES if name in chosen[0]]
    lines.append(f"| {hospital} | {' | '.join(structures)} | mean | gain | over patients | score | seeds |")
    lines.append("|---" * (len(structures) + 6) + "|")
    done = {row["method"] for row in chosen}
    by_method = {name: [row for row in chosen if row["method"] == name] for name in METHODS if name in done}
    for name, of_method in by_method.items():
      dice, score = by_seed(of_method, structures), by_seed(of_method, ["score"])
      gain = gains(of_method, by_method.get(METHODS[name].base or "", []), structures)
      columns = *dice.mean(1).T, dice.mean((1, 2)), gain
      cells = [format_seeds(np.mean(values), sample_std(values)) if len(values) else "–" for values in columns]
      cells += [f"± {sample_std(dice.mean((0, 2))):.3f}", f"{score.mean():.3f}", str(len(dice))]
      lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
  return "\n".join(lines)


def gains(rows: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
  """Mean of some columns in the rows of a method, less that in the rows of its base, for each seed of both."""
  mean = lambda rows, seed: np.mean([row[name] for row in rows if row["seed"] == seed for name in names])
  seeds = [seed for seed in dict.fromkeys(row["seed"] for row in rows) if seed in {row["seed"] for row in base}]
  return np.array([mean(rows, seed) - mean(base, seed) for seed in seeds])


def by_seed(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> np.ndarray:
  """Columns of the rows of one method, (seeds, patients, names).

  Raises:
    InputError: the seeds were not scored on the same patients.
  """
  seeds = dict.fromkeys(row["seed"] for row in rows)
  patients = [[row["patient"] for row in rows if row["seed"] == seed] for seed in seeds]
  if any(sorted(each) != sorted(patients[0]) for each in patients):
    raise InputError(f"{rows[0]['method']}: its seeds were scored on other patients; use another --workdir")
  return np.array([[[row[name] for name in names] for row in rows if row["seed"] == seed] for seed in seeds])


def command() -> None:
  """Runs the command line."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
