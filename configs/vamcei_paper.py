"""VAMCEI as its authors published it (Cui et al., IEEE TMI 2024), on MS-CMRSeg 2019; docs/published-code.md compares.

python -m vamcei_jax.main --config=configs/vamcei_paper.py --config.data.root=DIR --describe
python -m vamcei_jax.main --config=configs/vamcei_paper.py --config.data.root=DIR

Networks, losses and optimizers are those of the published code, section by section. For one GPU; not yet run whole.
"""

from ml_collections import ConfigDict, config_dict

ITERATIONS = 391  # an epoch: four crops of each of 391 bSSFP slices, four slices a batch


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

  # Random crops by whole pixels, and nothing else.
  off = ("rotation", "scale", "shift", "gamma", "contrast", "blur", "noise")
  config.augment = ConfigDict(dict.fromkeys(off, 0.0))

  config.model = model = ConfigDict()
  model.widths = (64, 128, 256, 512, 1024)
  model.latent_scales = 3
  model.logvar_range = (-1.0, 1.0)
  model.norm = "instance"
  model.affine = False
  model.bias = True
  model.dropout = 0.5
  model.latent = "attention"
  model.heads = "convolution"
  model.decoder_widths = (128, 128, 64, 64, 32, 32)
  model.discriminator_width = 64
  model.dtype = "float32"

  config.loss = loss = ConfigDict()
  loss.weights = ConfigDict(
    {
      "segmentation": 1.0,
      "reconstruction": 3e-3,
      "prior_kl": 3e-4,
      # 7e-7 and 7e-8 there. The published code takes the pooled variance for a standard deviation, which makes its
      # alignment some 14 times as large as ours.
      "global_alignment": (1e-5, 1e-5, 1e-6),
      "prototypes": 0.33,
      "generator": 0.033,
    }
  )
  loss.balanced = True
  loss.ramp = (0, 1)  # Full weight from the second step.
  loss.global_kl = ConfigDict({"estimator": "paper"})
  loss.prototypes = ConfigDict({"temperature": 1.0, "confidence": 0.0})  # All pixels have a pseudo-label.

  config.optimizer = optimizer = ConfigDict()
  optimizer.rates = ConfigDict({"segmenter": 1e-4, "decoders": 1e-4, "discriminator": 5e-4})
  optimizer.b1 = 0.9
  optimizer.b2 = ConfigDict({"discriminator": 0.99})
  optimizer.weight_decay = 1e-5
  optimizer.schedule = "exponential"  # 0.9 an epoch,
  optimizer.epoch_steps = ITERATIONS
  optimizer.constant = ("discriminator",)  # but not for the discriminator.
  optimizer.clip = 1e9  # No clipping.

  config.train = train = ConfigDict()
  train.steps = 30 * ITERATIONS
  train.batch_size = 4
  train.steps_per_call = 17
  train.log_every = 17
  train.eval_every = ITERATIONS
  train.checkpoint_every = ITERATIONS
  train.ema_decay = 0.0  # The parameters themselves are evaluated.
  return config
