"""The MR signal of tissues: their relaxation at 1.5 T, and their signals in the phantom's two sequences."""

import numpy as np

AIR, LUNG, FAT, MUSCLE, BONE, MARROW, LIVER, SPLEEN, BLOOD, VENOUS_BLOOD, MYOCARDIUM, SCAR = range(12)

# T1 and T2 in ms, proton density relative to water, and the partition coefficient of gadolinium (tissue over blood).
# Blood and myocardium, T1 and partition: Sharma et al., JMRI 23:323, 2006. T2 of blood, muscle: Stanisz et al., MRM
# 54:507, 2005; venous blood has less oxygen, which shortens T2: Wright et al., JMRI 1:275, 1991; T2 of
# myocardium: Giri et al., JCMR 11:56, 2009. Fat: Rakow-Penner et al., JMRI 23:87, 2006. Marrow, liver, spleen: de
# Bazelaire et al., Radiology 230:652, 2004. Scar: extracellular volume 0.48 (Ugander et al., EHJ 33:1268, 2012: 0.51)
# over the plasma's 0.58 in blood. Densities are round figures; those of lung and bone include the decay by T2*.
TISSUES = np.array(
  [
    (1000, 50, 0.00, 0.00),  # AIR
    (1200, 40, 0.06, 0.30),  # LUNG
    (296, 53, 0.90, 0.05),  # FAT
    (1008, 44, 0.75, 0.25),  # MUSCLE
    (1000, 50, 0.04, 0.00),  # BONE
    (549, 49, 0.55, 0.10),  # MARROW
    (586, 46, 0.75, 0.45),  # LIVER
    (1057, 79, 0.80, 0.50),  # SPLEEN
    (1580, 290, 0.95, 1.00),  # BLOOD
    (1580, 170, 0.95, 1.00),  # VENOUS_BLOOD
    (1070, 52, 0.80, 0.46),  # MYOCARDIUM
    (1150, 60, 0.88, 0.83),  # SCAR
  ]
).T
SPREAD = 0.02  # standard deviation over patients, relative, of each of these numbers

BSSFP_TR, BSSFP_TE, BSSFP_FLIP = 3.0, 1.5, (45.0, 60.0)  # ms, ms, degrees
INVERSION_TR, INVERSION_TE = 1600.0, 3.3  # ms; an inversion every second heartbeat
TI_ERROR = (-0.04, 0.1)  # range over patients, relative to the time that nulls healthy myocardium
GADOLINIUM = (0.25, 0.33)  # mM in blood, half an hour after 0.1 to 0.2 mmol/kg: blood's T1 is 500-600 ms
RELAXIVITY = 4.1e-3  # per ms and mM, gadopentetate in plasma: Rohrer et al., Investigative Radiology 40:715, 2005


def bssfp_signal(t1, t2, density, *, flip: float, tr: float, te: float):
  """Balanced SSFP in the steady state, on resonance (Freeman and Hill, J. Magn. Reson. 4:366, 1971).

  Args:
    t1, t2: relaxation times (ms) of the tissues.
    density: proton density relative to water.
    flip: flip angle in radians.
    tr, te: repetition and echo time (ms).
  """
  e1, e2 = np.exp(-tr / t1), np.exp(-tr / t2)
  return density * np.sin(flip) * (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2) * np.exp(-te / t2)


def inversion_recovery_signal(t1, t2, density, *, ti: float, tr: float, te: float):
  """Inversion recovery, signed: read out `ti` ms after inversions that are repeated every `tr` ms."""
  return density * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def null_time(t1, tr: float):
  """The inversion time (ms) at which a tissue of this T1 (ms) has no signal."""
  return t1 * np.log(2 / (1 + np.exp(-tr / t1)))


def post_contrast_t1(t1, partition, gadolinium: float):
  """T1 (ms) after contrast.

  Args:
    t1: T1 (ms) before contrast.
    partition: gadolinium in the tissue, relative to blood.
    gadolinium: mM in blood.
  """
  return 1 / (1 / t1 + RELAXIVITY * partition * gadolinium)


def scan_bssfp(rng: np.random.Generator) -> np.ndarray:
  """(tissues,) signals of a random patient. That of fat is negative: at TE = TR/2 its phase is opposite to water's."""
  t1, t2, density, _ = _tissues_of_patient(rng)
  signals = bssfp_signal(t1, t2, density, flip=np.deg2rad(rng.uniform(*BSSFP_FLIP)), tr=BSSFP_TR, te=BSSFP_TE)
  signals[FAT] *= -1
  return signals


def scan_lge(rng: np.random.Generator) -> np.ndarray:
  """(tissues,) signed signals of a random patient after gadolinium, near the null of healthy myocardium."""
  t1, t2, density, partition = _tissues_of_patient(rng)
  t1 = post_contrast_t1(t1, partition, rng.uniform(*GADOLINIUM))
  ti = null_time(t1[MYOCARDIUM], INVERSION_TR) * (1 + rng.uniform(*TI_ERROR))
  return inversion_recovery_signal(t1, t2, density, ti=ti, tr=INVERSION_TR, te=INVERSION_TE)


def _tissues_of_patient(rng: np.random.Generator) -> np.ndarray:
  """(4, tissues) T1, T2, density and partition coefficient of a random patient."""
  tissues = TISSUES * np.exp(SPREAD * rng.normal(size=TISSUES.shape))
  tissues[:, VENOUS_BLOOD] = tissues[:, BLOOD] * TISSUES[:, VENOUS_BLOOD] / TISSUES[:, BLOOD]  # same blood
  return tissues
