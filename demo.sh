#!/usr/bin/env bash
# From radiographs to a submission and a report, in one command. Safe to interrupt: run it again to resume.
# The demo ends with a model bundle (OUTPUT/ica_resunet.zip) that predicts the test images (OUTPUT-findings/).
#
#   ./demo.sh       on built-in demo data, about six minutes on two CPU cores
#   INPUT=siim OUTPUT=results PATIENTS=patients.csv CONFIGS='configs/ica_resunet.yaml' ./demo.sh    on your data
#
# One run per config, all compared in one report. Also read from the environment:
#   FOLDS=3                                  number of folds
#   SIZE=512                                 height and width of the cached images
#   LAYOUT=siim-png                          how the data are laid out, if looking is not enough
#   HOLDOUT=test.csv                         labelled images to test on (column ImageId)
#   SETTINGS='image_size=128 epochs=30'      changes these settings in every config
#   DEVICE=cuda:1                            where to compute (the demo data: cpu; otherwise auto)
#   PYTHON=python3.12                        the interpreter for a new .venv
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./environment.sh
make_environment requirements.txt

from_here() { case $1 in /*) echo "$1" ;; *) echo "$here/$1" ;; esac; }  # relative to the caller's folder
output=output
[ -z "${OUTPUT:-}" ] || output=$(from_here "$OUTPUT")
[ -z "${PATIENTS:-}" ] || PATIENTS=$(from_here "$PATIENTS")
[ -z "${HOLDOUT:-}" ] || HOLDOUT=$(from_here "$HOLDOUT")
device=${DEVICE:-auto}
configs=${CONFIGS:-configs/demo/ica_resunet.yaml}
changes=()
for setting in ${SETTINGS:-}; do changes+=(--set "$setting"); done

if [ -n "${INPUT:-}" ]; then
    input=$(from_here "$INPUT")
elif [ -z "$(find input -mindepth 1 -maxdepth 1 ! -name '.*' ! -name demo -print -quit)" ]; then
    input=input/demo device=${DEVICE:-cpu}
    [ -e "$input" ] || python -m pneumothorax.phantom --to "$input"
    [ -n "${PATIENTS:-}" ] || [ ! -f "$input/patients.csv" ] || PATIENTS=$input/patients.csv
elif [ -e input/demo ]; then
    echo "error: input/ holds the demo data and other files: remove input/demo, or choose a folder with INPUT=" >&2
    exit 3
else
    input=input
fi

python 00_prepare_data.py --input "$input" --output "$output" --size "${SIZE:-512}" \
    ${LAYOUT:+--layout "$LAYOUT"} ${HOLDOUT:+--holdout "$HOLDOUT"}
python 01_make_folds.py --output "$output" --folds "${FOLDS:-3}" ${PATIENTS:+--patients "$PATIENTS"}
names=
for config in $configs; do
    run=$(basename "$config" .yaml)
    [ ! -e "$(from_here "$config")" ] || config=$(from_here "$config")
    python 02_train.py --config "$config" --run "$run" --output "$output" --device "$device" \
        ${changes[@]+"${changes[@]}"}
    python 03_predict.py --run "$run" --output "$output" --device "${device%%,*}"
    python 04_submit.py --run "$run" --output "$output"
    names=${names:+$names,}$run
done
python 05_report.py --names "$names" --output "$output"

if [ -z "${CONFIGS:-}" ] && [ -f "$input/phantoms.txt" ] && [ -d "$input/stage_2_images" ]; then
    make_environment requirements-extra.txt  # ONNX
    python export_model.py --run "$run" --output "$output" --bundle "$output/$run.zip"
    python predict_radiographs.py "$input/stage_2_images" --model "$output/$run.zip" --to "${output%/}-findings"
fi
