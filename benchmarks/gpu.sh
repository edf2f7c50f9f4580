#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, the repository as the working folder, and `make venv` done:
#
#   benchmarks/gpu.sh FOLDER
#
# In 9 minutes at most: the tests that only a GPU can run, then full, LoRA and QLoRA fine-tuning against TRL's. What is
# there when time is over stays: FOLDER/tests.log, and a baseline a model (see benchmarks/gpu.py), the smallest first.
set -u
folder=$1
mkdir -p "$folder"
ends_at=$((SECONDS + 540))
export PYTHONPATH=api:operator:cli:trainer_image:.${PYTHONPATH:+:$PYTHONPATH}
python=${PYTHON:-.venv/bin/python}

timeout 150 "$python" -m pytest -q tests/sft_trainer/model/test_on_gpu.py 2>&1 | tee "$folder/tests.log"
for model in Qwen3-0.6B Qwen3-1.7B Qwen3-4B; do
    left=$((ends_at - SECONDS))
    [ "$left" -gt 45 ] || break
    # Few steps: none waits for the host, so they differ little. The last turn has the time that is kept back.
    timeout "$left" "$python" -m benchmarks.gpu --models "$model" --rounds 1 --steps 5 --warmup 2 \
        --seconds $((left - 40)) --output "$folder/$model.json"
done
