// Arrays for the sanitizers: each has memory of its own that ends with its last element.
#ifndef EQC_TESTS_SANITIZE_ARRAYS_H
#define EQC_TESTS_SANITIZE_ARRAYS_H

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// The array of this name has one element fewer than it should: a planted fault, which a sanitizer must find.
inline std::string short_array;

// Memory whose last byte is followed by something that may not be touched.
class Memory {
   public:
    // What follows is known to the sanitizer, which sees what compiled code does, or a page that the processor refuses,
    // which holds for instructions that the sanitizer does not know (masked loads), too.
    enum Kind { heap, page };
    static constexpr size_t alignment = 64; // of a workspace

    Memory(Kind kind, size_t bytes) {
        if (kind == heap) {
            if (posix_memalign(&memory_, alignment, bytes) != 0) std::abort();
            data_ = memory_;
            return;
        }
        const size_t one = size_t(sysconf(_SC_PAGESIZE)), inside = (bytes + one - 1) / one * one;
        mapped_ = inside + one;
        memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory_ == MAP_FAILED || mprotect(static_cast<char*>(memory_) + inside, one, PROT_NONE) != 0) std::abort();
        data_ = static_cast<char*>(memory_) + (inside - bytes);
    }
    ~Memory() { mapped_ ? void(munmap(memory_, mapped_)) : std::free(memory_); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    void* data() { return data_; }

   private:
    size_t mapped_ = 0;
    void *memory_, *data_;
};

// Array of `count` elements, or of what a vector holds. In a page it is hardly ever aligned to a vector register.
template <class T>
class Array {
   public:
    Array(Memory::Kind kind, const char* name, int64_t count)
        : count_(count - (short_array == name && count > 0)), memory_(kind, size_t(count_) * sizeof(T)) {}
    template <class Element>
    Array(Memory::Kind kind, const char* name, const std::vector<Element>& content)
        : Array(kind, name, int64_t(content.size())) {
        for (int64_t k = 0; k < count_; ++k) data()[k] = T(content[size_t(k)]);
    }

    T* data() { return static_cast<T*>(memory_.data()); }
    size_t bytes() const { return size_t(count_) * sizeof(T); }
    // What a call must not depend on.
    void spoil(unsigned char junk) { std::memset(memory_.data(), junk, bytes()); }
    void append_to(std::vector<unsigned char>& all) {
        const auto* first = static_cast<const unsigned char*>(memory_.data());
        all.insert(all.end(), first, first + bytes());
    }

   private:
    int64_t count_;
    Memory memory_;
};

// The bytes that an operation asks for.
class Workspace {
   public:
    Workspace(Memory::Kind kind, size_t bytes, unsigned char junk)
        : memory_(kind, (bytes + Memory::alignment - 1) / Memory::alignment * Memory::alignment) {
        std::memset(memory_.data(), junk, bytes);
    }
    void* data() { return memory_.data(); }

   private:
    Memory memory_;
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
