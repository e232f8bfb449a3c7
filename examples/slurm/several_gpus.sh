#!/bin/bash
# One run on several GPUs of one node: one process uses them all. Submit it in the root of the repository:
#
#   DATA=DIR sbatch examples/slurm/several_gpus.sh [ARGUMENTS OF vamcei_jax.main]
#
# Each batch is split over the GPUs. So its size (config.train.batch_size) must be a multiple of their number: of the
# four images of configs/vamcei_paper.py, each of four GPUs gets one. The same command resumes the run.
#SBATCH --job-name=vamcei-gpus
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu

srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python -m vamcei_jax.main --config="${CONFIG:-configs/vamcei_paper.py}" \
  --config.data.root="${DATA:?give the folder of the volumes: DATA=DIR sbatch ...}" \
  --workdir="runs/$SLURM_JOB_NAME" "$@"
