# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment an LGE volume
#
# This notebook segments a volume with the shipped weights. It shows the mask, the volumes of the structures and the
# quality of the mask, and it saves the mask. It takes less than a minute on 2 CPU cores.
#
# **The volume is synthetic.** The embedded phantom draws a heart, and computes its signals in a scan with late
# gadolinium enhancement (LGE). The shipped weights were trained on LGE of real patients, and not on the phantom. So the
# numbers below say nothing about real patients. [The results](../docs/results.md) do.
#
# Set-up, in the root of the repository:
#
# ```bash
# make install
# .venv/bin/python -m pip install -e '.[examples]'
# .venv/bin/jupyter lab examples
# ```

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel
import numpy as np

import vamcei_jax
from vamcei_jax.evaluation.figures import COLOURS
from vamcei_jax.phantom.scanner import draw_patient, write_patient

repository = Path(vamcei_jax.__file__).parent.parent
folder = Path("runs/segment")  # for all files of this notebook

# %% [markdown]
# ## A volume
#
# The phantom writes two NIfTI files: the image, and the true mask. The network gets the image only.
#
# For your own volume, replace this cell by `volume = "patient1.nii.gz"` and `truth = None`. A folder with one DICOM
# series works too. It needs the extra `dicom`, see [the Python API](../docs/python.md#dicom). The volume must be a
# stack of short-axis slices.

# %%
volume, truth = folder / "phantom.nii.gz", folder / "phantom_truth.nii.gz"
write_patient(draw_patient(seed=0, patient_index=0, domain="lge"), volume, truth)

# %% [markdown]
# ## Predict
#
# The first call compiles the network. Further volumes take about a second each.

# %%
segmenter = vamcei_jax.load_segmenter(repository / "weights" / "lge")
prediction = segmenter(volume)
print(f"grid of the mask: {prediction.mask.shape}, values: {np.unique(prediction.mask)}")

# %% [markdown]
# ## Look at the mask
#
# The mask has the grid and the axes of the image. Its values are 0 (background), 200 (myocardium, Myo), 500 (left
# ventricle, LV) and 600 (right ventricle, RV).

# %%
STRUCTURES = {"Myo": (200, 500), "LV": (500,), "RV": (600,)}  # the outline of Myo is that of its outer surface
image = prediction.scan.image.get_fdata()
masks = {"image": np.zeros_like(image), "prediction": prediction.mask}
if truth:
  masks["truth"] = nibabel.load(truth).get_fdata()

slices = np.linspace(1, image.shape[2] - 2, 5).round().astype(int)
grey = {"cmap": "gray", "vmin": 0, "vmax": np.percentile(image, 95)}
figure, axes = plt.subplots(len(masks), len(slices), figsize=(10, 2.05 * len(masks)), layout="constrained")
handles = [plt.Line2D([], [], color=COLOURS[structure], label=structure) for structure in STRUCTURES]
figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
for row, (title, mask) in zip(axes, masks.items(), strict=True):
  for axis, z in zip(row, slices, strict=True):
    axis.imshow(image[:, :, z].T, **grey)
    for structure, values in STRUCTURES.items():
      inside = np.isin(mask[:, :, z].T, values)
      if inside.any():
        axis.contour(inside, levels=[0.5], colors=COLOURS[structure], linewidths=1.5)
    axis.set(xticks=[], yticks=[], title=f"slice {z}" if title == "image" else "")
  row[0].set_ylabel(title)

# %% [markdown]
# ## Volumes and mass
#
# A volume is the number of voxels of a structure times the volume of a voxel. The mass of the myocardium is its volume
# times 1.05 g/ml.

# %%
for structure, millilitres in prediction.volumes_ml.items():
  print(f"{structure:<4} {millilitres:6.1f} ml")
print(f"Mass of the myocardium: {prediction.myocardial_mass_g:.1f} g")

# %% [markdown]
# ## Quality
#
# The score estimates the mean Dice of the mask, without a true mask. Look at each mask with a score below 0.5. A
# finding names something that may be wrong, or something that was assumed.
# [Findings and score](../docs/findings.md) explains all findings.
#
# The phantom has pixels of 1.5 mm. The network was trained on smaller pixels, so the volume is resampled before the
# network gets it. The mask has the pixels of the volume.

# %%
print(f"score: {prediction.quality.score:.2f}")
for finding in prediction.quality.findings:
  print(f"{finding.name}: {finding.text}")

# %% [markdown]
# ## Save
#
# The file of the mask has the header of the image. Viewers such as 3D Slicer or ITK-SNAP lay it over the image.

# %%
mask = folder / "phantom_mask.nii.gz"
prediction.save(mask)
print(mask)

# %% [markdown]
# ## Compare with the true mask
#
# With a true mask, `vamcei_jax.evaluate` gives the Dice and the surface distances. The true mask of the phantom is
# known without error, because the phantom draws it.
#
# The figure shows the largest error. Slice 9 lies above the valves. It has no ventricle, but the network marks parts of
# the atria and the great vessels as ventricles. The score is above 0.5, and no finding names this error: look at masks
# yourself.

# %%
if truth:
  print(vamcei_jax.evaluate(mask, truth))

# %% [markdown]
# ## Next
#
# - [README](../README.md#segment-your-lge-volumes): segment a folder by one command.
# - [train.ipynb](train.ipynb): train on the phantom. [All steps](../docs/own-training.md) to train on your own data.
