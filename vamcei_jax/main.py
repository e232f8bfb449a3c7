"""The command line: one config, one workdir, one run.

python -m vamcei_jax.main --config=configs/uda.py --workdir=runs/uda

The same command resumes a run that was interrupted.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from vamcei_jax import command_line

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.FIELD=VALUE changes a field.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/ and the config's name.")
_STAGES = flags.DEFINE_list("stages", [], "Stages to train anew; leave it out to resume them.")
flags.mark_flag_as_required("config")


def main() -> None:
  # Imported here: a mistyped flag should not wait for JAX.
  from vamcei_jax import pipeline

  path = command_line.config_path()
  pipeline.run(_CONFIG.value, Path(_WORKDIR.value or Path("runs") / path.stem), _STAGES.value)


if __name__ == "__main__":
  command_line.run(main)
