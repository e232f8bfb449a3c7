"""VAMCEI on the embedded phantom, bSSFP -> LGE, sized for a laptop CPU.

Every field of a config is explained here, those of the multi-stage framework in configs/multistage.py.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

2 to 5 minutes on 2 cores with all set-up. Mean Dice on the target's test patients: no adaptation 0.410, VAMCEI 0.745;
trained on target labels 0.909 (python -m experiments.domain_gap --config=configs/uda.py).
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  # In this order, each in its folder of the workdir. "locate" in front puts the field on the heart: configs/folder.py.
  config.stages = ("no_adaptation", "vamcei")

  config.stage = ConfigDict()  # stage -> what differs for it from the rest of this config; see configs/multistage.py

  config.data = data = ConfigDict()
  data.name = "phantom"  # a dataset of vamcei_jax/datasets
  data.root = config_dict.placeholder(str)  # folder of the NIfTI volumes, for datasets that read some
  data.prepared_dir = "~/.cache/vamcei_jax/data"  # prepared datasets are kept here and shared between runs
  data.source = "bssfp"
  data.target = "lge"
  # Background, Myo, LV, RV in NIfTI masks; a tuple of values in place of one folds them into the class.
  data.label_values = (0, 200, 500, 600)
  # The slices that were taken; "axial", "coronal" or "sagittal" for volumes of the whole heart, sliced along the body.
  data.view = "short_axis"
  data.size = (64, 64)  # the network's field in pixels, for evaluation and prediction
  data.crop = (48, 48)  # random crops for training
  data.spacing = config_dict.placeholder(float)  # resample to this in-plane spacing in mm; None: use the pixel grid
  data.zoom = 2 / 3  # without spacing: pixels of the network per pixel of the file
  data.percentiles = (1.0, 99.0)  # of a volume's intensities, mapped to 0 and 1
  data.empty_slices = "all"  # source slices without any structure to learn from: all, apical or none
  data.resident = 0.3  # slices live on the device while they take at most this part of its memory; else on disk
  data.options = ConfigDict({"seed": 0, "train": 24, "validation": 4, "test": 12})  # of the dataset's builder

  config.augment = augment = ConfigDict()  # largest amounts; see vamcei_jax/data/augment
  augment.rotation = 0.3
  augment.scale = 0.15
  augment.shift = 4.0
  augment.flip = ()
  augment.gamma = 0.1
  augment.contrast = 0.1
  augment.bias = 0.0
  augment.blur = 0.5
  augment.noise = 0.02
  augment.gin = 0.0  # up to 1, as published: contrasts and textures of random networks, for domains far apart
  augment.ipa = 0.0  # probability that two of these networks share an image, blended from place to place; needs gin
  augment.scar = 0.0  # probability that a labelled image is given bright scar in its myocardium
  augment.contraction = 0.0  # share of its LV cavity that a labelled heart squeezes out, or a quarter of it lets in

  config.model = model = ConfigDict()
  model.widths = (16, 32, 64, 128)  # channels from full resolution down
  model.latent_scales = 3  # the last decoder blocks that end in a Gaussian latent
  model.logvar_range = (-3.0, -1.0)  # of log σ²; published (-1, 1), too noisy for so few channels
  model.norm = "instance"
  model.dtype = "float32"  # of the computation; parameters and losses are float32
  model.discriminator_width = 16

  config.loss = loss = ConfigDict()
  loss.weights = ConfigDict({
    "segmentation": 1.0,
    "reconstruction": 3e-3,
    "prior_kl": 3e-4,
    "global_alignment": (3e-7, 3e-7, 3e-8),  # full, half, quarter resolution
    "prototypes": 0.33,
    "generator": 0.1,
  })
  loss.ramp = (0, 100)  # unsupervised terms set in at step 0 and reach their weights in the course of 100 steps
  loss.global_kl = ConfigDict({"estimator": "paper"})
  loss.prototypes = ConfigDict({"temperature": 0.5, "confidence": 0.8})

  config.optimizer = optimizer = ConfigDict()
  optimizer.rates = ConfigDict({"segmenter": 2e-3, "decoders": 1e-3, "discriminator": 5e-4})  # peak learning rates
  optimizer.b1 = 0.9  # of Adam
  # Also "exponential", 0.9 every epoch_steps, and "half_linear", constant for half of the steps, then a line to zero.
  optimizer.schedule = "polynomial"
  optimizer.epoch_steps = 100
  optimizer.clip = 10.0  # global norm of a network's gradient

  config.train = train = ConfigDict()
  train.steps = 350
  train.batch_size = 8  # images a domain
  train.steps_per_call = 10  # steps in one dispatch, at most; on the CPU each is one of its own
  train.log_every = 20
  train.eval_every = 100
  train.checkpoint_every = 100
  train.max_bad_steps = 20  # of these in a row, with losses or gradients that are not finite, a run stops; else skipped
  train.keep = 2  # newest checkpoints; the best one on validation is kept too
  train.ema_decay = 0.98
  return config
