"""The command line: one config, one workdir, one run.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda
python -m vamcei_jax.main --reproduce=runs/uda

The same command resumes a run that was interrupted. The second one makes a run again, from its run.json, and compares:
exit code 1 if the parameters are not the same bit for bit. It uses all devices; with --multihost, or --coordinator and
its companions, those of all hosts of a job, each of which is given the same command.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import command_line
from vamcei_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.FIELD=VALUE changes a field.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; by default runs/ and the config's name, or with --reproduce=RUN, RUN-again."
)
_REPRODUCE = flags.DEFINE_string("reproduce", None, "Workdir of a finished run that is made again and compared.")
_STAGES = flags.DEFINE_list("stages", [], "Stages to train anew; leave it out to resume them.")
_MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts, as TPU pods, SLURM, Open MPI and GKE tell.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several hosts, where nothing tells.")
_HOSTS = flags.DEFINE_integer("hosts", None, "With --coordinator: how many hosts there are.", 1)
_HOST = flags.DEFINE_integer("host", None, "With --coordinator: which one this is, from 0.", 0)


def main() -> None:
  if (_CONFIG.value is None) == (_REPRODUCE.value is None):
    raise InputError("give either --config=FILE, for a run, or --reproduce=RUN, to make a run again")
  # Imported here: a mistyped flag should not wait for JAX.
  from vamcei_jax import parallel, pipeline
  from vamcei_jax.reproduce import reproduce

  if (_HOSTS.value is not None or _HOST.value is not None) and not _COORDINATOR.value:
    raise InputError("--hosts and --host go with --coordinator=HOST:PORT")
  name = command_line.config_path().stem if _CONFIG.value else None
  if _MULTIHOST.value or _COORDINATOR.value:
    parallel.join_hosts(_COORDINATOR.value, _HOSTS.value, _HOST.value)
    if not parallel.is_first_host():
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first one tells
    # The hosts' first common computation connects them, and does not wait long for one that prepares data meanwhile.
    parallel.wait_for_hosts("joined")
  if name:
    pipeline.run(_CONFIG.value, Path(_WORKDIR.value or Path("runs") / name), _STAGES.value)
  else:
    workdir = _WORKDIR.value or f"{os.path.abspath(_REPRODUCE.value)}-again"
    if not reproduce(Path(_REPRODUCE.value), Path(workdir), _STAGES.value):
      sys.exit(1)


if __name__ == "__main__":
  command_line.run(main)
