"""What a run has to do: which stages it trains, resumes or skips, and which folders of earlier stages it discards."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from vamcei_jax.config.files import CONFIG_FILE, changed_field, read_stage_config
from vamcei_jax.config.schema import StageConfig
from vamcei_jax.errors import InputError
from vamcei_jax.pipeline.stages import LOCATOR, STAGES, needed_stages
from vamcei_jax.training.checkpoints import is_finished

Action = Literal["train", "resume", "skip"]


@dataclasses.dataclass(frozen=True)
class Folder:
  """What lies in the folder of a stage.

  exists: whether the folder exists.
  finished: whether it has the checkpoint of the last step.
  changed: the first field in which its configuration differs, as "FIELD was X, is Y"; None if none does.
  needs: the stages from which the network of a stage of an earlier run was made.
  """

  exists: bool = False
  finished: bool = False
  changed: str | None = None
  needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run has to do.

  actions: stage -> "train" from the start, "resume" from its newest checkpoint, or "skip" because it is finished.
  discard: stages whose folders are removed first; stages of an earlier run in the same workdir may be among them.
  """

  actions: Mapping[str, Action]
  discard: frozenset[str]

  @property
  def keeps_results(self) -> bool:
    """Whether the results of the workdir stay valid."""
    return not self.discard and set(self.actions.values()) == {"skip"}

  @property
  def starts_over(self) -> bool:
    """Whether nothing of an earlier run is used."""
    return set(self.actions) <= self.discard


def inspect_folders(configs: Mapping[str, StageConfig], workdir: Path) -> dict[str, Folder]:
  """What lies in the folder of each stage of a run, and of each stage that an earlier run left in its workdir."""
  folders = {
    stage: Folder(
      exists=(workdir / stage).exists(),
      finished=is_finished(workdir / stage / "checkpoints", config.train.steps),
      changed=changed_field(workdir / stage, config),
    )
    for stage, config in configs.items()
  }
  leftover = [stage for stage in STAGES if stage not in configs and (workdir / stage / CONFIG_FILE).exists()]
  return folders | {stage: Folder(True, needs=needed_stages(stage, _config_of(workdir / stage))) for stage in leftover}


def _config_of(folder: Path) -> StageConfig | None:
  """The configuration of a stage; None if it cannot be read."""
  try:
    return read_stage_config(folder)
  except InputError:
    return None


def make_plan(
  configs: Mapping[str, StageConfig], folders: Mapping[str, Folder], retrain: Collection[str], workdir: Path
) -> Plan:
  """Decides what a run has to do.

  Args:
    configs: of each stage, in order.
    folders: of inspect_folders.
    retrain: stages that the user wants to train from the start.
    workdir: of the run; errors name it, nothing in it is read.

  Raises:
    InputError: `retrain` names a stage that the run does not have, or a stage has another configuration and is not
      retrained.
  """
  if unknown := [stage for stage in retrain if stage not in configs]:
    raise InputError(f"--stages={unknown[0]}: not a stage of this run; choose from {', '.join(configs)}")
  unfinished = {stage for stage in configs if not folders[stage].finished}
  needs = {stage: folder.needs for stage, folder in folders.items()}
  needs |= {stage: needed_stages(stage, config) for stage, config in configs.items()}
  requested = dependent_stages(needs, retrain, retrain)
  discard = requested | dependent_stages(needs, retrain, unfinished)
  # All other stages depend on the field that the locator chooses.
  requested |= set(configs) if LOCATOR in retrain else set()
  discard |= requested | (set(configs) - {LOCATOR} if LOCATOR in unfinished else set())
  refuse_changes(configs, folders, requested, retrain, workdir)

  def action(stage: str) -> Action:
    if stage in discard or not folders[stage].exists:
      return "train"
    return "resume" if stage in unfinished else "skip"

  return Plan({stage: action(stage) for stage in configs}, frozenset(discard))


def dependent_stages(
  needs: Mapping[str, Collection[str]], stages: Collection[str], changing: Collection[str]
) -> set[str]:
  """The given stages, and all that need one of them or of the `changing` ones; `needs` maps a stage to its needs."""
  dependent = set(stages)
  for stage in STAGES:
    if (dependent | set(changing)) & set(needs.get(stage, ())):
      dependent.add(stage)
  return dependent


def refuse_changes(
  configs: Mapping[str, StageConfig],
  folders: Mapping[str, Folder],
  requested: Collection[str],
  retrain: Collection[str],
  workdir: Path,
) -> None:
  """Raises an InputError if a stage that is not retrained was started with another configuration.

  Args:
    configs, folders, retrain, workdir: as of make_plan.
    requested: the stages of `retrain` and all that need them.
  """
  changed = [stage for stage in configs if stage not in requested and folders[stage].changed]
  if changed:
    stages = ",".join(stage for stage in configs if stage in changed or stage in retrain)
    raise InputError(
      f"{workdir / changed[0]}: made with another configuration: {folders[changed[0]].changed}; "
      f"use another --workdir, or retrain what has changed: --stages={stages}"
    )


def remove_stages(workdir: Path, stages: Collection[str]) -> None:
  """Removes the folders of stages. They are renamed first, so that an interrupted removal leaves no partial stage."""
  for stage in stages:
    removed = workdir / f".{stage}.removed"
    shutil.rmtree(removed, ignore_errors=True)
    if (workdir / stage).exists():
      shutil.rmtree((workdir / stage).rename(removed))
