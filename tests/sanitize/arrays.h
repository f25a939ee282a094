// Arrays for the sanitizers: each has memory of its own that ends with its last element.
#ifndef EQC_TESTS_SANITIZE_ARRAYS_H
#define EQC_TESTS_SANITIZE_ARRAYS_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// The array of this name has one element fewer than it should: a planted fault, which a sanitizer must find.
inline std::string short_array;

// Array of `count` elements, or of what a vector holds. Every second one is at an address that no vector register is
// aligned to.
template <class T>
class Array {
   public:
    Array(const char* name, int64_t count) : count_(count) {
        thread_local bool shifted = false;
        shifted = !shifted;
        if (short_array == name && count > 0) --count_;
        memory_ = std::malloc(size_t(count_ + shifted) * sizeof(T));
        data_ = static_cast<T*>(memory_) + shifted;
    }
    template <class Element>
    Array(const char* name, const std::vector<Element>& content) : Array(name, int64_t(content.size())) {
        for (int64_t k = 0; k < count_; ++k) data_[k] = T(content[size_t(k)]);
    }
    ~Array() { std::free(memory_); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;

    T* data() { return data_; }
    size_t bytes() const { return size_t(count_) * sizeof(T); }
    // What a call must not depend on.
    void spoil(unsigned char junk) { std::memset(static_cast<void*>(data_), junk, bytes()); }
    void append_to(std::vector<unsigned char>& all) const {
        const auto* first = reinterpret_cast<const unsigned char*>(data_);
        all.insert(all.end(), first, first + bytes());
    }

   private:
    int64_t count_;
    void* memory_;
    T* data_;
};

// The bytes that an operation asks for, at an aligned address.
class Workspace {
   public:
    Workspace(size_t bytes, unsigned char junk) {
        if (posix_memalign(&memory_, 64, bytes) != 0) std::abort();
        std::memset(memory_, junk, bytes);
    }
    ~Workspace() { std::free(memory_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    void* data() { return memory_; }

   private:
    void* memory_ = nullptr;
};

// Numbers that look random, the same on every machine.
class Numbers {
   public:
    explicit Numbers(uint64_t seed) : state_(seed) {}
    int64_t below(int64_t end) { return int64_t(next() % uint64_t(end)); }
    // In [-scale, scale].
    std::vector<double> real(int64_t count, double scale) {
        std::vector<double> made(static_cast<size_t>(count));
        for (double& value : made) value = scale * (double(next() % 2001) / 1000 - 1);
        return made;
    }

   private:
    uint64_t next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return state_ >> 33;
    }
    uint64_t state_;
};

#define REQUIRE(condition, ...)                                                  \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition); \
            std::fprintf(stderr, __VA_ARGS__);                                   \
            std::fputc('\n', stderr);                                            \
            std::exit(1);                                                        \
        }                                                                        \
    } while (false)

#endif
