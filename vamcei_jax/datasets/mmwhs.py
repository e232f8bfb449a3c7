"""MM-WHS 2017: CT and MR volumes of different patients, as volumes or as the slices that Wu and Zhuang released."""

import re
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.datasets.cases import Case, Cases, CasesConfig, Splits, split_by_role
from vamcei_jax.errors import InputError

_TREE = (
  "ct_train/ct_train_1001_image.nii.gz with ct_train_1001_label.nii.gz, ct_test/ct_test_2001_image.nii.gz, mr_train "
  "and mr_test likewise; or, as slices, CT_withGT/img33_slice1.nii.gz with lab33_slice1.nii.gz, CT_woGT, MR_withGT and "
  "MR_woGT likewise"
)


class Mmwhs(Cases):
  """The MM-WHS 2017 challenge data (Zhuang et al., Medical Image Analysis 58:101537, 2019), one example a patient.

  Domains ct and mr; see Cases for the splits. A target's training also has the volumes without masks (test, woGT).

  Either the challenge's volumes or, where there is a folder CT_withGT or MR_withGT, their 2-D slices (F. Wu, X. Zhuang,
  IEEE TMI 39(12):4274-4285, 2020; github.com/FupingWu90/CT_MR_2D_Dataset_DA). The labels of their woGT come from a
  program and are not read. By the release, only LV and Myo are labelled.

      ct_train/ct_train_1001_image.nii.gz   ct_train/ct_train_1001_label.nii.gz   (mr_train likewise)
      ct_test/ct_test_2001_image.nii.gz                                           (mr_test likewise)

      CT_withGT/img33_slice1.nii.gz         CT_withGT/lab33_slice1.nii.gz         (MR_withGT likewise)
      CT_woGT/img1_slice1.nii.gz                                                  (MR_woGT likewise)

  The volumes' slices lie along different axes of the body: `data.plane` brings them to one. Masks hold 205 (Myo), 500
  (LV), 600 (RV), 420 (left atrium), 550 (right atrium), 820 (aorta) and 850 (pulmonary artery). configs/mmwhs.py folds
  the last four into the background.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get the data from the challenge's organisers and lay it out as {_TREE}."
  DOMAINS = ("ct", "mr")

  @classmethod
  def splits(cls, root: Path, config: CasesConfig) -> Splits:
    sliced = any(Path(root, f"{domain.upper()}_withGT").is_dir() for domain in cls.DOMAINS)
    labelled, unlabelled = (_slices if sliced else _volumes)(Path(root), config.domain)
    if not labelled:
      expected = f"{config.domain.upper()}_withGT/imgN_sliceM" if sliced else "{0}_train/{0}_train_N_image"
      problem = f"no {expected.format(config.domain)}.nii.gz in it" if Path(root).is_dir() else "no such folder"
      raise InputError(f"{root}: {problem}; expected {_TREE}. Correct --config.data.root.")
    return split_by_role(labelled if config.role == "source" else labelled + unlabelled, config)


def _volumes(root: Path, domain: str) -> tuple[list[Case], list[Case]]:
  """The patients with masks and those without, of the challenge's volumes."""
  labelled, unlabelled = [], []
  for image in sorted(root.glob(f"{domain}_train/{domain}_train_*_image.nii.gz")):
    mask = image.with_name(image.name.replace("_image", "_label"))
    labelled.append(Case(image.name.removesuffix("_image.nii.gz"), image, mask))
  for image in sorted(root.glob(f"{domain}_test/{domain}_test_*_image.nii.gz")):
    unlabelled.append(Case(image.name.removesuffix("_image.nii.gz"), image))
  return labelled, unlabelled


def _slices(root: Path, domain: str) -> tuple[list[Case], list[Case]]:
  """The patients with masks and those without, of the released slices; each patient's slices are in order."""
  kinds: list[dict[int, tuple[Path, ...]]] = []
  for folder in (root / f"{domain.upper()}_withGT", root / f"{domain.upper()}_woGT"):
    stacks: dict[int, list[tuple[int, Path]]] = {}
    for file in folder.glob("*"):
      if found := re.fullmatch(r"img(\d+)_slice(\d+)\.nii\.gz", file.name):
        stacks.setdefault(int(found[1]), []).append((int(found[2]), file))
    kinds.append({number: tuple(file for _, file in sorted(slices)) for number, slices in sorted(stacks.items())})
  masks = lambda images: tuple(image.with_name(image.name.replace("img", "lab", 1)) for image in images)
  labelled = [Case(f"{domain}{number}", images, masks(images)) for number, images in kinds[0].items()]
  return labelled, [Case(f"{domain}{number}_woGT", images) for number, images in kinds[1].items()]
