"""The data of the stage `adapt`: the target's volumes around their hearts, with the predictions of the teachers.

A teacher predicts the files as the command line `predict` does, with test-time augmentation: it finds hearts and
orientations. Its predictions are kept beside the prepared data, so that further runs with these weights use them.
"""

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy import ndimage
from tqdm import tqdm

from vamcei_jax.config.files import stage_content
from vamcei_jax.config.rules import shortened
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.data.geometry import spacing_of
from vamcei_jax.data.labels import first_values
from vamcei_jax.data.loader import naming_damage, open_split, patient_names
from vamcei_jax.data.nifti import Volume
from vamcei_jax.data.preprocess import foreground_centre, preprocess_probabilities, preprocess_settings
from vamcei_jax.data.scan import scan_of_volume
from vamcei_jax.datasets import BUILDERS, PREPARED_ELSEWHERE, left_out, lost_directions, refuse_shared
from vamcei_jax.datasets.cases import Case, Cases, listed, read_image, usable
from vamcei_jax.datasets.digests import file_digests
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded, replacing
from vamcei_jax.inference.load import load_networks, load_segmenter
from vamcei_jax.inference.segmenter import Segmenter
from vamcei_jax.inference.tta import tta_transforms
from vamcei_jax.methods import cyclegan
from vamcei_jax.methods.state import digest
from vamcei_jax.pipeline.domains import SAME_PATIENTS, Datasets, announce, prepare_domain
from vamcei_jax.pipeline.same_patients import correct
from vamcei_jax.pipeline.stages import ADAPT, STAGES

_VERSION = 2  # of the way in which the teacher predicts; another number makes its stored predictions again
_SUFFIX = ".safetensors.gz"
_NEAR_MM = 5.0  # from the teacher's mask; farther away, its probabilities count as background


def prepare_for_adapt(config: StageConfig) -> Datasets:
  """Role -> prepared dataset, each centred on the hearts: of the source's masks, of the teachers' mean prediction.

  Raises:
    InputError: of vamcei_jax.datasets.prepare; a teacher needs networks of other stages, or cannot predict a volume.
  """
  data = config.data
  if not issubclass(BUILDERS.get(data.name, Cases), Cases):
    raise InputError(f"config.data.name={data.name}: must be a dataset of files, such as folder, for {ADAPT}")
  for teacher in named_teachers(config):
    _, trained, _, _ = load_networks(expanded(teacher))
    if STAGES[trained.name].method is cyclegan or STAGES[trained.name].target != "target" or trained.data.located:
      raise InputError(f"{teacher}: a stage that needs others to segment; name another one, or weights, as teacher")
  datasets = {"target": prepare_domain(data, "target")}
  if data.source is not None:
    datasets["source"] = prepare_domain(data, "source", centres="mask")
    refuse_shared(datasets["source"], datasets["target"])
  if data.same_patients is not None:
    datasets[SAME_PATIENTS] = prepare_domain(data, SAME_PATIENTS)
    check_same_patients(datasets)
  for role, builder in datasets.items():
    announce(data, role, builder)
  folders = [predict_target(teacher, config, datasets["target"]) for teacher in named_teachers(config)]
  if len(set(folders)) < len(folders):
    raise InputError(f"config.teachers={shortened(config.teachers)}: the same weights twice; name each once")
  mean = lambda case: mean_prediction(folders, case.name)
  cases = target_cases(datasets["target"])
  centres = {case.name: foreground_centre(mean(case)[..., 1:].sum(-1) > 0.5) for case in cases}
  return datasets | {"target": prepare_domain(data, "target", centres=centres, leave_out=True)}


def named_teachers(config: StageConfig) -> tuple[str, ...]:
  """The weights or runs from whose predictions the stage learns."""
  return config.teachers or (config.init or "",)


def predict_target(teacher: str, config: StageConfig, target: Cases) -> Path:
  """The folder with a teacher's prediction of each patient of the target; those that are missing are made.

  PATIENT.safetensors.gz has its class probabilities in 255ths, (D, H, W, K) on the canonical original grid.
  """
  folder = predictions_folder(teacher, config, target)
  cases = target_cases(target)
  if missing := [case for case in cases if not (folder / f"{case.name}{_SUFFIX}").exists()]:
    segmenter = load_teacher(teacher, config)
    print(f"teacher: {teacher} predicts {len(missing)} of {len(cases)} volumes, kept in {folder}", flush=True)
    for case in tqdm(missing, f"{teacher} predicts {config.data.target}", unit="volume", disable=None):
      probs = predict_case(segmenter, case, target)
      with replacing(folder / f"{case.name}{_SUFFIX}") as temporary:
        temporary.write_bytes(gzip.compress(save({"probabilities": np.rint(255 * probs).astype(np.uint8)}), mtime=0))
  return folder


def predictions_folder(teacher: str, config: StageConfig, target: Cases) -> Path:
  """Where the predictions of a teacher for these files are kept: the name has a digest of both.

  The digests of the files contain their headers: another voxel size is another prediction.
  """
  _, trained, inference, networks = load_networks(expanded(teacher))
  data, inference = config.data, dataclasses.replace(inference, **smoothing(config))
  prepared = expanded(data.prepared_dir, PREPARED_ELSEWHERE)
  images = [(case.name, listed(case.image)) for case in target_cases(target)]
  of_file = file_digests([file for _, files in images for file in files], prepared)
  contents = [(patient, [of_file[file] for file in files]) for patient, files in images]
  reading = data.plane, data.orientation
  content = {name: value for name, value in stage_content(trained).items() if name != "teachers"}
  identity = [_VERSION, digest(networks), content, str(inference), contents, reading]
  name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
  return prepared / "predictions" / f"{Path(data.target).name}-{name}"


