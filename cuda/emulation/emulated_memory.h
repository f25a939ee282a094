/* Pointers that look at every access: to shared memory (bounds, races, reads of what no thread of the block wrote) and
 * to global memory (bounds, reads of what is marked as unwritten). Under nvcc they are plain pointers, so kernels may
 * use of them what a plain pointer has too: [], *, arithmetic, comparison, conversion to a pointer to const. */
#ifndef EQC_EMULATED_MEMORY_H
#define EQC_EMULATED_MEMORY_H

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace eqc_emulation {

enum class Access { Read, Write, Atomic };

/* A shared array of the running block. Where `watched` is false only the bounds are checked. */
struct SharedRegion {
    const void* site;  // tells the arrays of a kernel apart
    const char* name;
    char* begin;
    size_t bytes;
    bool watched;
};

/* Memory given to eqc_mark_unwritten; written[i] tells whether byte i has been written since. */
struct Unwritten;

/* In memory.cpp. Where a check finds a fault, the calling thread and its grid end there. */
void check_shared(const SharedRegion& region, const void* at, size_t bytes, Access access, const void* value,
                  size_t element);
void check_global(const char* begin, size_t extent, Unwritten* unwritten, const void* at, size_t bytes, Access access,
                  size_t element);
[[noreturn]] void misaligned(const void* at, size_t alignment);
const SharedRegion* dynamic_region(size_t byte_offset, size_t alignment);
const SharedRegion* static_region(const void* site, const char* name, size_t bytes, size_t alignment);
const SharedRegion* plain_region(const void* array, size_t bytes);
Unwritten* find_unwritten(const void* begin, size_t bytes);

inline void check_aligned(const void* at, size_t alignment) {
    if (reinterpret_cast<uintptr_t>(at) % alignment != 0) {
        misaligned(at, alignment);
    }
}

struct SharedSpace {
    const SharedRegion* region = nullptr;
    void check(const void* at, size_t bytes, Access access, const void* value, size_t element) const {
        static const SharedRegion nowhere = {"", "NULL", nullptr, 0, false};
        check_shared(region == nullptr ? nowhere : *region, at, bytes, access, value, element);
    }
};

struct GlobalSpace {
    const char* begin = nullptr;
    size_t extent = 0;
    Unwritten* unwritten = nullptr;
    void check(const void* at, size_t bytes, Access access, const void*, size_t element) const {
        /* Inline, because nearly all accesses are within bounds of memory that nobody marked. */
        const size_t offset = size_t(static_cast<const char*>(at) - begin);
        if (offset > extent || bytes > extent - offset || unwritten != nullptr) {
            check_global(begin, extent, unwritten, at, bytes, access, element);
        }
    }
};

template <class T, class Space>
class Pointer;

/* What p[i] and *p are: reads when it is used as a T, writes when it is assigned to. */
template <class T, class Space>
class Reference {
    using Value = std::remove_cv_t<T>;

   public:
    explicit Reference(const Pointer<T, Space>& pointer) : pointer_(pointer) {}
    Reference(const Reference&) = default;

    operator Value() const { return pointer_.template read<Value>(); }
    Pointer<T, Space> operator&() const { return pointer_; }
    const Reference& operator=(const Value& value) const {
        static_assert(!std::is_const_v<T>, "an element that is not const");
        pointer_.template write<Value>(value);
        return *this;
    }
    const Reference& operator=(const Reference& other) const { return *this = Value(other); }
    template <class U>
    const Reference& operator+=(const U& other) const {
        return *this = Value(Value(*this) + other);
    }
    template <class U>
    const Reference& operator-=(const U& other) const {
        return *this = Value(Value(*this) - other);
    }
    template <class U>
    const Reference& operator*=(const U& other) const {
        return *this = Value(Value(*this) * other);
    }
    template <class U>
    const Reference& operator/=(const U& other) const {
        return *this = Value(Value(*this) / other);
    }
    template <class U>
    const Reference& operator%=(const U& other) const {
        return *this = Value(Value(*this) % other);
    }
    template <class U>
    const Reference& operator&=(const U& other) const {
        return *this = Value(Value(*this) & other);
    }
    template <class U>
    const Reference& operator|=(const U& other) const {
        return *this = Value(Value(*this) | other);
    }
    template <class U>
    const Reference& operator^=(const U& other) const {
        return *this = Value(Value(*this) ^ other);
    }
    template <class U>
    const Reference& operator<<=(const U& other) const {
        return *this = Value(Value(*this) << other);
    }
    template <class U>
    const Reference& operator>>=(const U& other) const {
        return *this = Value(Value(*this) >> other);
    }
    const Reference& operator++() const { return *this += 1; }
    const Reference& operator--() const { return *this -= 1; }
    Value operator++(int) const {
        const Value before = *this;
        *this += 1;
        return before;
    }
    Value operator--(int) const {
        const Value before = *this;
        *this -= 1;
        return before;
    }

   private:
    Pointer<T, Space> pointer_;
};

template <class T, class Space>
class Pointer {
   public:
    using element_type = T;

    Pointer(std::nullptr_t = nullptr) {}
    Pointer(T* at, Space space) : at_(at), space_(space) {}
    Pointer(const Pointer&) = default;
    Pointer& operator=(const Pointer&) = default;
    template <class U, std::enable_if_t<std::is_same_v<const U, T> && !std::is_const_v<U>, int> = 0>
    Pointer(const Pointer<U, Space>& other) : at_(other.raw()), space_(other.space()) {}
    /* A plain array of EQC_SHARED. */
    template <size_t kCount, class S = Space, std::enable_if_t<std::is_same_v<S, SharedSpace>, int> = 0>
    Pointer(T (&array)[kCount]) : at_(array), space_{plain_region(array, sizeof(array))} {}

    Reference<T, Space> operator*() const { return Reference<T, Space>(*this); }
    template <class Index>
    Reference<T, Space> operator[](Index i) const {
        return Reference<T, Space>(*this + ptrdiff_t(i));
    }
    /* By numbers rather than by pointer arithmetic, which the compiler may assume to stay within an object. */
    Pointer operator+(ptrdiff_t n) const {
        return {reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(at_) + uintptr_t(n) * sizeof(T)), space_};
    }
    Pointer operator-(ptrdiff_t n) const { return *this + -n; }
    friend Pointer operator+(ptrdiff_t n, const Pointer& p) { return p + n; }
    ptrdiff_t operator-(const Pointer& other) const { return at_ - other.at_; }
    Pointer& operator+=(ptrdiff_t n) { return *this = *this + n; }
    Pointer& operator-=(ptrdiff_t n) { return *this = *this - n; }
    Pointer& operator++() { return *this += 1; }
    Pointer& operator--() { return *this -= 1; }
    Pointer operator++(int) {
        const Pointer before = *this;
        *this += 1;
        return before;
    }
    Pointer operator--(int) {
        const Pointer before = *this;
        *this -= 1;
        return before;
    }
    explicit operator bool() const { return at_ != nullptr; }
    friend bool operator==(const Pointer& a, const Pointer& b) { return a.at_ == b.at_; }
    friend bool operator!=(const Pointer& a, const Pointer& b) { return a.at_ != b.at_; }
    friend bool operator<(const Pointer& a, const Pointer& b) { return a.at_ < b.at_; }
    friend bool operator>(const Pointer& a, const Pointer& b) { return a.at_ > b.at_; }
    friend bool operator<=(const Pointer& a, const Pointer& b) { return a.at_ <= b.at_; }
    friend bool operator>=(const Pointer& a, const Pointer& b) { return a.at_ >= b.at_; }

    /* The rest is for this layer. V is T, or a vector of T. */
    T* raw() const { return at_; }
    const Space& space() const { return space_; }
    template <class V>
    V read() const {
        space_.check(at_, sizeof(V), Access::Read, nullptr, sizeof(T));
        V value;
        std::memcpy(&value, at_, sizeof(V));
        return value;
    }
    template <class V>
    void write(const V& value) const {
        space_.check(at_, sizeof(V), Access::Write, &value, sizeof(T));
        std::memcpy(at_, &value, sizeof(V));
    }
    T* for_atomic() const {
        space_.check(at_, sizeof(T), Access::Atomic, nullptr, sizeof(T));
        return at_;
    }

   private:
    T* at_ = nullptr;
    Space space_;
};

