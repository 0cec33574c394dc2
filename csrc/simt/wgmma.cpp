// Products of a warpgroup: four warps multiply matrices that lie in shared memory, and go on while
// it is done.
//
// Here each warp does its 16 of the 64 rows, when one of its lanes waits: operands that were
// overwritten meanwhile give wrong results. Until its own wait a lane's accumulators hold NaN. For
// the check build operands are read by the lane that came last, in the manner of a copy, and the
// registers of every lane are watched. Source: PTX ISA 8.5, "Asynchronous Warpgroup Level Matrix
// Instructions".

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "findings.h"
#include "machine.h"
#include "source.h"

namespace simt {
namespace {

constexpr unsigned kRows = 16, kMostDepth = 32, kMostColumns = 256;

// 32 bytes of k are multiplied at a time.
unsigned bytes_of(Kind kind) {
    return kind == Kind::e4m3 ? 1 : 2;
}
unsigned depth_of(Kind kind) {
    return 32 / bytes_of(kind);
}

// Where an operand lies, as its descriptor says. The layouts repeat pieces of 8 x 16 bytes.
class Operand {
public:
    Operand(uint64_t bits, bool transposed, Kind kind)
        : start_(bits << 4 & 0x3FFF0),
          leading_(bits >> 12 & 0x3FFF0),
          stride_(bits >> 28 & 0x3FFF0),
          swizzle_(bits >> 62 ? 256u >> (bits >> 62) : 0),
          bytes_(bytes_of(kind)),
          transposed_(transposed) {}

    // `row` counts rows of A, columns of B.
    size_t offset(unsigned row, unsigned k) const {
        return swizzled(start_ + (transposed_ ? 2 * k_by_k(row, k) : row_by_row(row, k * bytes_)),
                        swizzle_);
    }
    // Of 16 bytes the numbers follow each other.
    unsigned rows_together() const { return transposed_ ? 8 : 1; }
    unsigned k_together() const { return transposed_ ? 1 : 16 / bytes_; }

private:
    // In bytes.
    size_t row_by_row(unsigned row, unsigned byte) const {
        if (swizzle_) return row % 8 * swizzle_ + row / 8 * stride_ + byte;
        return row % 8 * 16 + row / 8 * stride_ + byte % 16 + byte / 16 * leading_;
    }
    // In numbers of 16 bits: others are not transposed.
    size_t k_by_k(unsigned row, unsigned k) const {
        const unsigned width = swizzle_ / 2;
        if (swizzle_)
            return row % width + row / width * (leading_ / 2) + k % 8 * width +
                   k / 8 * (stride_ / 2);
        return row % 8 + row / 8 * (stride_ / 2) + k % 8 * 8 + k / 8 * (leading_ / 2);
    }

    size_t start_, leading_, stride_;
    unsigned swizzle_, bytes_;
    bool transposed_;
};

// The product of one warp.
struct Product {
    Wgmma how;
    Operand a, b;
    bool a_in_registers;
    unsigned first_row;
    const char* shared;
    const Thread* reader;
    Time time;
    float a_values[kRows][kMostDepth];
    float d[kRows][kMostColumns];
    bool done = false;