def load_teacher(teacher: str, config: StageConfig) -> Segmenter:
  """The segmenter of a teacher, with test-time augmentation if its training allows for it."""
  _, trained, _, _ = load_networks(expanded(teacher))
  return load_segmenter(teacher, tta=len(tta_transforms(trained.augment)) > 1, **smoothing(config))


def smoothing(config: StageConfig) -> dict[str, Any]:
  """How a teacher smooths along the stack, in place of its own default, if the configuration says so."""
  return {"smooth": config.distillation.smooth} if config.distillation.smooth else {}


def target_cases(target: Cases) -> list[Case]:
  """The patients of all splits of the target, each once."""
  splits = usable(target.splits(Path(target.config.root), target.config), left_out(target))
  return list({case.name: case for cases in splits.values() for case in cases}.values())


def predict_case(segmenter: Segmenter, case: Case, target: Cases) -> np.ndarray:
  """The teacher's class probabilities (D, H, W, K) of a patient, without what lies beside its mask."""
  volume = read_image(case.image, target.config)
  prediction = segmenter(scan_of_volume(str(case.image), volume))
  reach = [0, *(round(_NEAR_MM / mm) for mm in volume.spacing[1:])]
  background_value = first_values(segmenter.config.data.label_values)[0]
  near = ndimage.maximum_filter(prediction.mask != background_value, size=[2 * pixels + 1 for pixels in reach])
  background = np.eye(prediction.probabilities.shape[-1], dtype=np.float32)[0]
  return np.where(near[..., None], prediction.probabilities, background)


def read_prediction(folder: Path, patient: str) -> np.ndarray:
  """The class probabilities (D, H, W, K) of a patient, which sum to 1."""
  path = folder / f"{patient}{_SUFFIX}"
  try:
    probs = load(gzip.decompress(path.read_bytes()))["probabilities"].astype(np.float32)
  except (EOFError, KeyError, OSError, SafetensorError, zlib.error) as error:
    raise InputError(f"{path}: damaged ({shortened(str(error))}); remove it, the run makes it again") from None
  return probs / probs.sum(-1, keepdims=True)


def mean_prediction(folders: Sequence[Path], patient: str) -> np.ndarray:
  """The mean class probabilities (D, H, W, K) of a patient by several teachers."""
  return np.mean([read_prediction(folder, patient) for folder in folders], axis=0)


def teacher_maps(config: StageConfig, datasets: Datasets, patients: Sequence[str]) -> list[np.ndarray]:
  """The teachers' mean class probabilities (D, h, w, K), float16, of patients, on the grid of the network.

  Args:
    config: of the stage.
    datasets: of prepare_for_adapt. Masks of the same patients correct the predictions, if they are among them.
    patients: names.
  """
  target = cast(Cases, datasets["target"])
  folders = [predictions_folder(teacher, config, target) for teacher in named_teachers(config)]
  settings = preprocess_settings(config.data)
  grids = {}
  with naming_damage(target.data_path):
    for split in target.info.splits:
      for example in open_split(target, split, ("image", "mask", "truth")):
        grids[example["patient"].decode()] = example["affine"], tuple(example["centre"].tolist())
  masks = masks_of_same_patients(datasets)
  maps, scales = [], []
  for name in patients:
    affine, centre = grids[name]
    probs = mean_prediction(folders, name)
    if name in masks and (corrected := correct(Volume(probs, affine), masks[name])) is not None:
      probs, scale = corrected
      scales.append(scale)
    maps.append(preprocess_probabilities(probs, spacing_of(affine), settings, centre).astype(np.float16))
  if SAME_PATIENTS in datasets:
    sizes = f", their sizes multiplied by {min(scales):.2f} to {max(scales):.2f}" if scales else ""
    corrected_ones = f"masks correct the predictions for {len(scales)} of {len(patients)} volumes"
    print(f"{config.data.same_patients}: {corrected_ones}{sizes}", flush=True)
  return maps


def teacher_rows(config: StageConfig, datasets: Datasets, patients: Sequence[str]) -> dict[str, list[np.ndarray]]:
  """Row of a run's table -> teacher_maps of patients: as predicted and, where there are masks, corrected by these."""
  rows = {"teachers": teacher_maps(config, {"target": datasets["target"]}, patients)}
  if SAME_PATIENTS in datasets:
    rows["corrected_teachers"] = teacher_maps(config, datasets, patients)
  return rows


def check_same_patients(datasets: Datasets) -> None:
  """Raises an InputError if the masks are those of the target's images, or no patient of the target has one."""
  refuse_shared(datasets[SAME_PATIENTS], datasets["target"], allow_same_file=False, name="config.data.same_patients")
  target, others = (
    {name for split in datasets[role].info.splits for name in patient_names(datasets[role], split)}
    for role in ("target", SAME_PATIENTS)
  )
  if not target & others:
    raise InputError(
      f"config.data.same_patients: its patients ({min(others)}, ...) and those of the target ({min(target)}, ...) have "
      "no name in common. Give the files of a patient the same name."
    )


def masks_of_same_patients(datasets: Datasets) -> dict[str, Volume]:
  """Patient -> mask, as class indices; not of patients for whom a header has lost where the slices lie."""
  if SAME_PATIENTS not in datasets:
    return {}
  masks = {}
  builder = datasets[SAME_PATIENTS]
  lost = {*lost_directions(builder), *lost_directions(datasets["target"])}
  with naming_damage(builder.data_path):
    for example in open_split(builder, "train", ("image", "mask")):
      masks[example["patient"].decode()] = Volume(example["truth"], example["affine"])
  return {name: mask for name, mask in masks.items() if name not in lost}
