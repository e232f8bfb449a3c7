"""VAMCEI on the embedded phantom, bSSFP -> LGE, sized for a laptop CPU. This file explains every field.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

2 to 5 minutes on 2 cores with all set-up. Mean Dice on the target's test patients: no adaptation 0.437, VAMCEI 0.736.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  config = ConfigDict()
  config.seed = 0  # Seed of all random keys.
  # Weights or a run that networks start from, and by default the teacher of adapt.
  config.init = config_dict.placeholder(str)
  # Weights or runs whose mean prediction adapt learns; None for that of init.
  config.teachers = config_dict.placeholder(tuple)
  # The stages of vamcei_jax/pipeline/stages.py to train, in this order, each in its folder of the workdir.
  config.stages = ("no_adaptation", "vamcei")
  # Stage -> the fields in which it differs, as config.stage.vamcei.train.steps; see configs/multistage.py.
  config.stage = ConfigDict()

  config.data = data = ConfigDict()
  data.name = "phantom"  # Dataset: a key of vamcei_jax/datasets.
  data.root = config_dict.placeholder(str)  # Folder of the NIfTI volumes, for datasets that read some.
  data.prepared_dir = "~/.cache/vamcei_jax/data"  # Folder of prepared datasets, shared between runs.
  data.source = "bssfp"  # Domain with masks; None in the stage adapt: it has no source.
  data.target = "lge"  # Domain without masks; masks that exist are read by the evaluation alone.
  # Domain with masks of the target's patients, which correct the teachers' predictions in adapt.
  data.same_patients = config_dict.placeholder(str)
  # Values of background, Myo, LV and RV in masks; a tuple folds several values into one class.
  data.label_values = (0, 200, 500, 600)
  data.plane = "short_axis"  # Slices as acquired (short_axis), or planes of the body's axes.
  # Slices without directions in their header: read by it (header), as stored (file), or by locate (estimate).
  data.orientation = "header"
  data.size = (64, 64)  # Field of the network in pixels, for evaluation and prediction.
  data.crop = (48, 48)  # Random crops for training, in pixels.
  data.spacing = config_dict.placeholder(float)  # Pixel size in mm to resample to; None keeps the pixel grid.
  data.zoom = 2 / 3  # Without spacing: pixels of the network per pixel of the file.
  data.percentiles = (1.0, 99.0)  # Intensity percentiles of a volume that become 0 and 1.
  data.empty_slices = "all"  # Source slices without a structure to train on: all, apical or none.
  data.resident = 0.3  # Slices are held on the device up to this share of its memory, else read from disk.
  # Options of the dataset's builder: here of the phantom.
  data.options = ConfigDict({"seed": 0, "train": 24, "validation": 4, "test": 12})

  # Random augmentation: the largest amounts.
  config.augment = augment = ConfigDict()
  augment.rotation = 0.3  # Rotation in radians.
  augment.scale = 0.15  # Relative change of scale.
  augment.shift = 4.0  # Shift in pixels, beyond that of the random crop.
  augment.flip = ()  # Axes of the image that are mirrored with probability 1/2.
  augment.upright = 0.0  # Share of images that are hardly turned: by a tenth of rotation at most, and not mirrored.
  augment.gamma = 0.1  # Logarithm of the gamma exponent.
  augment.contrast = 0.1  # Relative change of contrast; brightness changes by half of it.
  augment.bias = 0.0  # Logarithm of a smooth bias field.
  augment.blur = 0.5  # Standard deviation of a Gaussian blur in pixels.
  augment.noise = 0.02  # Standard deviation of white noise.
  augment.gin = 0.0  # Share of a random network's output in the image (GIN); 1 as published.
  augment.ipa = 0.0  # Probability that two random networks are blended over the image (IPA); needs gin.
  augment.scar = 0.0  # Probability that bright scar is painted into the myocardium of a labelled image.
  # Share of the LV cavity's area that a labelled heart contracts by; it dilates by a quarter of it.
  augment.contraction = 0.0

  config.model = model = ConfigDict()
  model.widths = (16, 32, 64, 128)  # Channels of each level, from full resolution down.
  model.latent_scales = 3  # Number of last decoder blocks that end in a Gaussian latent.
  model.logvar_range = (-3.0, -1.0)  # Range of log σ²; (-1, 1) as published.
  model.norm = "instance"  # Normalisation: instance or group.
  model.affine = True  # Norms of the segmenter with a scale and a bias; False as published.
  model.bias = False  # Biases before norms, and one bias a channel in upsampling; True as published.
  model.dropout = 0.0  # Rate of Dropout2d in the segmenter's decoder blocks; 0.5 as published.
  model.latent = "pointwise"  # Layers to μ and log σ²: pointwise, or attention as published.
  model.heads = "pointwise"  # Output layers: pointwise, or convolution as published.
  model.decoder_widths = ()  # Channels of the decoders' convolutions; () for two as wide as the latent.
  model.dtype = "float32"  # Type of the computation; parameters and losses are float32.
  model.discriminator_width = 16  # Channels of the discriminator's first layer.

  config.loss = loss = ConfigDict()
  loss.weights = weights = ConfigDict()
  weights.segmentation = 1.0  # Eq. 4: cross-entropy and soft Dice of the source's masks.
  weights.reconstruction = 3e-3  # Eq. 3: mean over pixels, summed over domains and scales.
  weights.prior_kl = 3e-4  # Eq. 2: mean over latent dimensions, summed over domains and scales.
  # Eqs. 5-8, summed over latent dimensions: full, half, quarter resolution.
  weights.global_alignment = (3e-7, 3e-7, 3e-8)
  weights.prototypes = 0.33  # Eq. 10: contrast of the class prototypes.
  weights.generator = 0.1  # Eq. 12: the discriminator takes target class maps for source class maps.
  loss.ramp = (0, 100)  # Step at which unsupervised losses start, and steps until they have full weight.
  loss.balanced = False  # Whether each class counts alike in the cross-entropy; True as published.
  loss.global_kl = ConfigDict()
  loss.global_kl.estimator = "pairwise"  # pairwise: a bound of eq. 6; paper: eq. 8, can be negative.
  loss.prototypes = ConfigDict()
  loss.prototypes.temperature = 0.5  # Temperature τ of the contrast.
  loss.prototypes.confidence = 0.8  # Smallest probability of a pseudo-label that counts.

  config.optimizer = optimizer = ConfigDict()
  optimizer.rates = rates = ConfigDict()
  rates.segmenter = 2e-3  # Peak learning rate of the segmenter.
  rates.decoders = 1e-3  # Peak learning rate of the decoders of eq. 3.
  rates.discriminator = 5e-4  # Peak learning rate of the discriminator of eqs. 11-12.
  optimizer.b1 = 0.9  # Decay of Adam's first moment.
  optimizer.b2 = ConfigDict()
  optimizer.b2.discriminator = 0.999  # Decay of Adam's second moment for the discriminator.
  optimizer.weight_decay = 0.0  # Share of the parameters that is added to their gradient (L2).
  optimizer.constant = ()  # Networks whose learning rate stays, without weight decay.
  # polynomial: (1 - step/steps)^0.9; exponential: 0.9 every epoch_steps; half_linear: constant, then linear to 0.
  optimizer.schedule = "polynomial"
  optimizer.epoch_steps = 100  # Steps of an epoch, for the exponential schedule.
  optimizer.clip = 10.0  # Largest global norm of a network's gradient.

  config.train = train = ConfigDict()
  train.steps = 350  # Steps of a stage.
  train.batch_size = 8  # Images of each domain in a batch, over all devices.
  train.steps_per_call = 10  # Largest number of steps in one dispatch; one on the CPU.
  train.log_every = 20  # Steps between log lines.
  train.eval_every = 100  # Steps between evaluations on the validation cases.
  train.checkpoint_every = 100  # Steps between checkpoints.
  train.max_bad_steps = 20  # A run stops after so many successive steps with a loss that is not finite.
  train.keep = 2  # Newest checkpoints that are kept.
  train.ema_decay = 0.98  # Decay of the moving average of the parameters.
  return config
