"""The first step of weights/mscmrseg_student: MS-CMRSeg 2019, bSSFP -> LGE, without an LGE mask.

python -m vamcei_jax.main --config=configs/mscmrseg_best.py --config.data.root=DIR --workdir=runs/best

About 90 minutes on 2 cores of an AMD EPYC. Validation Dice on LGE 1-5, used to choose the recipe (Myo / LV / RV):
no_adaptation 0.806 / 0.899 / 0.901, target_vamcei 0.810 / 0.894 / 0.891, source_vamcei 0.766 / 0.867 / 0.858.
docs/results.md has the test scores of the student.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.stages = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")

  config.data = data = ConfigDict()
  data.name = "mscmrseg"
  data.root = config_dict.placeholder(str)
  data.source = "bssfp"
  data.target = "lge"
  data.label_values = (0, 200, 500, 600)
  # The spacing in the bSSFP headers is wrong, so the pixel grid is kept; see datasets/mscmrseg.py.
  data.spacing = config_dict.placeholder(float)
  data.zoom = 0.75  # Pixels of about 1 mm.
  data.size = (128, 128)
  data.crop = (112, 112)
  # The bSSFP masks end below the valves, the LGE masks do not. At the apex, the two agree.
  data.empty_slices = "apical"
  data.prepared_dir = "~/.cache/vamcei_jax/data"

  config.augment = augment = ConfigDict()
  augment.rotation = 0.5
  augment.scale = 0.4  # LGE has more slices at the apex, where the heart is small.
  augment.shift = 8.0
  augment.gamma = 0.3
  augment.contrast = 0.2
  augment.bias = 0.0
  augment.blur = 0.5
  augment.noise = 0.05
  augment.gin = 1.0
  augment.ipa = 1.0
  augment.scar = 0.6
  augment.contraction = 0.6

  config.model = model = ConfigDict()
  model.widths = (16, 32, 64, 128, 256)
  model.latent_scales = 3
  # Latent noise as strong as in configs/uda.py costs accuracy. The weaker the noise, the larger is the KL of a
  # difference of means, so the weight of the alignment is small.
  model.logvar_range = (-6.0, -4.0)
  model.discriminator_width = 32

  config.loss = loss = ConfigDict()
  loss.weights = ConfigDict(
    {
      "segmentation": 1.0,
      "reconstruction": 3e-3,
      "prior_kl": 3e-4,
      "global_alignment": (3e-7, 3e-7, 3e-8),
      "prototypes": 0.33,
      "generator": 0.2,
    }
  )
  loss.ramp = (0, 200)
  loss.global_kl = ConfigDict({"estimator": "paper"})  # The weights of the alignment were chosen with it.
  loss.prototypes = ConfigDict({"temperature": 0.5, "confidence": 0.8})

  config.optimizer = optimizer = ConfigDict()
  optimizer.rates = ConfigDict({"segmenter": 1e-3, "decoders": 1e-3, "discriminator": 1e-3})
  optimizer.b1 = 0.9
  optimizer.schedule = "polynomial"
  optimizer.clip = 10.0

  config.train = train = ConfigDict()
  train.steps = 1000
  train.batch_size = 8
  train.log_every = 20
  train.eval_every = 200
  train.checkpoint_every = 100
  train.ema_decay = 0.99

  config.stage = stage = ConfigDict()
  stage.no_adaptation = ConfigDict({"train": {"steps": 4000}})
  stage.target_vamcei = ConfigDict({"train": {"steps": 2500}})
  stage.source_vamcei = ConfigDict({"train": {"steps": 600}})

  stage.translate = translate = ConfigDict()
  # The translators learn the contrast without masks, so they see all slices, and hearts of natural size.
  translate.data = ConfigDict({"crop": (80, 80), "empty_slices": "all"})
  translate.translation = ConfigDict({"width": 16, "blocks": 4, "discriminator_width": 16, "history": 50})
  # With an identity weight of 5, as published, the translators change little but texture.
  translate.loss = ConfigDict({"weights": {"adversarial": 1.0, "cycle": 10.0, "identity": 1.0}})
  translate.optimizer = ConfigDict({"b1": 0.5, "schedule": "half_linear"})
  translate.optimizer.rates = ConfigDict({"translators": 1e-3, "discriminators": 5e-4})
  off = ("gamma", "contrast", "bias", "blur", "noise", "gin", "ipa", "scar", "contraction")
  translate.augment = ConfigDict({"scale": 0.2} | dict.fromkeys(off, 0.0))
  translate.train = ConfigDict({"steps": 1600, "batch_size": 4, "eval_every": 200, "checkpoint_every": 200})

  stage.distill = distill = ConfigDict()
  # target_vamcei, source_vamcei, no_adaptation. Translation to bSSFP keeps scars: source_vamcei is the weakest.
  distill.distillation = ConfigDict({"temperature": 2.0, "teachers": (0.45, 0.1, 0.45), "smooth": 5.0})
  # The student imitates its teachers: no random networks on its images, and a small weight of translated images.
  distill.augment = ConfigDict({"gin": 0.0, "ipa": 0.0})
  distill.loss = ConfigDict({"weights": {"segmentation": 0.25, "distillation": 1.0}})
  distill.train = ConfigDict({"steps": 2000})
  return config
