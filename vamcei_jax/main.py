"""Trains all networks (stages) of a configuration, and writes the run to a workdir.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda
python -m vamcei_jax.main --config=configs/uda.py --print_config
python -m vamcei_jax.main --reproduce=runs/uda

The same command resumes an interrupted run. A run uses all devices of the host. To use several hosts, give each host
the same command with --multihost, or with --coordinator, --hosts and --host.

--reproduce trains a run again from its run.json, and compares the parameters of both runs. If any bit differs, the exit
code is 1.
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import cli
from vamcei_jax.errors import InputError
from vamcei_jax.usage import ONE_OF, group

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags."""
  with group(ONE_OF):
    config_flags.DEFINE_config_file(
      "config", None, "FILE: Configuration of the run. --config.FIELD=VALUE changes a field."
    )
    flags.DEFINE_string("reproduce", None, "DIR: Folder of a finished run; trains the run again, and compares both.")
  with group("run"):
    flags.DEFINE_string("workdir", None, "DIR: Folder of the run. Default: runs/NAME (of NAME.py), or RUN-again.")
    flags.DEFINE_list("stages", [], "NAME,NAME: Stages to train again, and all that depend on them. Default: none.")
    flags.DEFINE_bool("print_config", False, "Print the configuration of each stage with all defaults, and exit.")
    flags.DEFINE_bool("describe", False, "Print networks, parameters, loss terms and schedule of each stage, and exit.")
  with group("several hosts"):
    flags.DEFINE_bool("multihost", False, "Train with the other hosts of a TPU pod, SLURM, Open MPI or GKE job.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT: Address of the first host, on other clusters.")
    flags.DEFINE_integer("hosts", None, "N: With --coordinator: number of hosts.", 1)
    flags.DEFINE_integer("host", None, "N: With --coordinator: number of this host, from 0.", 0)


def main() -> None:
  """Runs the command."""
  if (FLAGS.hosts is not None or FLAGS.host is not None) and not FLAGS.coordinator:
    raise InputError("--hosts and --host go with --coordinator=HOST:PORT")
  if FLAGS.config is None and (FLAGS.describe or FLAGS.print_config):
    raise InputError("--describe and --print_config go with --config=FILE")
  name = cli.config_path().stem if FLAGS.config is not None else None
  workdir = cli.path_of("workdir")
  # Imported late: an error in a flag should not wait for JAX.
  from vamcei_jax.pipeline.describe import describe
  from vamcei_jax.pipeline.reproduce import reproduce
  from vamcei_jax.pipeline.resolve import format_config, resolve
  from vamcei_jax.pipeline.run import run

  if FLAGS.describe:
    print(describe(resolve(FLAGS.config)))
    return
  if FLAGS.print_config:
    print(format_config(resolve(FLAGS.config)))
    return
  if FLAGS.multihost or FLAGS.coordinator:
    _join_hosts()
  if name:
    run(FLAGS.config, workdir or Path("runs") / name, FLAGS.stages, on_start=_hint_huge_pages)
  else:
    origin = cli.required_path("reproduce")
    if not reproduce(origin, workdir or Path(f"{os.path.abspath(origin)}-again"), FLAGS.stages):
      sys.exit(1)


def _hint_huge_pages(record: dict) -> None:
  if record["sessions"][-1]["devices"]["platform"] == "cpu":
    cli.hint_huge_pages()


def _join_hosts() -> None:
  from vamcei_jax import distributed

  distributed.join_hosts(FLAGS.coordinator, FLAGS.hosts, FLAGS.host)
  if not distributed.is_first_host():
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the first host prints
  # The first common computation connects the hosts, and would time out on one that prepares data meanwhile.
  distributed.wait_for_hosts("joined")


def command() -> None:
  """Entry point of `vamcei-train`."""
  cli.run(define_flags, main, __doc__)


if __name__ == "__main__":
  command()
