"""The fields of a configuration: one record each, with its default, its rule and a sentence of explanation.

A section of `configs/uda.py` is a frozen dataclass here. `vamcei_jax.pipeline.resolve.resolve` checks a ConfigDict once
against these records, and hands typed sections to the rest of the package.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from vamcei_jax.config.rules import (
  AXES,
  COUNT,
  EMPTY,
  FLAG,
  FOLDER,
  LABELS,
  OPTION,
  PIXELS,
  RATE,
  ROW,
  SCALE,
  SEED,
  SHARE,
  STRENGTH,
  TEXT,
  Rule,
  choice,
  differing,
  each,
  either,
  number,
  optional,
  rising,
  whole,
)
from vamcei_jax.data.labels import LABEL_VALUES, LabelValues

SCHEDULES = ("polynomial", "exponential", "half_linear")  # of the learning rate; see methods/state.py
EMPTY_SLICES = ("all", "apical", "none")  # see data/stream.py
ORIENTATIONS = ("header", "file", "estimate")  # see pipeline/domains.py
ESTIMATORS = ("pairwise", "paper")  # see losses/alignment.py
PLANES = ("short_axis", "axial", "coronal", "sagittal")  # see data/geometry.py
NORMS = ("instance", "group")  # see models/layers.py
LATENTS, HEADS = ("pointwise", "attention"), ("pointwise", "convolution")  # see models/unet.py
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Record:
  """One field of a configuration."""

  default: Any
  rule: Rule
  sentence: str


def field(default: Any, rule: Rule, sentence: str) -> Any:
  """A dataclass field that carries its record."""
  return dataclasses.field(default=default, metadata={"record": Record(default, rule, sentence)})


def section(kind: type) -> Any:
  """A dataclass field that holds a section with its defaults."""
  return dataclasses.field(default_factory=kind)


def mapping(records: Mapping[str, Record]) -> Any:
  """A dataclass field that maps names to values, with a record for each known name."""
  defaults = {name: record.default for name, record in records.items()}
  return dataclasses.field(default_factory=lambda: dict(defaults), metadata={"records": records})


# Weights of the loss terms. A method computes some of them: its TERMS.
WEIGHTS = {
  "segmentation": Record(1.0, STRENGTH, "Eq. 4: cross-entropy and soft Dice of the source's masks."),
  "reconstruction": Record(3e-3, STRENGTH, "Eq. 3: mean over pixels, summed over domains and scales."),
  "prior_kl": Record(3e-4, STRENGTH, "Eq. 2: mean over latent dimensions, summed over domains and scales."),
  "global_alignment": Record(
    (3e-7, 3e-7, 3e-8), each(STRENGTH), "Eqs. 5-8, summed over latent dimensions: full, half, quarter resolution."
  ),
  "prototypes": Record(0.33, STRENGTH, "Eq. 10: contrast of the class prototypes."),
  "generator": Record(0.1, STRENGTH, "Eq. 12: the discriminator takes target class maps for source class maps."),
  "adversarial": Record(1.0, STRENGTH, "CycleGAN: least-squares adversarial loss of the translators."),
  "cycle": Record(10.0, STRENGTH, "CycleGAN: absolute error after translation there and back."),
  "identity": Record(5.0, STRENGTH, "CycleGAN: absolute change of images that are in the right contrast already."),
  "distillation": Record(1.0, STRENGTH, "Eq. 16: tempered cross-entropy between teacher and student."),
}
# The weight of a term that a user's method adds.
OTHER_WEIGHT = Record(0.0, either(STRENGTH, each(STRENGTH)), "Weight of a further loss term.")

RATES = {
  "segmenter": Record(2e-3, RATE, "Peak learning rate of the segmenter."),
  "decoders": Record(1e-3, RATE, "Peak learning rate of the decoders of eq. 3."),
  "discriminator": Record(5e-4, RATE, "Peak learning rate of the discriminator of eqs. 11-12."),
  "translators": Record(1e-3, RATE, "Peak learning rate of the CycleGAN's translators."),
  "discriminators": Record(5e-4, RATE, "Peak learning rate of the CycleGAN's discriminators."),
}
B2 = {"discriminator": Record(0.999, number(0, 0.999999), "Decay of Adam's second moment for the discriminator.")}
OTHER_RATE = Record(1e-3, RATE, "Peak learning rate of a further network.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Images, masks and the grid that the networks see."""

  name: str = field("phantom", TEXT, "Dataset: a key of vamcei_jax/datasets.")
  root: str | None = field(None, optional(FOLDER), "Folder of the NIfTI volumes, for datasets that read some.")
  prepared_dir: str = field("~/.cache/vamcei_jax/data", TEXT, "Folder of prepared datasets, shared between runs.")
  source: str | None = field("bssfp", optional(TEXT), "Domain with masks; None in the stage adapt: it has no source.")
  target: str = field("lge", TEXT, "Domain without masks; masks that exist are read by the evaluation alone.")
  same_patients: str | None = field(
    None,
    optional(TEXT),
    "Domain with masks of the target's patients, which correct the teachers' predictions in adapt.",
  )
  label_values: LabelValues = field(
    LABEL_VALUES, LABELS, "Values of background, Myo, LV and RV in masks; a tuple folds several values into one class."
  )
  plane: str = field("short_axis", choice(PLANES), "Slices as acquired (short_axis), or planes of the body's axes.")
  orientation: str = field(
    "header",
    choice(ORIENTATIONS),
    "Slices without directions in their header: read by it (header), as stored (file), or by locate (estimate).",
  )
  size: tuple[int, int] = field((64, 64), PIXELS, "Field of the network in pixels, for evaluation and prediction.")
  crop: tuple[int, int] = field((48, 48), PIXELS, "Random crops for training, in pixels.")
  spacing: float | None = field(None, optional(SCALE), "Pixel size in mm to resample to; None keeps the pixel grid.")
  zoom: float = field(2 / 3, SCALE, "Without spacing: pixels of the network per pixel of the file.")
  percentiles: tuple[float, float] = field(
    (1.0, 99.0), rising(each(number(0, 100), 2)), "Intensity percentiles of a volume that become 0 and 1."
  )
  empty_slices: str = field(
    "all", choice(EMPTY_SLICES), "Source slices without a structure to train on: all, apical or none."
  )
  resident: float = field(
    0.3, SHARE, "Slices are held on the device up to this share of its memory, else read from disk."
  )
  options: Mapping[str, Any] = dataclasses.field(
    default_factory=dict, metadata={"options": Record({}, OPTION, "Options of the dataset's builder.")}
  )
  # Set by the run, not by users.
  located: bool = field(False, FLAG, "Whether the field is centred on the heart that the stage `locate` found.")
  datasets: tuple[str, ...] | None = field(
    None, optional(each(TEXT)), "Names of the prepared datasets: of the source, if there is one, and the target."
  )


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Random augmentation, each value the largest amount; see vamcei_jax/data/augment."""

  rotation: float = field(0.3, STRENGTH, "Rotation in radians.")
  scale: float = field(0.15, STRENGTH, "Relative change of scale.")
  shift: float = field(4.0, STRENGTH, "Shift in pixels, beyond that of the random crop.")
  flip: tuple[int, ...] = field((), AXES, "Axes of the image that are mirrored with probability 1/2.")
  upright: float = field(
    0.0, SHARE, "Share of images that are hardly turned: by a tenth of rotation at most, and not mirrored."
  )
  gamma: float = field(0.1, STRENGTH, "Logarithm of the gamma exponent.")
  contrast: float = field(0.1, STRENGTH, "Relative change of contrast; brightness changes by half of it.")
  bias: float = field(0.0, STRENGTH, "Logarithm of a smooth bias field.")
  blur: float = field(0.5, STRENGTH, "Standard deviation of a Gaussian blur in pixels.")
  noise: float = field(0.02, STRENGTH, "Standard deviation of white noise.")
  gin: float = field(0.0, SHARE, "Share of a random network's output in the image (GIN); 1 as published.")
  ipa: float = field(0.0, SHARE, "Probability that two random networks are blended over the image (IPA); needs gin.")
  scar: float = field(0.0, SHARE, "Probability that bright scar is painted into the myocardium of a labelled image.")
  contraction: float = field(
    0.0, SHARE, "Share of the LV cavity's area that a labelled heart contracts by; it dilates by a quarter of it."
  )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Networks of segmentation."""

  widths: tuple[int, ...] = field((16, 32, 64, 128), each(COUNT), "Channels of each level, from full resolution down.")
  latent_scales: int = field(3, COUNT, "Number of last decoder blocks that end in a Gaussian latent.")
  logvar_range: tuple[float, float] = field(
    (-3.0, -1.0), rising(each(number(-20, 20), 2), equal=True), "Range of log σ²; (-1, 1) as published."
  )
  norm: str = field("instance", choice(NORMS), "Normalisation: instance or group.")
  affine: bool = field(True, FLAG, "Norms of the segmenter with a scale and a bias; False as published.")
  bias: bool = field(False, FLAG, "Biases before norms, and one bias a channel in upsampling; True as published.")
  dropout: float = field(0.0, number(0, 0.9), "Rate of Dropout2d in the segmenter's decoder blocks; 0.5 as published.")
  latent: str = field("pointwise", choice(LATENTS), "Layers to μ and log σ²: pointwise, or attention as published.")
  heads: str = field("pointwise", choice(HEADS), "Output layers: pointwise, or convolution as published.")
  decoder_widths: tuple[int, ...] = field(
    (), either(EMPTY, each(COUNT)), "Channels of the decoders' convolutions; () for two as wide as the latent."
  )
  dtype: str = field("float32", choice(DTYPES), "Type of the computation; parameters and losses are float32.")
  discriminator_width: int = field(16, COUNT, "Channels of the discriminator's first layer.")


