#!/bin/bash
# A job array: one run for each seed, one GPU for each run. Submit it in the root of the repository:
#
#   DATA=DIR sbatch examples/slurm/seeds.sh [ARGUMENTS OF vamcei_jax.main]
#   DATA=DIR sbatch --array=3-9 examples/slurm/seeds.sh      # other seeds
#
# Prepare the data first (python -m vamcei_jax.prepare), so that the jobs find them. The same command resumes all runs.
#SBATCH --job-name=vamcei-seeds
#SBATCH --output=%x-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --array=0-2
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python -m vamcei_jax.main --config="${CONFIG:-configs/vamcei_paper.py}" \
  --config.data.root="${DATA:?give the folder of the volumes: DATA=DIR sbatch ...}" \
  --config.seed="$SLURM_ARRAY_TASK_ID" --workdir="runs/seed$SLURM_ARRAY_TASK_ID" "$@"
