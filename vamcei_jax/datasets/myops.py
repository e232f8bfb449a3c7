"""MyoPS 2020: bSSFP, T2 and LGE volumes, on one grid for each patient."""

import dataclasses
import re
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.datasets.cases import Case, Cases, CasesConfig, Splits, split_by_role
from vamcei_jax.errors import InputError

_SEQUENCES = {"bssfp": "C0", "t2": "T2", "lge": "DE"}
_TREE = (
  "train25/myops_training_101_C0.nii.gz with _T2 and _DE beside it, train25_myops_gd/myops_training_101_gd.nii.gz, "
  "and test20/myops_test_201_C0.nii.gz with _T2 and _DE"
)


@dataclasses.dataclass(eq=False)
class MyopsConfig(CasesConfig):
  """sources: number of labelled patients, the first of the 25, in the source; the others are in the target."""

  sources: int = 13


class Myops(Cases):
  """The MyoPS 2020 challenge data (Li et al., Medical Image Analysis 87:102808, 2023), one example a patient.

  Domains bssfp, t2 and lge; see Cases for the splits. The sequences of a patient are registered to each other and share
  one mask, so a patient in both domains would reveal the target's labels. Hence the first `sources` labelled patients
  are in the source, and the others and the 20 patients without masks in the target.

      train25/myops_training_101_C0.nii.gz    (_T2 and _DE likewise)
      train25_myops_gd/myops_training_101_gd.nii.gz
      test20/myops_test_201_C0.nii.gz         (_T2 and _DE likewise)

  Masks hold 200 (normal myocardium), 1220 (oedema), 2221 (scar), 500 (LV) and 600 (RV); configs/myops.py folds oedema
  and scar into Myo.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get the data from the challenge's organisers and lay it out as {_TREE}."
  CONFIG = MyopsConfig
  DOMAINS = tuple(_SEQUENCES)

  @classmethod
  def splits(cls, root: Path, config: MyopsConfig) -> Splits:
    name, folder = _SEQUENCES[config.domain], Path(root, "train25")
    training = _numbered(folder, rf"myops_training_(\d+)_{name}\.nii\.gz")
    if not training:
      problem = f"no train25/myops_training_N_{name}.nii.gz in it" if Path(root).is_dir() else "no such folder"
      raise InputError(f"{root}: {problem}; expected {_TREE}. Correct --config.data.root.")
    masks = Path(root, "train25_myops_gd")
    cases = [Case(f"training_{n}", image, masks / f"myops_training_{n}_gd.nii.gz") for n, image in training.items()]
    # By the files of all sequences, so that a missing file does not move other patients to the other domain.
    numbers = list(_numbered(folder, r"myops_training_(\d+)_(?:C0|T2|DE)\.nii\.gz"))
    sources = {f"training_{number}" for number in numbers[: config.sources]}
    if config.role == "source":
      return split_by_role([case for case in cases if case.name in sources], config)
    unlabelled = _numbered(Path(root, "test20"), rf"myops_test_(\d+)_{name}\.nii\.gz")
    cases = [case for case in cases if case.name not in sources]
    return split_by_role(cases + [Case(f"test_{number}", image) for number, image in unlabelled.items()], config)


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
  """Number -> file of the names that match, by number."""
  found = ((re.fullmatch(pattern, file.name), file) for file in folder.glob("*"))
  return dict(sorted((int(match[1]), file) for match, file in found if match))