@dataclasses.dataclass(frozen=True)
class GlobalKLConfig:
  """Global alignment, eqs. 5-8."""

  estimator: str = field("pairwise", choice(ESTIMATORS), "pairwise: a bound of eq. 6; paper: eq. 8, can be negative.")


@dataclasses.dataclass(frozen=True)
class PrototypesConfig:
  """Class prototypes, eqs. 9-10."""

  temperature: float = field(0.5, SCALE, "Temperature τ of the contrast.")
  confidence: float = field(0.8, SHARE, "Smallest probability of a pseudo-label that counts.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Losses: their weights, and the steps over which the unsupervised ones reach their full weight."""

  weights: Mapping[str, Any] = mapping(WEIGHTS)
  ramp: tuple[float, float] = field(
    (0, 100), each(STRENGTH, 2), "Step at which unsupervised losses start, and steps until they have full weight."
  )
  balanced: bool = field(False, FLAG, "Whether each class counts alike in the cross-entropy; True as published.")
  global_kl: GlobalKLConfig = section(GlobalKLConfig)
  prototypes: PrototypesConfig = section(PrototypesConfig)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam."""

  rates: Mapping[str, float] = mapping(RATES)
  b1: float = field(0.9, number(0, 0.999999), "Decay of Adam's first moment.")
  b2: Mapping[str, float] = mapping(B2)
  weight_decay: float = field(0.0, number(0, 1), "Share of the parameters that is added to their gradient (L2).")
  constant: tuple[str, ...] = field(
    (), either(EMPTY, each(TEXT)), "Networks whose learning rate stays, without weight decay."
  )
  schedule: str = field(
    "polynomial",
    choice(SCHEDULES),
    "polynomial: (1 - step/steps)^0.9; exponential: 0.9 every epoch_steps; half_linear: constant, then linear to 0.",
  )
  epoch_steps: int = field(100, COUNT, "Steps of an epoch, for the exponential schedule.")
  clip: float = field(10.0, number(1e-6), "Largest global norm of a network's gradient.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training loop."""

  steps: int = field(350, COUNT, "Steps of a stage.")
  batch_size: int = field(8, COUNT, "Images of each domain in a batch, over all devices.")
  steps_per_call: int = field(10, COUNT, "Largest number of steps in one dispatch; one on the CPU.")
  log_every: int = field(20, COUNT, "Steps between log lines.")
  eval_every: int = field(100, COUNT, "Steps between evaluations on the validation cases.")
  checkpoint_every: int = field(100, COUNT, "Steps between checkpoints.")
  max_bad_steps: int = field(20, COUNT, "A run stops after so many successive steps with a loss that is not finite.")
  keep: int = field(2, COUNT, "Newest checkpoints that are kept.")
  ema_decay: float = field(0.98, number(0, 0.999999), "Decay of the moving average of the parameters.")


@dataclasses.dataclass(frozen=True)
class TranslationConfig:
  """Networks of the CycleGAN."""

  width: int = field(16, COUNT, "Channels of the translators at full resolution; 64 as published.")
  blocks: int = field(4, whole(0), "Residual blocks of the translators; 9 as published.")
  discriminator_width: int = field(16, COUNT, "Channels of the discriminators' first layer; 64 as published.")
  history: int = field(50, COUNT, "Earlier translated images from which the discriminators learn, too.")


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """Teachers of the student."""

  temperature: float = field(2.0, SCALE, "Temperature T of eq. 16.")
  teachers: tuple[float, ...] = field(
    (0.5, 0.5),
    each(STRENGTH),
    "Weights, in distill, of target_vamcei, source_vamcei and, as an optional third, no_adaptation.",
  )
  smooth: float = field(
    0.0, STRENGTH, "Standard deviation in mm of a Gaussian along the stack that smooths the teachers' probabilities."
  )


@dataclasses.dataclass(frozen=True)
class StageConfig:
  """All that one stage of a run needs.

  name: a key of vamcei_jax.pipeline.stages.STAGES.
  """

  name: str
  seed: int = field(0, SEED, "Seed of all random keys.")
  init: str | None = field(
    None, optional(TEXT), "Weights or a run that networks start from, and by default the teacher of adapt."
  )
  teachers: tuple[str, ...] | None = field(
    None, optional(each(TEXT)), "Weights or runs whose mean prediction adapt learns; None for that of init."
  )
  data: DataConfig = section(DataConfig)
  augment: AugmentConfig = section(AugmentConfig)
  model: ModelConfig = section(ModelConfig)
  loss: LossConfig = section(LossConfig)
  optimizer: OptimizerConfig = section(OptimizerConfig)
  train: TrainConfig = section(TrainConfig)
  translation: TranslationConfig = section(TranslationConfig)
  distillation: DistillationConfig = section(DistillationConfig)


@dataclasses.dataclass(frozen=True)
class GridConfig:
  """A grid of runs that share one program; see experiments/ablation_grid.py."""

  rows: tuple[tuple[str, Mapping[str, Any]], ...] = field(
    (), each(ROW), "Rows: a name, and the fields that the row changes (dotted name -> value)."
  )
  seeds: tuple[int, ...] = field((0,), differing(each(SEED)), "Seeds of each row.")


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
  """How a volume is predicted: the flags of `predict` and `export`, and the section `inference` beside weights."""

  tta: bool = field(False, FLAG, "Average over rotated, scaled and flipped images (test-time augmentation).")
  postprocess: bool = field(False, FLAG, "Keep the largest component of each structure, and fill holes.")
  smooth: float = field(
    0.0, STRENGTH, "Standard deviation in mm of a Gaussian along the stack that smooths probabilities; 0 for none."
  )
  samples: int = field(0, whole(0), "Samples of the latent variables to average over; 0 uses their means.")
  resample: bool = field(True, FLAG, "Resample pixels that are larger or smaller than those of the training data.")
  pixel_mm: tuple[float, float] | None = field(
    None, optional(rising(each(SCALE, 2), equal=True)), "Smallest and largest pixel of the training target, in mm."
  )
  extent_mm: tuple[float, float] | None = field(
    None,
    optional(rising(each(SCALE, 2), equal=True)),
    "Smallest and largest side of the training target's slices, in mm; in larger ones, the heart is looked for.",
  )


def records(kind: type, prefix: str = "") -> Iterator[tuple[str, Record]]:
  """(dotted name, record) of the fields of a section and of the sections in it, in order."""
  for item in dataclasses.fields(kind):
    name = prefix + item.name
    if "record" in item.metadata:
      yield name, item.metadata["record"]
    elif "records" in item.metadata:
      yield from ((f"{name}.{key}", record) for key, record in item.metadata["records"].items())
    elif "options" not in item.metadata and dataclasses.is_dataclass(item.default_factory):
      yield from records(item.default_factory, f"{name}.")


def find_record(name: str) -> Record | None:
  """The record of a dotted name such as "train.steps" in a stage's configuration; None where there is none."""
  if name.startswith("data.options."):
    return Record(None, OPTION, "")
  known = _STAGE_RECORDS.get(name)
  if known is None and name.startswith("loss.weights.") and name.count(".") == 2:
    return OTHER_WEIGHT
  if known is None and name.startswith("optimizer.rates.") and name.count(".") == 2:
    return OTHER_RATE
  return known


def is_section(name: str) -> bool:
  """Whether a dotted name is a section of a stage's configuration."""
  return name == "data.options" or any(known.startswith(f"{name}.") for known in _STAGE_RECORDS)


def build(kind: type, fields: Mapping[str, Any], prefix: str = "", **given: Any) -> Any:
  """A section from dotted names -> values; what is missing takes its default, lists become tuples.

  Args:
    kind: a dataclass of this file.
    fields: of the whole configuration.
    prefix: the dotted name of the section, with a dot at its end.
    **given: values of fields of the section that `fields` does not have.
  """
  values = dict(given)
  for item in dataclasses.fields(kind):
    name = prefix + item.name
    if item.name in values:
      continue
    if "record" in item.metadata:
      if name in fields:
        values[item.name] = _with_tuples(fields[name])
    elif "records" in item.metadata or "options" in item.metadata:
      inner = {key.removeprefix(f"{name}."): _with_tuples(fields[key]) for key in fields if key.startswith(f"{name}.")}
      values[item.name] = {key: record.default for key, record in item.metadata.get("records", {}).items()} | inner
    elif dataclasses.is_dataclass(item.default_factory):
      values[item.name] = build(item.default_factory, fields, f"{name}.")
  return kind(**values)


def variable_fields(config: StageConfig) -> list[str]:
  """Dotted names of the fields that a row of a grid may change: those that are arrays of the training state."""
  weights = [f"loss.weights.{term}" for term in config.loss.weights]
  return [*weights, "loss.ramp", *(f"optimizer.rates.{network}" for network in config.optimizer.rates)]


def vary(config: StageConfig, changes: Mapping[str, Any]) -> StageConfig:
  """The configuration of a stage with changes (dotted name -> value) to fields of variable_fields.

  One number changes a weight that has a value for each scale in all of them.
  """
  changed = lambda prefix, values: {name: changes.get(prefix + name, value) for name, value in values.items()}
  weights, rates = changed("loss.weights.", config.loss.weights), changed("optimizer.rates.", config.optimizer.rates)
  for name, weight in config.loss.weights.items():
    if isinstance(weight, tuple) and not isinstance(weights[name], list | tuple):
      weights[name] = (weights[name],) * len(weight)
  loss = dataclasses.replace(config.loss, weights=weights, ramp=changes.get("loss.ramp", config.loss.ramp))
  return dataclasses.replace(config, loss=loss, optimizer=dataclasses.replace(config.optimizer, rates=rates))


def flat_fields(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted name -> value of all fields of a nested mapping."""
  items: dict[str, Any] = {}
  for name, value in tree.items():
    items |= flat_fields(value, f"{prefix}{name}.") if hasattr(value, "items") else {prefix + name: value}
  return items


def _with_tuples(value: Any) -> Any:
  return tuple(map(_with_tuples, value)) if isinstance(value, list | tuple) else value


_STAGE_RECORDS = dict(records(StageConfig))
