/* The workspace of an operation, cut into pieces. */
#ifndef EQC_ARENA_H
#define EQC_ARENA_H

#include "simd.h"

namespace eqc {
inline namespace EQC_ISA {

EQC_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
EQC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Hands out pieces of the workspace; with a null base it only adds up their sizes. */
class Arena {
   public:
    explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
    template <class T>
    T* take(int64_t count) {
        char* piece = base_ ? base_ + used_ : nullptr;
        used_ += size_t(padded(count * int64_t(sizeof(T)), 64));
        return reinterpret_cast<T*>(piece);
    }
    size_t used() const { return used_; }

   private:
    char* base_;
    size_t used_ = 0;
};

}  // namespace EQC_ISA
}  // namespace eqc

#endif
