// What a warp's accesses cost a GPU's memories: a count, for those who ask for one.
//
// The hardware makes an access for all lanes of a warp at once; such a request takes as many
// transfers as it must:
//
//   shared   32 banks give 4 bytes each at a time, whoever wants them. Lanes that want different
//            words of one bank take turns: each is a wavefront. 128 bytes are the most that one can
//            bring, so 8 bytes a lane go by halves of the warp, and 16 by quarters.
//   global   comes in sectors, 32 bytes from a multiple of 32 on; each that any lane touches is
//            brought whole.
//
// Source: CUDA C++ Programming Guide, "Shared Memory" and "Device Memory Accesses".
//
// Here the lanes run one after another. A lane's access belongs to the others' by its instruction
// and by how often the lane has come by that since all lanes of the warp last were in step: at a
// barrier, or a shuffle. Lanes that skip turns of a loop with no such thing in it are put together
// with others' other turns. Atomics, and copies that are not made by lanes, are not counted.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "api.h"

namespace simt {

struct Thread;
struct Block;

void clear_traffic();
std::string traffic_as_json();

// A lane's access, `offset` bytes from where the memory begins. A memory counts as beginning at a
// multiple of 256, as it does on a GPU. The instruction is `code` or, where that is null, the site.
void count_access(const Thread& thread, const void* memory, size_t offset, size_t bytes,
                  bool shared, bool write, const void* code, Site site);

// These lanes of a warp have waited for each other, or all these threads have.
void in_step(Block& block, unsigned warp, unsigned lanes);
void in_step(const std::vector<Thread*>& threads);
// Nothing more will come of a block's threads.
void end_of_block(Block& block);

}  // namespace simt
