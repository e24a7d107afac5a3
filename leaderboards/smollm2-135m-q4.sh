#!/usr/bin/env bash
# The measurements on smollm2-135m-q4: SmolLM2-135M-Instruct, 4-bit weights (Q4_1) dequantised to float32.
# Each command goes on where it was cut. `make smollm2` first; TEXTS is a folder of long texts for probe and nll.
#   leaderboards/smollm2-135m-q4.sh ruler-1k | ruler-1k-chat | ruler-4k | probe | nll-LENGTH
set -eu
cd "$(dirname "$0")/.."
OUTPUT=${OUTPUT:-runs/smollm2} TEXTS=${TEXTS:-../shared/data/addresses}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
ANCHOREVAL=${ANCHOREVAL:-.venv/bin/anchoreval}
SHIFTS=0,2,4,6,8,10,12,14,15,17,18,20,22,50,100,200,500,1000,2000,16  # of the paper's Figure 1, the last against all
LEVELS=native,fp32-qk,fp32,bf16-table,bf16,bf16-angle

ruler() {
    "$ANCHOREVAL" run --model smollm2-135m-q4 --tasks ruler --haystack generated --limit 10 --rope fp32,bf16,bf16-angle \
        --placebo --output "$OUTPUT" "$@"
}

case ${1:?what is to be measured} in
    ruler-1k) ruler --lengths 1024 ;;
    ruler-1k-chat) ruler --lengths 1024 --template chat ;;
    ruler-4k) ruler --lengths 4096 ;;
    probe)
        "$ANCHOREVAL" probe --model smollm2-135m-q4 --dtype float32 --levels "$LEVELS" --lengths 64..8192 \
            --texts 20,5@4096 --curve-length 512 --shift "$SHIFTS" --text "$TEXTS" --output "$OUTPUT/probe"
        ;;
    nll-*)
        "$ANCHOREVAL" nll --model smollm2-135m-q4 --text "$TEXTS" --lengths "${1#nll-}" --limit 1 \
            --arms fp32,bf16-table,bf16,bf16-angle,fp32+shift:16,fp32~placebo --output "$OUTPUT/$1"
        ;;
    *) echo "nothing is called $1 here" >&2; exit 2 ;;
esac
