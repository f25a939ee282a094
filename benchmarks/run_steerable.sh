#!/bin/sh
# Every row of the comparison of steerable convolution, one after the other, on THREADS pinned threads (2): JSON and CSV
# in the folder given. Takes about ten minutes on a 2-core machine; nothing else should run. e2cnn is a peer:
#   pip install --no-deps e2cnn==0.2.3
#
#   benchmarks/run_steerable.sh FOLDER
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder=$1
rounds=${ROUNDS-15}
threads=${THREADS-2}
eqconv=${EQCONV-eqconv}
python=${PYTHON-python}
mkdir -p "$folder"

# run NAME ARGUMENTS...: one command, whose report is NAME.json and NAME.csv. A row that fails is in the report.
run() {
    name=$1
    shift
    echo "== $name" >&2
    $eqconv bench steerable --no-memory --threads "$threads" --rounds "$rounds" \
        --json "$folder/$name.json" --csv "$folder/$name.csv" "$@" || echo "$name: exit code $?" >&2
}

dense='dense@torch'
peer='e2cnn@torch'
kernels='fused_orbit@torch'

run expansion --problem c8-regular-k5 --problem d8-regular-k5 --problem so2-irreps-k5 \
    --only "$dense" --only "$peer" --only "$kernels" --only 'fused@torch' --only 'fused_direct@torch' \
    --only 'harmonic@torch' --only 'fused_orbit@tensorflow' --only 'fused_orbit@numpy'
run expansion-8 --problem c16-regular-k9 --problem so2-irreps-k5 --set fields=8 \
    --only "$dense" --only "$peer" --only "$kernels" --only 'fused@torch' --only 'harmonic@torch'

for fields in 8 16 32 64; do
    run "grid-$fields" --forward --rounds 7 --set "fields=$fields" \
        --problem 'c4-regular-k?' --problem 'c8-regular-k?' --problem 'd4-regular-k?' --problem 'd8-regular-k?' \
        --only "$dense" --only "$peer" --only "$kernels"
done

# Layers of a wide residual network, against the convolution by a filter that is there already.
run layers --forward --problem 'layer-wrn-*' --set batch=8 --only 'conv2d@torch' --only "$kernels" --only "$dense"

# What comes before the first call: building, initialising, and what is kept.
echo "== construction" >&2
$python "$(dirname "$0")/steerable_construction.py" --threads "$threads" --rounds "$rounds" --json "$folder/construction.json"
