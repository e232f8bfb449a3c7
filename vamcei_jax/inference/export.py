"""Export of weights from a finished run."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from vamcei_jax.config.files import CONFIG_FILE, read_stage_config
from vamcei_jax.config.schema import DataConfig, InferenceConfig
from vamcei_jax.data.loader import load_grids, naming_damage
from vamcei_jax.environment import jax_settings
from vamcei_jax.errors import InputError
from vamcei_jax.files import expanded
from vamcei_jax.inference.load import field_extent, last_stage, restore_final, transforms_of
from vamcei_jax.inference.weights import WEIGHTS_FILE, check_inference, write_weights
from vamcei_jax.methods import cyclegan
from vamcei_jax.pipeline.stages import STAGES


@jax_settings()
def export_weights(run: str | Path, output: str | Path, **options) -> None:
  """Writes the network of a finished stage, in half precision, with its configuration.

  Args:
    run: folder of a run (its last stage is exported) or of one of its stages.
    output: folder for weights.safetensors and config.json.
    **options: fields of InferenceConfig that become the defaults of the weights.

  Raises:
    InputError: the stage is not finished, segments nothing, or needs networks of other stages.
  """
  check_inference(options)
  folder, output = last_stage(expanded(run)), expanded(output)
  if (output / CONFIG_FILE).exists() and not (output / WEIGHTS_FILE).exists():
    raise InputError(f"{output}: a run; choose another --output")
  config = read_stage_config(folder)
  if STAGES[config.name].target != "target" or config.data.located:
    raise InputError(f"{folder}: needs networks of other stages to predict; name another stage of the run")
  if STAGES[config.name].method is cyclegan:
    raise InputError(f"{folder}: a stage that translates and segments nothing; name another stage of the run")
  inference = dataclasses.replace(InferenceConfig(), **options)
  if inference.tta:
    transforms_of(config, folder)
  if (networks := restore_final(folder, config)) is None:
    raise InputError(f"{folder}: no intact checkpoint of its last step; give the run's command again first")
  extent = field_extent(config)
  pixels, extents = trained_grid(config.data) if extent is None else (None, extent)
  inference = dataclasses.replace(inference, pixel_mm=pixels, extent_mm=extents)
  # Paths of the machine that trained the network are of no use elsewhere.
  data = dataclasses.replace(config.data, root=None, prepared_dir=DataConfig().prepared_dir)
  name = lambda path: expanded(path).resolve().name
  init, teachers = (
    config.init and name(config.init),
    config.teachers and tuple(dict.fromkeys(map(name, config.teachers))),
  )
  write_weights(output, dataclasses.replace(config, init=init, teachers=teachers, data=data), inference, networks)


def trained_grid(data: DataConfig) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
  """The pixel_mm and extent_mm of InferenceConfig: of the target volumes of a training.

  No pixel_mm if the training resampled pixels by the headers; neither if its prepared data were removed.
  """
  folder = expanded(data.prepared_dir) / (data.datasets or ("",))[-1]
  if not (folder / "dataset_info.json").exists():
    way_out = "make it again with python -m vamcei_jax.prepare, or predict will take pixels and images as they are"
    print(f"{folder}: prepared data not found; {way_out}", file=sys.stderr)
    return None, None
  with naming_damage(folder):
    target = tfds.builder_from_directory(folder)
  grids = load_grids(target, "train")
  pixels = [mm for _, spacing in grids for mm in spacing[1:]]
  extents = [n * mm for shape, spacing in grids for n, mm in zip(shape[1:], spacing[1:], strict=True)]
  return (_limits(pixels) if data.spacing is None else None), _limits(extents)


def _limits(values: Sequence[float]) -> tuple[float, float]:
  return float(f"{min(values):.4g}"), float(f"{max(values):.4g}")
