import math

import numpy as np
import pytest

from vamcei_jax.phantom.signal import (
  BLOOD,
  FAT,
  GADOLINIUM,
  INVERSION_TE,
  INVERSION_TR,
  LUNG,
  MYOCARDIUM,
  RELAXIVITY,
  SCAR,
  TI_ERROR,
  TISSUES,
  VENOUS_BLOOD,
  bssfp_signal,
  inversion_recovery_signal,
  null_time,
  post_contrast_t1,
  scan_bssfp,
)


def lge_signals(gadolinium, ti_error=0.0):
  t1, t2, density, partition = TISSUES
  t1, tr = post_contrast_t1(t1, partition, gadolinium), INVERSION_TR
  ti = null_time(t1[MYOCARDIUM], tr) * (1 + ti_error)
  return inversion_recovery_signal(t1, t2, density, ti=ti, tr=tr, te=INVERSION_TE)


def test_bssfp_at_90_degrees():
  t1, t2, tr = 1000.0, 80.0, 4.0
  e1, e2 = math.exp(-tr / t1), math.exp(-tr / t2)
  got = bssfp_signal(t1, t2, 0.7, flip=math.pi / 2, tr=tr, te=0.0)
  np.testing.assert_allclose(got, 0.7 * (1 - e1) / (1 - e1 * e2), rtol=1e-12)


def test_bssfp_of_short_repetition_depends_on_t1_over_t2_alone():
  flip = math.radians(50)
  limit = math.sin(flip) / (1 + math.cos(flip) + (1 - math.cos(flip)) * 12.5)
  np.testing.assert_allclose(bssfp_signal(1000, 80, 1, flip=flip, tr=1e-3, te=0), limit, rtol=1e-4)


def test_inversion_recovery_starts_inverted_and_recovers():
  signal = lambda ti: inversion_recovery_signal(500.0, 50.0, 0.8, ti=ti, tr=1e6, te=0.0)
  np.testing.assert_allclose([signal(0), signal(500 * math.log(2)), signal(1e5)], [-0.8, 0, 0.8], atol=1e-12)


@pytest.mark.parametrize("t1", [300.0, 500.0, 1000.0])
def test_nothing_is_left_at_the_null_time(t1):
  ti = null_time(t1, 1600.0)
  assert abs(inversion_recovery_signal(t1, 50.0, 1.0, ti=ti, tr=1600.0, te=3.0)) < 1e-12


def test_gadolinium_shortens_t1_by_its_relaxivity():
  rates = [1 / post_contrast_t1(1000.0, 0.5, c) for c in (0.0, 1.0)]
  np.testing.assert_allclose(rates, [1e-3, 1e-3 + RELAXIVITY / 2])


@pytest.mark.parametrize("gadolinium", GADOLINIUM)
def test_lge_shows_blood_and_scar_alike_and_bright_on_nulled_myocardium(gadolinium):
  signals = lge_signals(gadolinium)
  assert abs(signals[MYOCARDIUM]) < 1e-12
  assert abs(signals[SCAR] / signals[BLOOD] - 1) < 0.15
  assert signals[FAT] > signals[BLOOD] > 10 * abs(signals[LUNG])


@pytest.mark.parametrize("gadolinium", GADOLINIUM)
@pytest.mark.parametrize("ti_error", TI_ERROR)
def test_a_missed_null_leaves_myocardium_darker_than_blood_and_scar(gadolinium, ti_error):
  signals = np.abs(lge_signals(gadolinium, ti_error))
  assert 2 * signals[MYOCARDIUM] < min(signals[BLOOD], signals[SCAR])


def test_bssfp_shows_blood_brighter_than_myocardium_and_brightest_where_it_holds_oxygen():
  for seed in range(10):
    signals = scan_bssfp(np.random.default_rng(seed))
    assert signals[BLOOD] > signals[VENOUS_BLOOD] > 1.5 * signals[MYOCARDIUM] > 0
    assert signals[FAT] < 0
