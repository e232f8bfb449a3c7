#!/bin/bash
# One run on one GPU. Submit it in the root of the repository:
#
#   DATA=DIR sbatch examples/slurm/one_gpu.sh [ARGUMENTS OF vamcei_jax.main]
#
# The same command resumes the run. With --requeue, SLURM queues a preempted job again, which resumes it too.
#SBATCH --job-name=vamcei
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -eu

# srun makes training a job step: SLURM sends SIGTERM to steps before it kills them. srun does not take the number of
# CPUs from sbatch.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  .venv/bin/python -m vamcei_jax.main --config="${CONFIG:-configs/vamcei_paper.py}" \
  --config.data.root="${DATA:?give the folder of the volumes: DATA=DIR sbatch ...}" \
  --workdir="runs/$SLURM_JOB_NAME" "$@"
