"""MS-CMRSeg 2019: bSSFP volumes with masks, LGE volumes of other scans of the same patients."""

import re
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.data.nifti import read_classes, read_volume
from vamcei_jax.datasets.volumes import VolumesConfig, dataset_info, example
from vamcei_jax.errors import InputError

_FOLDERS = {"bssfp": "C0", "lge": "LGE"}
_VALIDATION = range(1, 6)  # the LGE patients whose masks the challenge gave out
_TREE = (
  "C0/patientN_C0.nii.gz with C0/patientN_C0_manual.nii.gz, and LGE/patientN_LGE.nii.gz with "
  "LGE/patientN_LGE_manual.nii.gz for patients 1 to 5"
)


class Mscmrseg(tfds.core.GeneratorBasedBuilder):
  """The MS-CMRSeg 2019 challenge data (X. Zhuang, IEEE TPAMI 41(12):2933-2946, 2019), one example a patient.

  bssfp: train = all volumes with their masks.
  lge: train = all volumes, masks never opened (transductive, as published); validation = patients 1 to 5, with masks;
    test = patients 6 and up, with masks where they are there. A split without patients is left out.

  Prepare it on its pixel grid, `data.spacing=None`: the bSSFP files were resampled to the LGE pixel grid (0.73 mm),
  but their headers still claim 1.25 mm. Resampled by those headers, their hearts become 1.7 times too large, and
  nothing learns.
  """

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = f"Get the data from the challenge's organisers and lay it out as {_TREE}."
  BUILDER_CONFIGS = [VolumesConfig(name=domain, domain=domain) for domain in _FOLDERS]

  @staticmethod
  def files(root: str | None, domain: str) -> list[Path]:
    """Every file that the domain reads, sorted by patient; an InputError where one that it needs is missing."""
    return [file for _, image, mask in _patients(root, domain) for file in (image, mask) if file]

  def _info(self) -> tfds.core.DatasetInfo:
    return dataset_info(self, description=self.__doc__)

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    domain = self.builder_config.domain
    patients = _patients(dl_manager.manual_dir, domain)
    splits = {"train": patients}
    if domain == "lge":
      splits = {
        "train": [(number, image, None) for number, image, _ in patients],
        "validation": [patient for patient in patients if patient[0] in _VALIDATION],
        "test": [patient for patient in patients if patient[0] not in _VALIDATION],
      }
    return {split: self._generate_examples(members) for split, members in splits.items() if members}

  def _generate_examples(self, patients: list[tuple[int, Path, Path | None]]) -> Iterator[tuple[int, dict]]:
    config = self.builder_config
    for number, image, mask in patients:
      volume = read_volume(image)
      classes = None if mask is None else read_classes(mask, volume, config.label_values)
      yield number, example(f"patient{number}", volume, classes, config.preprocess)


def _patients(root: str | Path | None, domain: str) -> list[tuple[int, Path, Path | None]]:
  """(number, image, mask or None where there is none) of each patient of the domain, by number."""
  if root is None:
    raise InputError(f"config.data.root: not set; name the folder of {_TREE}: --config.data.root=DIR")
  name = _FOLDERS[domain]
  pattern = re.compile(rf"patient([1-9]\d*)_{name}\.nii\.gz")
  images = {int(found[1]): file for file in Path(root, name).glob("*") if (found := pattern.fullmatch(file.name))}
  if not images:
    problem = f"no {name}/patientN_{name}.nii.gz in it" if Path(root).is_dir() else "no such folder"
    raise InputError(f"{root}: {problem}; expected {_TREE}. Correct --config.data.root.")
  patients = []
  for number, image in sorted(images.items()):
    mask = image.with_name(f"patient{number}_{name}_manual.nii.gz")
    if not mask.exists():
      if domain == "bssfp" or number in _VALIDATION:
        raise InputError(f"{mask}: no such mask, and {image.name} needs one. Add it or take the image out.")
      mask = None
    patients.append((number, image, mask))
  return patients
