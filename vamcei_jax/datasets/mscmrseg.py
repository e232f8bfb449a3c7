"""MS-CMRSeg 2019: bSSFP, T2 and LGE volumes of separate scans of the same patients."""

import re
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.datasets.cases import Case, Cases, CasesConfig, Splits, split_by_role
from vamcei_jax.errors import InputError

# Domain -> the sequence's name in files, and the folder of its masks in the challenge's archive.
_SEQUENCES = {"bssfp": ("C0", "c0gt"), "t2": ("T2", "t2gt"), "lge": ("LGE", "lgegt")}
_TREE = (
  "C0/patientN_C0.nii.gz with C0/patientN_C0_manual.nii.gz, LGE/patientN_LGE.nii.gz with "
  "LGE/patientN_LGE_manual.nii.gz where there are masks, T2 likewise; or, as the challenge's archive has it, "
  "c0t2lge/patientN_C0.nii.gz, _T2 and _LGE, c0gt/patientN_C0_manual.nii.gz, t2gt/patientN_T2_manual.nii.gz and "
  "lgegt/patientN_LGE_manual.nii.gz"
)


class Mscmrseg(Cases):
  """The MS-CMRSeg 2019 challenge data (X. Zhuang, IEEE TPAMI 41(12):2933-2946, 2019), one example a patient.

  Domains bssfp, t2 and lge; see Cases for the splits. Of the released LGE volumes, patients 1 to 5 have masks and are
  the validation. The root holds the first of these trees or, with a folder c0t2lge, the second:

      C0/patient1_C0.nii.gz         C0/patient1_C0_manual.nii.gz     (T2 likewise)
      LGE/patient1_LGE.nii.gz       LGE/patient1_LGE_manual.nii.gz   (where there are masks)

      c0t2lge/patient1_C0.nii.gz    c0gt/patient1_C0_manual.nii.gz
      c0t2lge/patient1_T2.nii.gz    t2gt/patient1_T2_manual.nii.gz
      c0t2lge/patient1_LGE.nii.gz   lgegt/patient1_LGE_manual.nii.gz

  Prepare it on its pixel grid, `data.spacing=None`: the bSSFP files were resampled to the LGE pixel grid (0.73 mm),
  but their headers still claim 1.25 mm. Resampling by these headers makes their hearts 1.7 times too large, and the
  adaptation fails. The second tree was never tested with the challenge's files: if `prepare` shows different and
  plausible spacings of the domains, set `data.spacing`.
  """

  VERSION = tfds.core.Version("2.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get the data from the challenge's organisers and lay it out as {_TREE}."
  DOMAINS = tuple(_SEQUENCES)

  @classmethod
  def splits(cls, root: Path, config: CasesConfig) -> Splits:
    name, archived_masks = _SEQUENCES[config.domain]
    archived = Path(root, "c0t2lge").is_dir()
    images_in = Path(root, "c0t2lge" if archived else name)
    masks_in = Path(root, archived_masks if archived else name)
    pattern = re.compile(rf"patient([1-9]\d*)_{name}\.nii\.gz")
    images = {int(found[1]): file for file in images_in.glob("*") if (found := pattern.fullmatch(file.name))}
    if not images:
      problem = f"no {images_in.name}/patientN_{name}.nii.gz in it" if Path(root).is_dir() else "no such folder"
      raise InputError(f"{root}: {problem}; expected {_TREE}. Correct --config.data.root.")
    cases = []
    for number, image in sorted(images.items()):
      mask = masks_in / f"patient{number}_{name}_manual.nii.gz"
      cases.append(Case(f"patient{number}", image, mask))
    return split_by_role(cases, config)
