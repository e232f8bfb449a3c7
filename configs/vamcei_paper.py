"""VAMCEI with networks of the published size (Cui et al., IEEE TMI 2024) on MS-CMRSeg 2019, for one GPU.

python -m vamcei_jax.main --config=configs/vamcei_paper.py --config.data.root=DIR

We have not run it yet: we know neither its time nor its scores. docs/published-code.md lists the
differences from the published code.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.stages = ("no_adaptation", "vamcei")
  config.stage = ConfigDict()

  config.data = data = ConfigDict()
  data.name = "mscmrseg"
  data.root = config_dict.placeholder(str)
  data.source = "bssfp"
  data.target = "lge"
  data.label_values = (0, 200, 500, 600)
  # The spacing in the bSSFP headers is wrong, so the pixel grid is kept; see datasets/mscmrseg.py.
  data.spacing = config_dict.placeholder(float)
  data.zoom = 1.0
  data.size = (192, 192)
  data.crop = (160, 160)
  data.prepared_dir = "~/.cache/vamcei_jax/data"

  config.augment = augment = ConfigDict()
  augment.rotation = 0.5
  augment.scale = 0.2
  augment.shift = 6.0
  augment.gamma = 0.1
  augment.contrast = 0.1
  augment.blur = 0.5
  augment.noise = 0.02

  config.model = model = ConfigDict()
  model.widths = (64, 128, 256, 512, 1024)
  model.latent_scales = 3
  model.logvar_range = (-1.0, 1.0)
  model.norm = "instance"
  model.dtype = "float32"
  model.discriminator_width = 64

  config.loss = loss = ConfigDict()
  loss.weights = ConfigDict(
    {
      "segmentation": 1.0,
      "reconstruction": 3e-3,
      "prior_kl": 3e-4,
      "global_alignment": (7e-7, 7e-7, 7e-8),
      "prototypes": 0.33,
      "generator": 0.033,
    }
  )
  loss.ramp = (0, 1)
  loss.global_kl = ConfigDict({"estimator": "paper"})
  loss.prototypes = ConfigDict({"temperature": 0.5, "confidence": 0.8})

  # 686 target slices in batches of 4: 172 steps an epoch, 30 epochs.
  config.optimizer = optimizer = ConfigDict()
  optimizer.rates = ConfigDict({"segmenter": 1e-4, "decoders": 1e-4, "discriminator": 5e-4})
  optimizer.b1 = 0.9
  optimizer.schedule = "exponential"
  optimizer.epoch_steps = 172
  optimizer.clip = 10.0

  config.train = train = ConfigDict()
  train.steps = 5160
  train.batch_size = 4
  train.steps_per_call = 43
  train.log_every = 43
  train.eval_every = 516
  train.checkpoint_every = 516
  train.ema_decay = 0.999
  return config
