// Threads that work through one phase after another together.
#pragma once

#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include <sched.h>

namespace quire {

// All members run the same function. Within it `each` shares out the items of a phase, whoever is
// free taking the next, and nobody goes on before all are done: a member that the system has put
// aside holds the others up by one item, not by its share.
class Team {
  public:
    explicit Team(int size) : size_(size) {
        for (int member = 1; member < size; ++member)
            threads_.emplace_back([this] { serve(); });
    }

    ~Team() {
        work_ = nullptr;
        begin();
        for (std::thread& thread : threads_)
            thread.join();
    }

    int size() const { return size_; }

    // Runs `work` on every member, the caller being one.
    void run(const std::function<void()>& work) {
        if (size_ == 1)
            return work();
        work_ = &work;
        begin();
        work();
        wait_for_all();
    }

    // Of every member, with the same count: work(item) once for each item from 0.
    template <class Work> void each(int count, const Work& work) {
        if (size_ == 1) {
            for (int item = 0; item < count; ++item)
                work(item);
            return;
        }
        for (;;) {
            const int item = next_.fetch_add(1, std::memory_order_relaxed);
            if (item >= count)
                break;
            work(item);
        }
        wait_for_all();
    }

  private:
    // How often a member looks before it lets others have the core, or sleeps. Phases of a step
    // follow each other at once; between steps the core belongs to whoever plans the next.
    static constexpr int LOOKS = 4000;

    void begin() {
        started_.fetch_add(1, std::memory_order_release);
        started_.notify_all();
    }

    void serve() {
        for (uint32_t seen = 0;; ++seen) {
            for (int look = 0; look < LOOKS && started_.load(std::memory_order_acquire) == seen;
                 ++look)
                relax();
            started_.wait(seen, std::memory_order_acquire);
            if (work_ == nullptr)
                return;
            (*work_)();
            wait_for_all();
        }
    }

    void wait_for_all() {
        const uint32_t phase = phase_.load(std::memory_order_relaxed);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            phase_.store(phase + 1, std::memory_order_release);
            return;
        }
        for (int look = 0; phase_.load(std::memory_order_acquire) == phase; ++look) {
            if (look < LOOKS)
                relax();
            else
                sched_yield();
        }
    }

    static void relax() {
#if defined(__x86_64__)
        _mm_pause();
#endif
    }

    const int size_;
    const std::function<void()>* work_ = nullptr;
    std::vector<std::thread> threads_;
    alignas(64) std::atomic<uint32_t> started_{0};
    alignas(64) std::atomic<int> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
};

} // namespace quire