    float at(const Operand& operand, unsigned row, unsigned k) const {
        uint32_t bits = 0;
        std::memcpy(&bits, shared + operand.offset(row, k), bytes_of(how.kind));
        return element(&bits, 0, how.kind);
    }
    void check(const Operand& operand, unsigned begin, unsigned end, Site site) const {
        for (unsigned row = begin; row < end; row += operand.rows_together())
            for (unsigned k = 0; k < depth_of(how.kind); k += operand.k_together())
                check_copy(shared + operand.offset(row, k), 16, false, site);
    }
    void multiply() {
        if (std::exchange(done, true)) return;
        const unsigned depth = depth_of(how.kind);
        for (unsigned row = 0; row < kRows; ++row)
            for (unsigned k = 0; k < depth && !a_in_registers; ++k)
                a_values[row][k] = at(a, first_row + row, k);
        for (unsigned column = 0; column < how.columns; ++column) {
            float b_values[kMostDepth];
            for (unsigned k = 0; k < depth; ++k) b_values[k] = at(b, column, k);
            for (unsigned row = 0; row < kRows; ++row) {
                d[row][column] = 0;
                for (unsigned k = 0; k < depth; ++k)
                    d[row][column] += a_values[row][k] * b_values[k];
            }
        }
    }
    // Lane's e-th accumulator.
    float of(unsigned lane, unsigned e) const {
        return d[lane / 4 + e / 2 % 2 * 8][lane % 4 * 2 + e % 2 + e / 4 * 8];
    }
};

struct Request {
    const Wgmma* how;
    const uint32_t* a_registers;
    uint64_t a, b;
    Site site;
    std::shared_ptr<Product> product;
};

void begin_product(void** lanes, unsigned) {
    const auto of = [&](unsigned lane) -> Request& { return *static_cast<Request*>(lanes[lane]); };
    Thread& thread = *self();
    const Request& mine = of(thread.lane());
    const auto product = std::make_shared<Product>(Product{*mine.how,
                                                           {mine.a, mine.how->a_transposed, mine.how->kind},
                                                           {mine.b, mine.how->b_transposed, mine.how->kind},
                                                           mine.a_registers != nullptr,
                                                           thread.warp() % 4 * kRows,
                                                           thread.block->shared,
                                                           &thread,
                                                           ++thread.copy_time,
                                                           {},
                                                           {}});
    for (unsigned row = 0; row < kRows && mine.a_registers; ++row)
        for (unsigned k = 0; k < depth_of(mine.how->kind); ++k)
            product->a_values[row][k] = element(of(row % 8 * 4 + k / 2 % 4).a_registers,
                                                k % 2 + row / 8 * 2 + k / 8 * 4, mine.how->kind);
    if (checking) {
        if (!mine.a_registers)
            product->check(product->a, product->first_row, product->first_row + kRows, mine.site);
        product->check(product->b, 0, mine.how->columns, mine.site);
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) of(lane).product = product;
}

bool overlap(const Registers& one, const void* begin, size_t bytes) {
    const auto* first = static_cast<const char*>(begin);
    return first < one.begin + one.bytes && one.begin < first + bytes;
}

// A product begins to use a thread's variables.
void use(Thread& thread, const void* variables, size_t bytes, bool written, Site site) {
    auto* begin = static_cast<char*>(const_cast<void*>(variables));
    auto& all = thread.registers;
    auto mine = std::find_if(all.begin(), all.end(), [&](const Registers& one) {
        return one.begin == begin && one.bytes == bytes && one.written == written;
    });
    if (mine == all.end()) {
        std::erase_if(
            all, [&](const Registers& one) { return !one.pending && overlap(one, begin, bytes); });
        all.push_back({begin, bytes, written, site});
        mine = all.end() - 1;
        mine->touched = !thread.products_fenced;
    }
    if (mine->touched)
        report("missing fence", site,
               "begins a product with registers that the thread has used, without a wgmma fence "
               "between the two");
    mine->site = site;
    mine->touched = false;
    if (written && !mine->pending) {
        const auto* sums = reinterpret_cast<const float*>(begin);
        mine->sums.assign(sums, sums + bytes / sizeof(float));
        std::memset(begin, 0xFF, bytes);
    }
    ++mine->pending;
}

// A product is done with them; its sums are, when no other one adds to them.
void leave(Thread& thread, const void* variables, const Product* product) {
    for (Registers& one : thread.registers) {
        if (one.begin != variables || !one.pending || one.written != (product != nullptr)) continue;
        for (unsigned e = 0; e < one.sums.size(); ++e)
            one.sums[e] =
                product->of(thread.lane(), e) + (product->how.accumulate ? one.sums[e] : 0);
        if (--one.pending || !one.written) return;
        // Variables of a function that has returned are no more.
        if (one.begin > static_cast<char*>(__builtin_frame_address(0)))
            std::memcpy(one.begin, one.sums.data(), one.bytes);
    }
}

}  // namespace

void wgmma(const Wgmma& how, float* d, const uint32_t* a_registers, uint64_t a, uint64_t b,
           Site site) {
    Thread& thread = *self();
    ++thread.products_begun;
    thread.last_product = site;
    Request request{&how, a_registers, a, b, site, {}};
    collective("wgmma", ~0u, &request, begin_product, site);
    use(thread, d, how.columns / 2 * sizeof(float), true, site);
    if (a_registers) use(thread, a_registers, 4 * sizeof(uint32_t), false, site);
    thread.products.uncommitted.push_back([=, &thread, product = request.product] {
        product->multiply();
        leave(thread, d, product.get());
        if (a_registers) leave(thread, a_registers, nullptr);
        if (checking) release_copies(*product->reader, product->time, thread.known);
    });
}

void wgmma_fence() {
    Thread& thread = *self();
    thread.products_fenced = true;
    for (Registers& one : thread.registers) one.touched = false;
}

void wgmma_commit() {
    Copies& products = self()->products;
    products.groups.push_back({std::exchange(products.uncommitted, {}), 0});
}

// In the order in which they were begun: each adds to the one before.
void wgmma_wait(unsigned keep) {
    auto& groups = self()->products.groups;
    for (; groups.size() > keep; groups.pop_front())
        for (const auto& land : groups.front().land) land();
}

uint32_t shared_address(const void* pointer) {
    return uint32_t(static_cast<const char*>(pointer) - self()->block->shared);
}

void check_warpgroups(const Block& block) {
    constexpr unsigned kGroup = 4;
    const auto warps = unsigned(block.collectives.size());
    for (unsigned first = 0; first < warps; first += kGroup) {
        const auto begun = [&](unsigned warp) {
            return warp < warps ? block.threads[warp * kWarp].products_begun : 0;
        };
        unsigned most = first, least = first;
        for (unsigned warp = first; warp < first + kGroup; ++warp) {
            if (begun(warp) > begun(most)) most = warp;
            if (begun(warp) < begun(least)) least = warp;
        }
        if (begun(least) < begun(most))
            report("absent warp", block.threads[most * kWarp].last_product,
                   "block " + text(block.index) + ": warp " + std::to_string(most) + " began " +
                       std::to_string(begun(most)) + " products of its warpgroup, warp " +
                       std::to_string(least) + " " + std::to_string(begun(least)) +
                       (least < warps ? "" : ": the block has no such warp") +
                       "; all four have to begin each");
    }
}

void check_registers(Thread& thread, const void* address, size_t bytes, bool write,
                     const void* code) {
    for (Registers& one : thread.registers) {
        if (!overlap(one, address, bytes)) continue;
        if (!one.pending)
            one.touched = true;
        else if (one.written || write)
            report("race", locate(code),
                   std::string(write ? "writes" : "reads") +
                       " registers of the product that it began at line " +
                       std::to_string(one.site.line) + ", and has not waited for",
                   one.site);
    }
}

}  // namespace simt
