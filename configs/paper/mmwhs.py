"""The published networks and losses of VAMCEI on MM-WHS 2017, CT -> MR; see configs/vamcei_paper.py.

python -m vamcei_jax.main --config=configs/paper/mmwhs.py --config.data.root=DIR

The published code reads MS-CMRSeg alone. Here its recipe follows our stage "locate", and its steps are those of
MS-CMRSeg. We have not run it: we know neither its time nor its scores.
"""

from ml_collections import ConfigDict

from configs import mmwhs
from configs.paper.myops import published_on


def get_config() -> ConfigDict:
  return published_on(mmwhs.get_config())
