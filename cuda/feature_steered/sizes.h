/* Sizes, workspace and checks that both passes of feature-steered convolution on the CPU share. */
#ifndef EQC_FEATURE_STEERED_SIZES_H
#define EQC_FEATURE_STEERED_SIZES_H

#include "../common/arena.h"
#include "feature_steered.h"

namespace eqc {
inline namespace EQC_ISA {
namespace {

using Arguments = eqc_feature_steered;

/* Edges are taken in groups of eight: one lane an edge. */
constexpr int group = 8;
constexpr int64_t block_rows = 1024;

template <class T>
struct Sizes {
    int64_t M, C, D, K; /* K = M * C */
    int64_t Ms;         /* M in whole groups */
    int64_t Zs;         /* step of the rows of z; no power of two, which would share one set of the cache */
    int64_t tile;       /* rows whose z take 288 KiB at most */
    int64_t batch;      /* groups of edges whose weights and neighbours take 32 KiB */

    explicit Sizes(const Arguments& a)
        : M(a.matrices),
          C(a.channels),
          D(a.outputs),
          K(a.matrices * a.channels),
          Ms(padded(a.matrices, group)),
          Zs(padded(K, 16) + 16),
          batch(32768 / int64_t(sizeof(T)) / ((Ms + C) * group)) {
        batch = batch < 4 ? 4 : batch;
        tile = 288 * 1024 / int64_t(sizeof(T)) / Zs;
        tile = tile >= 64 ? 64 : tile >= 32 ? 32 : tile >= 16 ? 16 : 8;
    }
};

/* Some edges of a row, in whole groups. */
struct Span {
    int64_t row, slot, count;
    int64_t place; /* its first group in the batch */
    bool first;    /* of the row */
};

/* Calls body(spans, count) for the edges of rows [start, start + rows), in batches; `spans` has room for n.batch. What
 * is done for a batch is done span by span, so that the latency of one hides behind the next. */
template <class T, class Body>
EQC_INLINE void for_batches(const Arguments& a, const Sizes<T>& n, int64_t start, int64_t rows, Span* spans,
                            const Body& body) {
    int64_t count = 0, used = 0;
    for (int64_t i = start; i < start + rows; ++i)
        for (int64_t e = a.rowptr[i]; e < a.rowptr[i + 1]; e += n.batch * group) {
            const int64_t edges = smaller(n.batch * group, a.rowptr[i + 1] - e), groups = (edges + group - 1) / group;
            if (used + groups > n.batch) {
                body(spans, count);
                count = used = 0;
            }
            spans[count++] = {i, e, edges, used, e == a.rowptr[i]};
            used += groups;
        }
    if (count) body(spans, count);
}

inline bool wrong(const Arguments* a) {
    if (!a || a->rows < 0 || a->cols < 0 || a->edges < 0 || a->given_edges < a->edges || a->channels < 0 ||
        a->outputs < 0 || a->matrices < 1 || a->chunks < 0 || a->threads < 0)
        return true;
    const bool edges = a->edges > 0;
    if (!a->rowptr || !a->chunk_rows || !a->u || !a->v || !a->c || !a->w) return true;
    if (edges && (!a->col || !a->values)) return true;
    return (a->cols > 0 && a->channels > 0 && !a->x) || (a->rows > 0 && a->channels > 0 && !a->centre);
}

}  // namespace
}  // namespace EQC_ISA
}  // namespace eqc

#endif
