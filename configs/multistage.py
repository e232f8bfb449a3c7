"""The multi-stage framework on the embedded phantom, sized for a laptop CPU: translation, two VAMCEIs, one student.

python -m vamcei_jax.main --config=configs/multistage.py --workdir=runs/multistage

5 min 33 s on 2 cores. Mean Dice on the target's test patients: no adaptation 0.451, target_vamcei 0.869,
source_vamcei 0.850, their mean 0.871, the student 0.892.
"""

from ml_collections import ConfigDict

from configs import uda


def get_config() -> ConfigDict:
  config = uda.get_config()
  config.stages = ("no_adaptation", "translate", "target_vamcei", "source_vamcei", "distill")

  config.stage.translate = translate = ConfigDict()
  translate.translation = ConfigDict({
    "width": 16,  # channels of the translators at full resolution
    "blocks": 4,  # residual blocks
    "discriminator_width": 16,
    "history": 50,  # translated images that the discriminators are shown again
  })
  translate.loss = ConfigDict({"weights": {"adversarial": 1.0, "cycle": 10.0, "identity": 5.0}})
  translate.optimizer = ConfigDict({"b1": 0.5, "schedule": "half_linear"})
  translate.optimizer.rates = ConfigDict({"translators": 1e-3, "discriminators": 5e-4})
  # What a contrast is must not be blurred by changes of contrast, nor by shapes that one domain alone has.
  off = ("gamma", "contrast", "bias", "blur", "noise", "gin", "ipa", "scar", "contraction")
  translate.augment = ConfigDict(dict.fromkeys(off, 0.0))
  translate.train = ConfigDict({"steps": 800, "batch_size": 4, "eval_every": 200, "checkpoint_every": 200})

  config.stage.distill = distill = ConfigDict()
  distill.distillation = ConfigDict({
    "temperature": 2.0,  # of eq. 16
    "teachers": (0.5, 0.5),  # weights of target_vamcei, source_vamcei and, given a third, no_adaptation
    "views": False,  # whether what they say is the mean over rotated and scaled views of the images
    "smooth": 0.0,  # mm, of a Gaussian along the stack that what they say is put under
    "apex": False,  # whether they are told how much rarer structures are near the apex, by the source's masks
    "itself": 0.0,  # share of what is taught that comes, after loss.ramp, from the student's own moving average
  })
  distill.model = ConfigDict({"widths": (8, 16, 32, 64)})
  distill.train = ConfigDict({"steps": 900})  # a small network learns long, and each step is cheap
  distill.loss = ConfigDict({"weights": {"segmentation": 1.0, "distillation": 1.0}})
  return config
