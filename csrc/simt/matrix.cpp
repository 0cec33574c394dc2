// Tensor cores: operations of a warp on small matrices that its lanes hold in pieces.
//
// Which lane holds which element is fixed by the hardware (PTX ISA, "Matrix fragments"). Sums are
// made in float, in the order of k; a tensor core rounds in its own way.

#include <bit>
#include <cstring>

#include "findings.h"
#include "machine.h"

namespace simt {

float element(const uint32_t* registers, unsigned index, Kind kind) {
    if (kind == Kind::tf32) return std::bit_cast<float>(registers[index] & 0xFFFFE000);
    if (kind == Kind::e4m3) return from_e4m3(uint8_t(registers[index / 4] >> 8 * (index % 4)));
    const auto bits = uint16_t(registers[index / 2] >> 16 * (index % 2));
    return kind == Kind::bf16 ? from_bfloat16(bits) : from_half(bits);
}

namespace {

struct Product {
    float* d;
    const uint32_t *a, *b;
    const float* c;
};

template <Kind kind>
void multiply(void** lanes, unsigned) {
    constexpr unsigned depth = kind == Kind::tf32 ? 8 : 16;
    const auto of = [&](unsigned lane) -> const Product& {
        return *static_cast<Product*>(lanes[lane]);
    };
    float a[16][depth], b[depth][8], d[16][8];
    for (unsigned k = 0; k < depth; ++k) {
        for (unsigned row = 0; row < 16; ++row) {
            if (kind == Kind::tf32)
                a[row][k] = element(of(row % 8 * 4 + k % 4).a, row / 8 + k / 4 * 2, kind);
            else
                a[row][k] =
                    element(of(row % 8 * 4 + k / 2 % 4).a, k % 2 + row / 8 * 2 + k / 8 * 4, kind);
        }
        for (unsigned column = 0; column < 8; ++column) {
            if (kind == Kind::tf32)
                b[k][column] = element(of(column * 4 + k % 4).b, k / 4, kind);
            else
                b[k][column] = element(of(column * 4 + k / 2 % 4).b, k % 2 + k / 8 * 2, kind);
        }
    }
    for (unsigned row = 0; row < 16; ++row)
        for (unsigned column = 0; column < 8; ++column) {
            const unsigned lane = row % 8 * 4 + column / 2, e = column % 2 + row / 8 * 2;
            float sum = of(lane).c[e];
            for (unsigned k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
            d[row][column] = sum;
        }
    for (unsigned lane = 0; lane < kWarp; ++lane)
        for (unsigned e = 0; e < 4; ++e)
            of(lane).d[e] = d[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2];
}

// Matrices of 8 x 8 sixteen-bit numbers, `count` of them: lane 8 j + r says where row r of matrix j
// is.
struct Matrices {
    uint32_t* registers;
    unsigned count;
    bool transposed;
    char* row;
    Site site;
};

template <bool store>
void move_matrices(void** lanes, unsigned) {
    const auto of = [&](unsigned lane) -> const Matrices& {
        return *static_cast<Matrices*>(lanes[lane]);
    };
    for (unsigned j = 0; j < of(0).count; ++j)
        for (unsigned lane = 0; lane < kWarp; ++lane)
            for (unsigned half = 0; half < 2; ++half) {
                unsigned row = lane / 4, column = lane % 4 * 2 + half;
                if (of(0).transposed) std::swap(row, column);
                char* place = of(8 * j + row).row + 2 * column;
                char* own = reinterpret_cast<char*>(&of(lane).registers[j]) + 2 * half;
                std::memcpy(store ? place : own, store ? own : place, 2);
            }
}

template <bool store>
void with_matrices(uint32_t* registers, unsigned count, bool transposed, void* row, Site site) {
    Matrices mine{registers, count, transposed, static_cast<char*>(row), site};
    if (lane() < 8 * count) {
        if (reinterpret_cast<uintptr_t>(row) % 16)
            report("misaligned", site, "a row of a matrix begins at a multiple of 16 bytes");
        if (checking) check_access(row, 16, store, site);
    }
    collective(store ? "stmatrix" : "ldmatrix", ~0u, &mine, move_matrices<store>, site);
}

}  // namespace

void mma_16x8(Kind kind, float* d, const uint32_t* a, const uint32_t* b, const float* c,
              Site site) {
    Product mine{d, a, b, c};
    collective("mma", ~0u, &mine,
               kind == Kind::tf32   ? multiply<Kind::tf32>
               : kind == Kind::bf16 ? multiply<Kind::bf16>
                                    : multiply<Kind::f16>,
               site);
}

void load_matrices(uint32_t* registers, unsigned count, bool transposed, const void* row,
                   Site site) {
    with_matrices<false>(registers, count, transposed, const_cast<void*>(row), site);
}

void store_matrices(const uint32_t* registers, unsigned count, bool transposed, void* row,
                    Site site) {
    with_matrices<true>(const_cast<uint32_t*>(registers), count, transposed, row, site);
}

}  // namespace simt
