// Runs every compiled kernel without Python, on odd sizes, in every dtype and with threads, for what
// only compilers can check: sanitizers, and processors that are not here (under an emulator). The
// numbers are held against the references in Python; here those of the kernels with the most involved
// loops are held against plain ones. A kernel that is not run here is an error.
//
// Linked with csrc/cpu/processor.cpp, threads.cpp and all of csrc/cpu/kernels, as
// tests/kernels/test_sanitizers.py does.

#include "driver.h"

#include <map>
#include <set>
#include <stdexcept>

#include "threads.h"

namespace minitorch {

static std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}
Entry::Entry(const char*, const char* name, Kernel kernel) {
    kernels()[name] = kernel;
}
void fail(const char* message) {
    throw std::invalid_argument(message);
}

}  // namespace minitorch

static std::set<std::string> ran;

void run(const char* name, std::vector<Array> arrays, std::vector<double> numbers) {
    ran.insert(name);
    numbers.push_back(0);
    kernels().at(name)(arrays.data(), static_cast<int>(arrays.size()), numbers.data());
}

int main() {
    for (int threads : {1, 3}) {
        set_num_threads(threads);
        check_products();
        check_attentions();
        check_rows();
    }
    Owned<float> x({1000}), sums({3});
    Owned<double> wide_sums({3}), operations({1});
    Owned<bfloat16> narrow_sums({3});
    for (const Array& out : {sums.array, wide_sums.array, narrow_sums.array})
        run("peak_arithmetic", {out, operations.array}, {100});
    run("peak_read", {x.array, sums.array}, {2});
    for (const auto& [name, kernel] : kernels())
        if (!ran.count(name)) {
            std::printf("%s is not run here\n", name.c_str());
            return 1;
        }
    std::printf("fine\n");
}
