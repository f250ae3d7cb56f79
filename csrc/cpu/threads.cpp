// Threads are those of the OpenMP runtime that the process has loaded, which is torch's: its entry is looked up and not
// linked, so that there is never a second pool.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstring>

#if defined(__linux__)
#include <link.h>
#elif defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

namespace quintet {
namespace {

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
Parallel parallel = nullptr;
char runtime[512] = "";
std::atomic<bool> forked{false};

bool try_runtime(const char* path) {
    const char* name = path ? std::strrchr(path, '/') : nullptr;
    name = name ? name + 1 : path;
    if (!name || (std::strncmp(name, "libgomp", 7) && std::strncmp(name, "libiomp", 7) && std::strncmp(name, "libomp", 6)))
        return false;
    void* library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    parallel = library ? reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel")) : nullptr;
    if (!parallel) return false;
    std::strncpy(runtime, path, sizeof runtime - 1);
    return true;
}

// ---- pieces ------------------------------------------------------------------------------------------------------

// The pieces of a job. Each thread has a run of them that lie behind each other, and takes them in rising order: memory is
// read fastest so, as what is asked for beyond the end of a piece is what the thread reads next. Who is done takes the last
// ones of others, so that nobody waits for a thread that was put aside.
struct Pieces {
    static constexpr int BITS = 24, SIDES = 64;
    static constexpr int64_t MOST = (int64_t(1) << BITS) - 1;
    // The number of the job, the end of the run, and its first piece: one word, so that no thread takes a piece of one job for
    // one of another.
    struct alignas(64) Side { std::atomic<uint64_t> word; };
    Side sides[SIDES];
    int64_t count;

    explicit Pieces(int64_t threads) : count(threads < SIDES ? threads : SIDES) {
        for (int64_t i = 0; i < count; ++i) sides[i].word.store(0, std::memory_order_relaxed);
    }
    void give(uint64_t job, int64_t pieces) {
        for (int64_t i = 0; i < count; ++i) {
            const uint64_t first = uint64_t(pieces * i / count), end = uint64_t(pieces * (i + 1) / count);
            sides[i].word.store(job << 2 * BITS | end << BITS | first, std::memory_order_release);
        }
    }
    uint64_t job(int64_t thread) const { return sides[thread % count].word.load(std::memory_order_acquire) >> 2 * BITS; }
    // A piece for this thread, and the job that it is of; false when there is none left.
    bool take(int64_t thread, int64_t& piece, uint64_t& job) {
        for (int64_t i = 0; i < count; ++i) {
            std::atomic<uint64_t>& word = sides[(thread + i) % count].word;
            uint64_t before = word.load(std::memory_order_acquire);
            for (;;) {
                const int64_t first = int64_t(before & MOST), end = int64_t(before >> BITS & MOST);
                if (first >= end) break;
                if (!word.compare_exchange_weak(before, i ? before - (uint64_t(1) << BITS) : before + 1, std::memory_order_acq_rel)) continue;
                piece = i ? end - 1 : first;
                job = before >> 2 * BITS;
                return true;
            }
        }
        return false;
    }
};

// Bytes of a weight in a piece: small ones end together, large ones are fewer calls.
constexpr int64_t LARGEST = 262144, SMALLEST = 32768, EACH = 8;  // at most, at least, and pieces of a thread between them
constexpr int64_t WORTH_IN_TEAM = 16384;
constexpr int64_t WORTH = 131072;  // below it, waking threads costs more than they save

// What there is to do, so many at a time.
struct Task {
    const void* arguments;
    int64_t total, chunk;
    int64_t pieces() const { return (total + chunk - 1) / chunk; }
    int64_t begin(int64_t piece) const { return piece * chunk; }
    int64_t end(int64_t piece) const { return begin(piece) + chunk < total ? begin(piece) + chunk : total; }
};

// As many times `chunk` as make no more pieces than there can be.
int64_t within(int64_t chunk, int64_t total) {
    while (total / chunk >= Pieces::MOST) chunk *= 2;
    return chunk;
}

// So many of `total` at a time: a multiple of `step`.
int64_t chunk_of(int64_t total, int64_t bytes_each, int64_t threads, int64_t step) {
    int64_t piece = total * bytes_each / (EACH * (threads > 1 ? threads : 1));
    piece = piece < SMALLEST ? SMALLEST : piece > LARGEST ? LARGEST : piece;
    int64_t chunk = piece / (bytes_each > 0 ? bytes_each : 1) / step * step;
    return within(chunk < step ? step : chunk, total);
}

struct Job {
    Worker work;
    Task task;
    char* memory;
    size_t memory_each;
    Pieces pieces;
    std::atomic<int64_t> threads;
};

void run_job(void* data) {
    Job& job = *static_cast<Job*>(data);
    const int64_t thread = job.threads.fetch_add(1, std::memory_order_relaxed);
    char* memory = job.memory + job.memory_each * size_t(thread);
    int64_t piece;
    uint64_t number;
    while (job.pieces.take(thread, piece, number))
        job.work(job.task.arguments, job.task.begin(piece), job.task.end(piece), memory);
}

// Threads that stay for several jobs. Two jobs' descriptions are kept, so that one is never written while somebody may still
// read it.
struct Team {
    struct Piecework {
        Work work;
        Task task;
        std::atomic<int64_t> done;
    };
    Pieces pieces;
    alignas(64) Piecework jobs[2];
    alignas(64) std::atomic<bool> over{false};
    std::atomic<int64_t> arrived{0};
    uint64_t number = 0;
    Work main;
    const void* main_arguments;

