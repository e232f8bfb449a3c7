#!/usr/bin/env bash
# Times a training step, an ablation grid, a prediction and the demo on a GPU, without a network.
#
#   experiments/gpu_measurements.sh OUTPUT [DIR]     # DIR: the MS-CMRSeg folder, for the time of a prediction
#
# It needs the extras `cuda` and `bench`. PYTHON names another Python than .venv/bin/python. Each measurement writes
# NAME.log and, at its end, NAME.seconds to the folder OUTPUT. The same command goes on after an interruption: it leaves
# out what has NAME.seconds. SMALL=1 tries the script on a CPU in some minutes, in the folder OUTPUT/small, with one
# round, no PyTorch and a short demo.
set -euo pipefail
output="$(realpath -m "${1:?give a folder for the results: experiments/gpu_measurements.sh OUTPUT [DIR]}")"
data="${2:+$(realpath -m "$2")}"
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
rounds=(--rounds=5 "--dtypes=float32,bfloat16" "--torch=eager,compiled")
demo=()
if [ -n "${SMALL:-}" ]; then
  output="$output/small"
  rounds=(--rounds=1)
  demo=(--config.train.steps=10)
else
  "$python" -c 'import jax, sys; sys.exit(jax.devices()[0].platform != "gpu" and "JAX finds no GPU")'
fi
mkdir -p "$output"
export XLA_PYTHON_CLIENT_MEM_FRACTION=.5 # PyTorch needs memory beside JAX
failed=0

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
    failed=1
    return
  fi
  awk -v start="$started" -v end="$(date +%s.%N)" 'BEGIN { printf "%.1f\n", end - start }' >"$output/$name.seconds"
}

benchmark() { # SECTION [FLAGS]
  measure "$1" "$python" -m experiments.benchmark --sections="$1" --output="$output/$1.json" "${@:2}"
}

# The most important ones first, in case the time ends.
benchmark steps "${rounds[@]}"
benchmark grid "${rounds[0]}"
if [ -n "$data" ]; then
  predict=("$python" -m vamcei_jax.predict --weights=weights/mscmrseg_student --input="$data/LGE")
  predict+=(--compiled="$output/compiled")
  if [ ! -e "$output/predict.seconds" ]; then rm -rf "$output/compiled"; fi # the first prediction compiles
  measure predict "${predict[@]}" --output="$output/masks"
  measure predict_compiled "${predict[@]}" --output="$output/masks_again"
fi
if [ ! -e "$output/demo.seconds" ]; then rm -rf "$output/demo"; fi # a resumed demo would be too fast
measure demo "$python" -m vamcei_jax.main --config=configs/uda.py --workdir="$output/demo" \
  --compiled="$output/compiled_demo" --config.data.prepared_dir="$output/data" "${demo[@]}"
benchmark alignment "${rounds[0]}"
benchmark dispatch "${rounds[0]}"
benchmark devices "${rounds[0]}"
benchmark profile "${rounds[@]:0:2}"

echo "Numbers: $output/*.json and *.seconds. Tables: $output/*.md."
exit "$failed"
