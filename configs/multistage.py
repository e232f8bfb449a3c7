"""The multi-stage framework on the embedded phantom, sized for a laptop CPU: CycleGAN, two VAMCEI networks, a student.

python -m vamcei_jax.main --config=configs/multistage.py --workdir=runs/multistage

5 min 33 s on 2 cores. Mean Dice on the target's test patients: no_adaptation 0.451, target_vamcei 0.869,
source_vamcei 0.850, mean of these two 0.871, student 0.892.
"""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.stages = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")

  config.stage.translate = translate = ConfigDict()
  translate.translation = ConfigDict()
  translate.translation.width = 16  # Channels of the translators at full resolution; 64 as published.
  translate.translation.blocks = 4  # Residual blocks of the translators; 9 as published.
  translate.translation.discriminator_width = 16  # Channels of the discriminators' first layer; 64 as published.
  translate.translation.history = 50  # Earlier translated images from which the discriminators learn, too.
  translate.loss = ConfigDict({"weights": {}})
  translate.loss.weights.adversarial = 1.0  # CycleGAN: least-squares adversarial loss of the translators.
  translate.loss.weights.cycle = 10.0  # CycleGAN: absolute error after translation there and back.
  # CycleGAN: absolute change of images that are in the right contrast already.
  translate.loss.weights.identity = 5.0
  translate.optimizer = ConfigDict({"b1": 0.5, "schedule": "half_linear", "rates": {}})
  translate.optimizer.rates.translators = 1e-3  # Peak learning rate of the CycleGAN's translators.
  translate.optimizer.rates.discriminators = 5e-4  # Peak learning rate of the CycleGAN's discriminators.
  # The translators learn the contrast, so augmentation does not change it, and adds no structure to one domain only.
  off = ("gamma", "contrast", "bias", "blur", "noise", "gin", "ipa", "scar", "contraction")
  translate.augment = ConfigDict(dict.fromkeys(off, 0.0))
  translate.train = ConfigDict({"steps": 800, "batch_size": 4, "eval_every": 200, "checkpoint_every": 200})

  config.stage.distill = distill = ConfigDict()
  distill.distillation = ConfigDict()
  distill.distillation.temperature = 2.0  # Temperature T of eq. 16.
  # Weights, in distill, of target_vamcei, source_vamcei and, as an optional third, no_adaptation.
  distill.distillation.teachers = (0.5, 0.5)
  # Standard deviation in mm of a Gaussian along the stack that smooths the teachers' probabilities.
  distill.distillation.smooth = 0.0
  distill.model = ConfigDict({"widths": (8, 16, 32, 64)})
  distill.train = ConfigDict({"steps": 900})  # A small network needs more steps, and each is cheap.
  distill.loss = ConfigDict({"weights": {"segmentation": 1.0}})
  distill.loss.weights.distillation = 1.0  # Eq. 16: tempered cross-entropy between teacher and student.
  return config
