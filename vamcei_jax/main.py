"""The command line: one config, one workdir, one run.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

The same command resumes a run that was interrupted. It uses all devices; with --multihost, or --coordinator and its
companions, those of all hosts of a job, each of which is given the same command.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.FIELD=VALUE changes a field.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the config's name.")
_STAGES = flags.DEFINE_list("stages", [], "Stages to train anew; leave it out to resume them.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts, as TPU pods, SLURM, Open MPI and GKE tell.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several hosts, where nothing tells.")
_HOSTS = flags.DEFINE_integer("hosts", None, "With --coordinator: how many hosts there are.", 1)
_HOST = flags.DEFINE_integer("host", None, "With --coordinator: which one this is, from 0.", 0)
flags.mark_flag_as_required("config")


def main() -> None:
  # Imported here: a mistyped flag should not wait for JAX.
  from vamcei_jax import parallel, pipeline

  path = command_line.config_path()
  if _MULTIHOST.value or _COORDINATOR.value:
    parallel.join_hosts(_COORDINATOR.value, _HOSTS.value, _HOST.value)
    if not parallel.is_first_host():
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first one tells
  pipeline.run(_CONFIG.value, Path(_WORKDIR.value or Path("runs") / path.stem), _STAGES.value)


if __name__ == "__main__":
  command_line.run(main)
