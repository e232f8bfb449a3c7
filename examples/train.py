# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train with and without adaptation
#
# This notebook trains two networks on the embedded phantom. Both learn from labelled cine MR (bSSFP, the source), and
# both are tested on LGE (the target):
#
# - `no_adaptation` gets the source only.
# - `vamcei` also gets target images without masks.
#
# It takes a few minutes on 2 CPU cores. To be that fast, the networks, the images and the number of steps are much
# smaller than in [configs/uda.py](../configs/uda.py), so the scores are lower than those of `make demo`.
#
# **All patients are synthetic.** [The results](../docs/results.md) have the scores on real patients.
#
# Set-up, in the root of the repository:
#
# ```bash
# make install
# .venv/bin/python -m pip install -e '.[examples]'
# .venv/bin/jupyter lab examples
# ```

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from absl import logging

import vamcei_jax
from vamcei_jax.evaluation.statistics import format_table
from vamcei_jax.training.log import read_log

sys.path.append(str(Path(vamcei_jax.__file__).parent.parent))  # configs and experiments are in the repository alone
from configs import uda  # noqa: E402
from experiments.latent_space import compare_latents  # noqa: E402

logging.set_verbosity("error")  # hides remarks of TensorFlow Datasets and Orbax

# %% [markdown]
# ## A configuration
#
# A configuration begins with that of a file in `configs/`, and changes some fields.
# [configs/uda.py](../configs/uda.py) explains all fields.

# %%
config = uda.get_config()
config.data.prepared_dir = "runs/data"
config.data.options.update(train=12, validation=2, test=4)  # patients
config.data.size = config.data.crop = (32, 32)  # pixels of the images
config.data.zoom = 1 / 3  # from pixels of 1.5 mm to pixels of 4.5 mm
config.model.widths = (16, 32)
config.model.latent_scales = 1
config.model.discriminator_width = 8
config.loss.weights.global_alignment = (3e-7,)  # a weight for each latent scale
config.optimizer.rates.segmenter = 3e-3
config.train.steps = 300
config.train.eval_every = 60  # steps between points of the Dice curve

# %% [markdown]
# ## A run
#
# `train` runs both stages, one after the other. If the run was interrupted, the same call resumes it. If it has
# finished, the call only computes the results again.

# %%
workdir = Path("runs/train")
results = vamcei_jax.train(config, workdir)

# %% [markdown]
# ## Curves
#
# `metrics.jsonl` has a line for each logged step. The segmentation loss is that of the source, on which both networks
# learn. The Dice is that of validation patients of the target. The losses of both networks are about equal. Their Dice
# is not.

# %%
log = read_log(workdir / "metrics.jsonl")
TITLES = {"dice": "Dice on the target (validation)", "segmentation": "Segmentation loss on the source (training)"}
STYLES = {"no_adaptation": {"color": "C1", "linestyle": "--"}, "vamcei": {"color": "C0"}}
figure, axes = plt.subplots(1, len(TITLES), figsize=(10, 3.5), layout="constrained")
for axis, (metric, title) in zip(axes, TITLES.items(), strict=True):
  for stage, style in STYLES.items():
    points = [(line["step"], line[metric]) for line in log if line["stage"] == stage and metric in line]
    axis.plot(*zip(*points, strict=True), label=stage, marker="." if len(points) < 10 else None, **style)
  axis.set(title=title, xlabel="step", xlim=(0, config.train.steps), ylim=(0, None))
  axis.legend(frameon=False)

# %% [markdown]
# ## Latent space before and after adaptation
#
# A latent is what a network computes for a pixel before it decides on the class. A point in the figure is the mean
# latent of one class in one slice, in two dimensions: by principal component analysis (PCA) in the upper row, by t-SNE
# in the lower row. Colours are true classes, and markers are domains. Adaptation moves the points of both domains
# closer to each other, class by class. In so short a run they do not meet.
#
# The titles have two distances between the domains. "Global KL" is the loss of the global alignment, and "prototypes"
# compares the mean latents of each class, by 1 − cosine. [docs/losses.md](../docs/losses.md) has the equations.

# %%
distances = compare_latents(workdir)
figure, axis = plt.subplots(figsize=(10, 8.6), layout="constrained")
axis.axis("off")
axis.imshow(plt.imread(workdir / "latent_space.png"))
for stage, gap in distances.items():
  print(f"{stage}, distance of prototypes: {', '.join(f'{k} {d:.3f}' for k, d in gap['prototype_distance'].items())}")

# %% [markdown]
# ## Results
#
# Dice on the test patients of the target, mean ± standard deviation over patients. Their masks were used for nothing
# else. `runs/train/report.html` has more: pictures, surface distances and volumes.

# %%
print(format_table({stage: scores["summary"] for stage, scores in results["methods"].items()}))