    Team(int64_t threads, Work main, const void* arguments) : pieces(threads), main(main), main_arguments(arguments) {}

    // Does a piece of the newest job; false when there is none left.
    bool help(int64_t thread) {
        int64_t piece;
        uint64_t which;
        if (!pieces.take(thread, piece, which)) return false;
        Piecework& job = jobs[which & 1];
        job.work(job.task.arguments, job.task.begin(piece), job.task.end(piece));
        job.done.fetch_add(1, std::memory_order_release);
        return true;
    }
    static void rest(int& turns) {
        if (++turns < 20000) {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#elif defined(__aarch64__)
            __asm__ __volatile__("yield");
#endif
        } else {
            sched_yield();  // a busy machine: let others have the core
        }
    }
    void serve(int64_t thread) {
        while (!over.load(std::memory_order_acquire)) {
            const uint64_t seen = pieces.job(thread);
            while (help(thread)) {}
            int turns = 0;
            while (pieces.job(thread) == seen && !over.load(std::memory_order_acquire)) rest(turns);
        }
    }
    void run(Work work, const Task& task) {
        const int64_t count = task.pieces();
        number = (number + 1) & 0xffff;
        Piecework& job = jobs[number & 1];
        job.work = work, job.task = task;
        job.done.store(0, std::memory_order_relaxed);
        pieces.give(number, count);
        while (help(0)) {}
        int turns = 0;
        while (job.done.load(std::memory_order_acquire) < count) rest(turns);
    }
};
thread_local Team* team = nullptr;  // of the thread that leads it

void run_team(void* data) {
    Team& own = *static_cast<Team*>(data);
    const int64_t thread = own.arrived.fetch_add(1, std::memory_order_acq_rel);
    if (thread) return own.serve(thread);
    team = &own;
    own.main(own.main_arguments, 0, 1);
    team = nullptr;
    own.over.store(true, std::memory_order_release);
}

bool alone(int64_t threads) { return threads <= 1 || !parallel || forked.load(std::memory_order_relaxed); }

}  // namespace

void find_threads() {
#if defined(__linux__)
    dl_iterate_phdr([](dl_phdr_info* info, size_t, void*) { return int(try_runtime(info->dlpi_name)); }, nullptr);
#elif defined(__APPLE__)
    for (uint32_t i = 0; i < _dyld_image_count() && !parallel; ++i) try_runtime(_dyld_get_image_name(i));
#endif
    // The pool's threads do not live on in a child of fork, and a runtime that waits for them waits for ever.
    pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
}

const char* threads_runtime() { return runtime; }

void together_do(Work work, const void* arguments, int64_t threads) {
    if (alone(threads) || team) return work(arguments, 0, 1);
    if (threads > 1024) threads = 1024;
    Team own(threads, work, arguments);
    parallel(run_team, &own, unsigned(threads), 0);
}

void share(Work work, const void* arguments, int64_t total, int64_t bytes_each, int64_t threads, int64_t step) {
    if (team && !alone(threads)) {
        if (total * bytes_each >= WORTH_IN_TEAM) team->run(work, {arguments, total, chunk_of(total, bytes_each, threads, step)});
        else if (total > 0) work(arguments, 0, total);
        return;
    }
    struct Call { Work work; const void* arguments; } call{work, arguments};
    share_with([](const void* data, int64_t begin, int64_t end, void*) {
                   static_cast<const Call*>(data)->work(static_cast<const Call*>(data)->arguments, begin, end);
               }, &call, total, plan(total, bytes_each, threads, step));
}

Plan plan(int64_t total, int64_t bytes_each, int64_t threads, int64_t step) {
    const int64_t chunk = chunk_of(total, bytes_each, threads, step);
    if (alone(threads) || total * bytes_each < WORTH) return {1, chunk};
    const int64_t pieces = Task{nullptr, total, chunk}.pieces();
    return {threads < pieces ? threads : pieces, chunk};
}

void share_with(Worker work, const void* arguments, int64_t total, Plan plan, char* memory, size_t memory_each) {
    if (plan.threads <= 1) {
        if (total > 0) work(arguments, 0, total, memory);
        return;
    }
    Job job{work, {arguments, total, within(plan.chunk, total)}, memory, memory_each, Pieces(plan.threads), {0}};
    job.pieces.give(0, job.task.pieces());
    parallel(run_job, &job, unsigned(plan.threads), 0);
}

}  // namespace quintet
