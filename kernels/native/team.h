// Threads that work through one phase after another together.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {

// Members run the same function, and within it `each` shares out the items of a phase, whoever is
// free taking the next. A phase is over when its items are done: whoever is late for it, because
// the system gave its core to somebody else, passes over it and helps where the others are by then.
// So a member that is missing costs its help, and one that is put aside in the midst of an item
// holds the others up once: the longer the items, the longer.
class Team {
  public:
    explicit Team(int size) {
        for (int member = 1; member < size; ++member)
            threads_.emplace_back([this, member] { serve(member); });
        use(size);
    }

    ~Team() {
        is_over_ = true;
        called_.fetch_add(1);
        called_.notify_all();
        for (std::thread& thread : threads_)
            thread.join();
    }

    // Members that work; the others sleep until there are to be more.
    int size() const { return size_; }
    void use(int size) { size_ = std::clamp(size, 1, (int)threads_.size() + 1); }

    // Runs `work` on the caller and on every member that comes in time.
    void run(const std::function<void()>& work) {
        work_ = &work;
        ticket_.store(Ticket{0, 0}.packed(), std::memory_order_relaxed);
        doors_.store(OPEN, std::memory_order_release);
        if (size_ > 1) {
            called_.fetch_add(1, std::memory_order_release);
            called_.notify_all();
        }
        phase_ = 0;
        work();
        // What `work` refers to must outlive whoever is still inside.
        doors_.fetch_sub(OPEN, std::memory_order_acq_rel);
        for (int look = 0; doors_.load(std::memory_order_acquire) != 0;)
            await(look);
    }

    // In `work`, by every member with the same count: item(i) once for each i below it.
    template <class Item> void each(int count, const Item& item) {
        const uint32_t phase = phase_++;
        for (int look = 0;;) {
            uint64_t seen = ticket_.load(std::memory_order_acquire);
            const Ticket ticket = Ticket::of(seen);
            if (ticket.phase != phase)
                return; // the others have gone on
            if ((int)ticket.item >= count) {
                if (count == 0)
                    ticket_.compare_exchange_strong(seen, Ticket{phase + 1, 0}.packed());
                await(look);
                continue;
            }
            if (!ticket_.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel))
                continue;
            item((int)ticket.item);
            if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count)
                finish(phase);
        }
    }

  private:
    // How often a member looks for work before it sleeps, and somebody else gets its core.
    static constexpr int LOOKS = 4000;
    static constexpr int PATIENCE = 500;
    static constexpr int OPEN = 1 << 20;

    // The phase that everybody is in, and its next item.
    struct Ticket {
        uint32_t phase, item;
        static Ticket of(uint64_t packed) { return {(uint32_t)(packed >> 32), (uint32_t)packed}; }
        uint64_t packed() const { return (uint64_t)phase << 32 | item; }
    };

    void finish(uint32_t phase) {
        done_.store(0, std::memory_order_relaxed);
        ticket_.store(Ticket{phase + 1, 0}.packed(), std::memory_order_release);
    }

    void serve(int member) {
        for (uint32_t seen = 0;; ++seen) {
            const int looks = member < size_ ? LOOKS : 0;
            for (int look = 0; look < looks && called_.load(std::memory_order_acquire) == seen;
                 ++look)
                relax();
            called_.wait(seen, std::memory_order_acquire);
            if (is_over_)
                return;
            seen = called_.load(std::memory_order_acquire) - 1; // what was missed is over
            if (member >= size_)
                continue;
            // Who counts himself in while the doors are open finds everything as it was.
            int inside = doors_.load(std::memory_order_acquire);
            while (inside >= OPEN &&
                   !doors_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel))
                ;
            if (inside < OPEN)
                continue;
            phase_ = 0;
            (*work_)();
            doors_.fetch_sub(1, std::memory_order_acq_rel);
        }
    }

    // Another member has to end what it does; it may be waiting for this very core.
    static void await(int& look) {
        if (++look % PATIENCE == 0)
            std::this_thread::yield();
        else
            relax();
    }

    static void relax() {
#if defined(__x86_64__)
        _mm_pause();
#endif
    }

    const std::function<void()>* work_ = nullptr;
    std::atomic<int> size_{1};
    std::atomic<bool> is_over_{false};
    std::vector<std::thread> threads_;
    static thread_local uint32_t phase_;
    alignas(64) std::atomic<uint32_t> called_{0};
    alignas(64) std::atomic<int> doors_{0};
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> done_{0};
};

inline thread_local uint32_t Team::phase_ = 0;

} // namespace quire
