#!/usr/bin/env bash
# The measurements on smollm2-135m-q4: SmolLM2-135M-Instruct, 4-bit weights (Q4_1) dequantised to float32.
# Each command goes on where it was cut. `make smollm2` first. TEXTS is a folder of long texts for probe and nll:
# inaugural addresses and state-of-the-union speeches, public domain, named as in NLTK's `inaugural`, `state_union`;
# their SHA-256 stand in every nll.json. OUTPUT may be leaderboards/results itself, where the committed ones go on.
#
#   leaderboards/smollm2-135m-q4.sh probe | probe-bf16                      # Figures 1 and 7 of the paper, per layer
#   leaderboards/smollm2-135m-q4.sh nll-8192 | nll-2048 | nll-1024 | nll-1024-bf16
#   leaderboards/smollm2-135m-q4.sh ruler-1k | ruler-1k-chat | ruler-4k | ruler-1k-bf16 | niah
#   leaderboards/smollm2-135m-q4.sh documents-1k | documents-4k             # masked attention, tasks with documents
#   leaderboards/smollm2-135m-q4.sh comparators-1k                          # beside others' masks
#   leaderboards/smollm2-135m-q4.sh gather                                  # OUTPUT -> leaderboards/results, lean
#   leaderboards/smollm2-135m-q4.sh cells                                   # one cell of each table, again
set -eu
cd "$(dirname "$0")/.."
OUTPUT=${OUTPUT:-runs/smollm2} TEXTS=${TEXTS:-../shared/data/addresses} LIMIT=${LIMIT:-10}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
BIN=${BIN:-.venv/bin} MODEL=smollm2-135m-q4
SHIFTS=0,2,4,6,8,10,12,14,15,17,18,20,22,50,100,200,500,1000,2000,16  # of the paper's Figure 1, the last against all
LEVELS=native,fp32-qk,fp32,bf16-table,bf16,bf16-angle
DOCUMENTS=ruler/niah_single_1,ruler/niah_multikey_2,ruler/niah_multikey_3,ruler/vt,ruler/cwe,ruler/qa_1,ruler/qa_2  # several each

run() {
    "$BIN/anchoreval" run --model "$MODEL" --haystack generated --limit "$LIMIT" --chunk-tokens 512 \
        --output "$OUTPUT" "$@"
}

ruler() {
    run --tasks ruler --arms fp32,bf16,bf16-angle --placebo "$@"
}

documents() {
    run --tasks "$DOCUMENTS" --arms fp32,anchor/fp32,intra-doc/fp32 --placebo "$@"
}

probe() {
    "$BIN/anchoreval" probe --model "$MODEL" --lengths "${LENGTHS:-64..8192}" --texts "${COUNTS:-20,5@4096}" \
        --curve-length "${CURVE:-512}" --shift "$SHIFTS" --text "$TEXTS" "$@"
}

nll() {
    "$BIN/anchoreval" nll --model "$MODEL" --text "$TEXTS" --limit 1 \
        --arms fp32,bf16-table,bf16,bf16-angle,fp32+shift:16,fp32~placebo "$@"
}

case ${1:?what is to be measured} in
    probe) probe --dtype float32 --levels "$LEVELS" --output "$OUTPUT/$MODEL/probe-float32" ;;
    probe-bf16)
        probe --dtype bfloat16 --no-copy --levels native,fp32,fp32-qk --output "$OUTPUT/$MODEL/probe-bfloat16"
        ;;
    nll-1024-bf16) nll --lengths 1024 --dtype bfloat16 --output "$OUTPUT/$MODEL/nll-1024-bfloat16" ;;
    nll-*) nll --lengths "${1#nll-}" --output "$OUTPUT/$MODEL/$1" ;;
    ruler-1k) ruler --lengths 1024 ;;
    ruler-1k-chat) ruler --lengths 1024 --template chat ;;
    ruler-4k) ruler --lengths 4096 ;;
    ruler-1k-bf16) ruler --lengths 1024 --dtype bfloat16 ;;
    niah) run --tasks niah --lengths 1k..8k --arms fp32,bf16 ;;
    documents-1k) documents --lengths 1024 ;;
    documents-4k) documents --lengths 4096 ;;
    comparators-1k) # not in OUTPUT, so that gather leaves it alone: a run of comparators lies in results/comparators/
        OUTPUT=$OUTPUT-comparators
        run --tasks "$DOCUMENTS" --lengths 1024 --placebo \
            --arms fp32,intra-doc/fp32,anchor/fp32,star:256/fp32,sink-window:4:256/fp32,sink-window:0:256/fp32
        ;;
    cells) EVERY_CELL=1 "$BIN/python" -m pytest -q -rs tests/test_reproduced.py ;;
    gather) PYTHONPATH=tests "$BIN/python" -m findings.gather "$OUTPUT" ;;
    *) echo "nothing is called $1 here" >&2; exit 2 ;;
esac
