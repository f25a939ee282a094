#!/bin/sh
# Every row of the comparison of spatially sparse convolution, one after the other, on THREADS pinned threads (1): JSON
# and CSV in the folder given. Takes about a quarter of an hour on a 2-core machine; nothing else should run.
#
#   benchmarks/run_block_sparse.sh FOLDER
set -eu

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
folder=$1
rounds=${ROUNDS-9}
threads=${THREADS-1}
eqconv=${EQCONV-eqconv}
mkdir -p "$folder"

# run NAME TEST ARGUMENTS...: one command, whose report is NAME.json and NAME.csv. A row that fails is in the report.
run() {
    name=$1
    test=$2
    shift 2
    echo "== $name" >&2
    $eqconv bench block_sparse --test "$test" --arch resnet-v2 --forward --no-memory --threads "$threads" \
        --rounds "$rounds" --json "$folder/$name.json" --csv "$folder/$name.csv" "$@" || echo "$name: exit code $?" >&2
}

# The compiled kernels into an output that is there already and into a new one, and what there is without them.
kernels='fused+out@torch'
fresh='fused@torch'
dense='conv2d@torch'
blocks='index_blocks@torch'

for mask in topleft blobs noise; do
    run "conv-$mask" conv --mask "$mask" --sparsity 0.9 \
        --only "$kernels" --only "$fresh" --only "$dense" --only "$blocks" --only 'fused@tensorflow' --only 'fused@numpy'
done
# Almost everything is active; the pixels are found in the mask every time.
run conv-full conv --mask blobs --sparsity 0,0.05,0.1 --include-reduce --only "$kernels" --only "$fresh" --only "$dense"

for mask in topleft blobs; do
    run "res-$mask" res --mask "$mask" --sparsity 0.9 \
        --only "$kernels" --only "$fresh" --only "$dense" --only 'conv2d+folded@torch' --only "$blocks"
done

# spconv's CPU kernels are right on one thread only.
for mask in blobs noise; do
    run "subm-$mask" subm --mask "$mask" --sparsity 0.9,0.99 --only "$fresh" --only 'spconv@torch' --only "$dense"
done

run operators ops --sparsity 0.9 \
    --only 'fused*@torch' --only 'pool@torch' --only 'index_select@torch' --only 'index_copy*@torch'
run sweep conv --mask blobs --sparsity 0.5:0.99 --only "$kernels" --only "$dense" --only "$blocks" \
    --plot "$folder/sweep.png"
