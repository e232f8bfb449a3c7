"""Picture of real LGE: image, prediction without adaptation, prediction of the shipped weights, true mask.

python -m experiments.lge_picture --data=DIR --before=runs/mscmrseg/no_adaptation --output=docs/lge.png

Of each of three patients of MS-CMRSeg, it shows the part around the heart of the slice with the most myocardium.
configs/mscmrseg.py trains the stage no_adaptation.
"""

from pathlib import Path

from absl import flags

from vamcei_jax import cli
from vamcei_jax.usage import REQUIRED, group

PATIENTS = (1, 2, 3)
SIDE = 184  # pixels of the part of a slice, of which every second is shown: a thumbnail
FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(REQUIRED):
    flags.DEFINE_string("data", None, "DIR: The MS-CMRSeg folder.")
    flags.DEFINE_string("before", None, "DIR: A stage of a run, trained without adaptation.")
    flags.DEFINE_string("output", None, "FILE: The PNG.")
  flags.DEFINE_string("after", "weights/mscmrseg_student", "DIR: Exported weights.")


def main() -> None:
  """Runs the command."""
  import nibabel as nib
  import numpy as np
  from scipy import ndimage

  from vamcei_jax.data.labels import CLASSES, LABEL_VALUES, class_indices
  from vamcei_jax.evaluation.figures import save_panels
  from vamcei_jax.inference.load import load_segmenter

  segmenters = {"without adaptation": load_segmenter(FLAGS.before), "shipped weights": load_segmenter(FLAGS.after)}
  rows = []
  for patient in PATIENTS:
    file = Path(FLAGS.data, "LGE", f"patient{patient}_LGE.nii.gz")
    files = file, file.with_name(f"patient{patient}_LGE_manual.nii.gz")
    image, truth = (np.asarray(nib.load(path).dataobj) for path in files)
    classes = {
      name: class_indices(segmenter(file).mask, segmenter.config.data.label_values)
      for name, segmenter in segmenters.items()
    }
    classes["true mask"] = class_indices(truth, LABEL_VALUES)
    number = int((classes["true mask"] == CLASSES.index("Myo")).sum((0, 1)).argmax())
    middle = ndimage.center_of_mass(truth[..., number] > 0)
    corner = [int(np.clip(at - SIDE / 2, 0, n - SIDE)) for at, n in zip(middle, image.shape[:2], strict=True)]
    part = (slice(corner[0], corner[0] + SIDE, 2), slice(corner[1], corner[1] + SIDE, 2), number)
    grey = ndimage.uniform_filter(image[..., number].astype(float), 2)[part[:2]].T
    grey = grey / np.percentile(grey, 99)
    panels = [(name, grey, of_case[part].T) for name, of_case in classes.items()]
    rows.append([(f"LGE, patient {patient}", grey, None), *panels])
  save_panels(cli.required_path("output"), rows)


if __name__ == "__main__":
  cli.run(define_flags, main, __doc__)
