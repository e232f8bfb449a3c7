import numpy as np

from vamcei_jax.phantom.anatomy import GRID, LV, MYO, draw_anatomy
from vamcei_jax.phantom.signal import BLOOD, MYOCARDIUM, SCAR


def test_scars_lie_in_the_wall_of_scarred_patients_only():
  for index in range(6):
    anatomy = draw_anatomy(np.random.default_rng(index), GRID, scarred=True)
    scar = (anatomy.tissues == SCAR) & (anatomy.classes > 0)
    assert (anatomy.classes[scar] == MYO).all()
    assert 0.01 < scar.sum() / (anatomy.classes == MYO).sum() < 0.6
    assert not (draw_anatomy(np.random.default_rng(index), GRID, scarred=False).tissues == SCAR).any()


def test_papillary_muscles_belong_to_the_cavity():
  anatomy = draw_anatomy(np.random.default_rng(0), GRID, scarred=False)
  cavity = anatomy.tissues[anatomy.classes == LV]
  assert set(np.unique(cavity)) == {BLOOD, MYOCARDIUM}
  assert 0.02 < (cavity == MYOCARDIUM).mean() < 0.3
