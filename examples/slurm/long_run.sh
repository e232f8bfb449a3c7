#!/bin/bash
# One run that is longer than the time limit of a job: the job is queued again until the run ends. Submit it in the root
# of the repository:
#
#   DATA=DIR sbatch examples/slurm/long_run.sh [ARGUMENTS OF vamcei_jax.main]
#
# --signal sends SIGTERM to the training, but not to this script, 120 s (up to 180 s) before the time is up. Training
# saves its state, says so and ends with exit code 143 (128 + SIGTERM). The script then queues the job again, which
# resumes the run. `scancel JOB` ends the script too, so a cancelled job stays cancelled.
#SBATCH --job-name=vamcei-long
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=01:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -eu

status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python -m vamcei_jax.main --config="${CONFIG:-configs/vamcei_paper.py}" \
  --config.data.root="${DATA:?give the folder of the volumes: DATA=DIR sbatch ...}" \
  --workdir="runs/$SLURM_JOB_NAME" "$@" || status=$?
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