/* So that "atomicAdd(float*, 1)" takes T from the pointer alone. */
template <class T>
struct Same {
    using type = T;
};
template <class T>
using SameAs = typename Same<T>::type;

/* What `name` is after EQC_SHARED_ARRAY(T, name, count). */
template <class T, size_t kCount>
struct SharedArray : Pointer<T, SharedSpace> {
    explicit SharedArray(const SharedRegion* region)
        : Pointer<T, SharedSpace>(reinterpret_cast<T*>(region->begin), SharedSpace{region}) {}
    SharedArray(const SharedArray&) = delete;  // an array, not a pointer: it has no copies
};

}  // namespace eqc_emulation

template <class T>
using eqc_shared_ptr = eqc_emulation::Pointer<T, eqc_emulation::SharedSpace>;
template <class T>
using eqc_global_ptr = eqc_emulation::Pointer<T, eqc_emulation::GlobalSpace>;

/* A shared array of `...` elements with every check. */
#define EQC_SHARED_ARRAY(T, name, ...)                   \
    static char eqc_site_of_##name;                      \
    ::eqc_emulation::SharedArray<T, (__VA_ARGS__)> name( \
        ::eqc_emulation::static_region(&eqc_site_of_##name, #name, sizeof(T) * (__VA_ARGS__), alignof(T)))

/* "EQC_SHARED T name[n];": a prefix cannot change what the array is, so name[i] itself is a plain access; accesses by
 * way of an eqc_shared_ptr are checked against the array's bounds. */
#define EQC_SHARED static thread_local
#define __shared__ EQC_SHARED

template <class T>
eqc_shared_ptr<T> eqc_dynamic_shared(size_t byte_offset) {
    const eqc_emulation::SharedRegion* region = eqc_emulation::dynamic_region(byte_offset, alignof(T));
    return {reinterpret_cast<T*>(region->begin + byte_offset), eqc_emulation::SharedSpace{region}};
}

/* `count` elements of an output or a workspace. */
template <class T>
eqc_global_ptr<T> eqc_view(T* pointer, int64_t count) {
    const size_t bytes = pointer == nullptr || count < 0 ? 0 : size_t(count) * sizeof(T);
    const char* begin = reinterpret_cast<const char*>(pointer);
    return {pointer, eqc_emulation::GlobalSpace{begin, bytes, eqc_emulation::find_unwritten(begin, bytes)}};
}

template <class Vector, class T, class Space>
Vector eqc_load_vector(const eqc_emulation::Pointer<T, Space>& from) {
    eqc_emulation::check_aligned(from.raw(), alignof(Vector));
    return from.template read<Vector>();
}
template <class Vector, class T, class Space>
void eqc_store_vector(const eqc_emulation::Pointer<T, Space>& to, const eqc_emulation::SameAs<Vector>& value) {
    static_assert(!std::is_const_v<T>, "elements that are not const");
    eqc_emulation::check_aligned(to.raw(), alignof(Vector));
    to.template write<Vector>(value);
}
template <class Vector, class T>
Vector eqc_load_vector(const T* from) {
    eqc_emulation::check_aligned(from, alignof(Vector));
    Vector value;
    std::memcpy(&value, from, sizeof(Vector));
    return value;
}
template <class Vector, class T>
void eqc_store_vector(T* to, const eqc_emulation::SameAs<Vector>& value) {
    eqc_emulation::check_aligned(to, alignof(Vector));
    std::memcpy(to, &value, sizeof(Vector));
}

/* Fills memory with a pattern that is NaN as a floating-point number and -1 as an integer, and has reads through an
 * eqc_view of it reported until they have been written through one (or by cudaMemset and cudaMemcpy). */
extern "C" __attribute__((visibility("default"))) void eqc_mark_unwritten(void* pointer, size_t bytes);
/* Ends that: to be called before the memory goes back to its owner. */
extern "C" __attribute__((visibility("default"))) void eqc_mark_written(const void* pointer, size_t bytes);

template <class T>
T __ldg(const T* from) {
    return *from;
}
template <class T, class Space>
std::remove_cv_t<T> __ldg(const eqc_emulation::Pointer<T, Space>& from) {
    return *from;
}

/* ---- Atomics: all threads of a grid run on one thread of the host, so the plain operation is atomic ------------- */

#define EQC_EMULATED_ATOMIC(name, result, ...)                                           \
    template <class T>                                                                   \
    T name(T* at, eqc_emulation::SameAs<T> value) {                                      \
        static_assert(__VA_ARGS__, "a type that " #name " has on the device");           \
        const T old = *at;                                                               \
        *at = result;                                                                    \
        return old;                                                                      \
    }                                                                                    \
    template <class T, class Space>                                                      \
    T name(const eqc_emulation::Pointer<T, Space>& at, eqc_emulation::SameAs<T> value) { \
        return name(at.for_atomic(), value);                                             \
    }

namespace eqc_emulation {
template <class T, class... Types>
constexpr bool is_one_of = (std::is_same_v<T, Types> || ...);
template <class T>
constexpr bool is_word = is_one_of<T, int, unsigned, unsigned long long>;
template <class T>
constexpr bool is_atomic_integer = is_word<T> || is_one_of<T, long long>;
}  // namespace eqc_emulation

EQC_EMULATED_ATOMIC(atomicAdd, T(old + value), eqc_emulation::is_word<T> || eqc_emulation::is_one_of<T, float, double>)
EQC_EMULATED_ATOMIC(atomicSub, T(old - value), eqc_emulation::is_one_of<T, int, unsigned>)
EQC_EMULATED_ATOMIC(atomicExch, value, eqc_emulation::is_word<T> || eqc_emulation::is_one_of<T, float>)
EQC_EMULATED_ATOMIC(atomicMin, value < old ? value : old, eqc_emulation::is_atomic_integer<T>)
EQC_EMULATED_ATOMIC(atomicMax, old < value ? value : old, eqc_emulation::is_atomic_integer<T>)
EQC_EMULATED_ATOMIC(atomicAnd, T(old& value), eqc_emulation::is_word<T>)
EQC_EMULATED_ATOMIC(atomicOr, T(old | value), eqc_emulation::is_word<T>)
EQC_EMULATED_ATOMIC(atomicXor, T(old ^ value), eqc_emulation::is_word<T>)
#undef EQC_EMULATED_ATOMIC

template <class T>
T atomicCAS(T* at, eqc_emulation::SameAs<T> expected, eqc_emulation::SameAs<T> value) {
    static_assert(eqc_emulation::is_word<T> || eqc_emulation::is_one_of<T, unsigned short>,
                  "a type that atomicCAS has on the device");
    const T old = *at;
    *at = old == expected ? value : old;
    return old;
}
template <class T, class Space>
T atomicCAS(const eqc_emulation::Pointer<T, Space>& at, eqc_emulation::SameAs<T> expected,
            eqc_emulation::SameAs<T> value) {
    return atomicCAS(at.for_atomic(), expected, value);
}

#endif
