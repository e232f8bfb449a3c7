#!/usr/bin/env bash
# Measures on a GPU what README.md and docs say about speed, in about ten minutes and without a network.
#
#   experiments/gpu_measurements.sh OUTPUT [DIR]     # DIR: the MS-CMRSeg folder, for the time of a prediction
#
# It needs the extras `cuda` and `bench`. Each measurement writes NAME.log and, at its end, NAME.seconds to the folder
# OUTPUT. The same command goes on after an interruption: it leaves out what has NAME.seconds. SMALL=1 tries the script
# on a CPU in some minutes, with one round, no PyTorch and a short demo.
set -euo pipefail
cd "$(dirname "$0")/.."
output="${1:?give a folder for the results: experiments/gpu_measurements.sh OUTPUT [DIR]}"
data="${2:-}"
mkdir -p "$output"
python="${PYTHON:-.venv/bin/python}"
rounds=(--rounds=5 "--dtypes=float32,bfloat16" "--torch=eager,compiled")
demo=()
if [ -n "${SMALL:-}" ]; then
  rounds=(--rounds=1)
  demo=(--config.train.steps=10)
fi

measure() { # NAME COMMAND: runs a command that has not finished before
  local name="$1" started
  shift
  if [ -e "$output/$name.seconds" ]; then
    echo "$name: done before"
    return
  fi
  echo "$name: $*"
  started=$(date +%s.%N)
  if ! "$@" >"$output/$name.log" 2>&1; then
    echo "$name failed; the end of $output/$name.log:" >&2
    tail -n 5 "$output/$name.log" >&2
    return
  fi
  awk -v start="$started" -v end="$(date +%s.%N)" 'BEGIN { printf "%.1f\n", end - start }' >"$output/$name.seconds"
}

benchmark() { # SECTION [FLAGS]
  measure "$1" "$python" -m experiments.benchmark --sections="$1" --output="$output/$1.json" "${@:2}"
}

# The most important ones first, in case the time ends.
benchmark steps "${rounds[@]}" --profile="$output/profile"
benchmark grid "${rounds[0]}"
if [ -n "$data" ]; then
  predict=("$python" -m vamcei_jax.predict --weights=weights/mscmrseg_student --input="$data/LGE")
  measure predict "${predict[@]}" --output="$output/masks"
  measure predict_compiled "${predict[@]}" --output="$output/masks_again" # the programs come from the cache
fi
measure demo "$python" -m vamcei_jax.main --config=configs/uda.py --workdir="$output/demo" "${demo[@]}"
benchmark alignment "${rounds[0]}"
benchmark dispatch "${rounds[0]}"
benchmark devices "${rounds[0]}"

echo "Numbers: $output/*.json and *.seconds. Tables: $output/*.md. Profile, for TensorBoard: $output/profile."
[ -e "$output/steps.seconds" ] && [ -e "$output/demo.seconds" ]
