// An OpenMP runtime of one function, on threads that are made for each call: what the kernels look up in a process, for
// programs without torch. Thread sanitizers understand it, which they do not understand libgomp.
#include <thread>
#include <vector>

extern "C" void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads && i < 16; ++i) others.emplace_back(work, data);
    work(data);
    for (std::thread& other : others) other.join();
}
