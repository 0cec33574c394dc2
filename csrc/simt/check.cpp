#include "check.h"

#include <dlfcn.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>

#include "findings.h"
#include "machine.h"
#include "source.h"
#include "traffic.h"

namespace simt {

bool checking = false;

namespace {

struct Memory {
    size_t bytes;
    std::string name;
    std::vector<Granule> shadow;
    bool freed = false;  // kept, so that a report can name it
};

// What the other writers and readers of an atomic's location have made visible.
struct Location {
    Known everywhere, in_block;
    uint32_t block = 0;
};

// Never destroyed: a program looks at what was found when its other variables are gone.
auto& guard = *new std::recursive_mutex;
auto& memories = *new std::map<const char*, Memory>;
auto& locations = *new std::unordered_map<const void*, Location>;
uint32_t launch_number = 1;
constexpr size_t kMostReaders = 16;  // of a place in global memory that are remembered

Site site_of(const Access& access) {
    return access.code ? locate(access.code) : access.site;
}

bool happened_before(const Access& earlier, const Thread& now) {
    if (earlier.block == now.block->number && earlier.rank == now.rank) return true;
    return now.known.of(earlier.block, earlier.rank) >= earlier.time;
}

std::string name_of_thread(const Access& access) {
    const Thread* now = self();
    for (const Block* block : now->block->cluster)
        if (block->number == access.block) {
            const size_t count = block->threads.size();
            std::string name = access.rank < count ? "thread " : "a copy by thread ";
            name += text(block->threads[access.rank % count].index);
            return block == now->block ? name : name + " of block " + text(block->index);
        }
    return "a thread of another block";
}

void report_race(const Access& earlier, bool earlier_write, const Access& now, bool write,
                 const std::string& what) {
    const Site there = site_of(earlier);
    const auto verb = [](bool writes, bool atomic) {
        return atomic ? "updates" : writes ? "writes" : "reads";
    };
    report("race", site_of(now),
           std::string(verb(write, now.atomic)) + " " + what + ", which " +
               name_of_thread(earlier) + " " + verb(earlier_write, earlier.atomic) + " at " +
               there.file + ":" + std::to_string(there.line) + "; nothing orders the two",
           there);
}

// One access of the bytes of one granule.
void check_granule(Granule& granule, uint32_t stamp, const Access& now, bool write, bool local,
                   const std::string& name) {
    if (granule.stamp != stamp) {
        granule.writes.clear();
        granule.reads.clear();
        if (local) granule.written = 0;
        granule.stamp = stamp;
    }
    const Thread& thread = *self();
    const auto clash = [&](const Access& earlier) {
        return (earlier.bytes & now.bytes) && !(earlier.atomic && now.atomic) &&
               !happened_before(earlier, thread);
    };
    for (const Access& earlier : granule.writes)
        if (clash(earlier)) {
            report_race(earlier, true, now, write, name);
            break;
        }
    if (write)
        for (const Access& earlier : granule.reads)
            if (clash(earlier)) {
                report_race(earlier, false, now, write, name);
                break;
            }
    // An access that this one follows, and that touched no other bytes, can be forgotten: what
    // races with it races with this one, unless this one is atomic.
    const auto superseded = [&](const Access& earlier) {
        return !(earlier.bytes & ~now.bytes) && now.atomic <= earlier.atomic &&
               happened_before(earlier, thread);
    };
    auto& same = write ? granule.writes : granule.reads;
    std::erase_if(same, superseded);
    if (write) {
        std::erase_if(granule.reads, superseded);
        granule.written |= now.bytes;
    }
    if (!local && same.size() >= kMostReaders) same.erase(same.begin());
    same.push_back(now);
}

struct Target {
    Granule* granules = nullptr;  // those from the first byte on
    uint32_t stamp = 0;
    bool local = false;
    std::string name;
    const char* memory = nullptr;  // its beginning, which a shared array is a part of
};

std::string beside(const std::string& name, long offset, size_t bytes) {
    if (offset < 0) return std::to_string(-offset) + " bytes before " + name;
    return std::to_string(offset - long(bytes)) + " bytes past the end of " + name + " (" +
           std::to_string(bytes) + " bytes)";
}

// Shared memory of this block, or of another one of its cluster.
bool find_shared(const char* address, size_t bytes, Target& target, std::string& trouble) {
    for (Block* block : self()->block->cluster) {
        if (!block->owns(address)) continue;
        if (!block->alive) {
            trouble = "in the shared memory of block " + text(block->index) + ", which has ended";
            return false;
        }
        const size_t offset = address - block->shared;
        const SharedArray* nearest = nullptr;
        for (const SharedArray& array : block->arrays) {
            if (offset >= array.offset && offset + bytes <= array.offset + array.bytes) {
                target.granules = &block->shadow[offset / 4];
                target.stamp = block->number;
                target.local = true;
                target.name = array.name;
                target.memory = block->shared;
                return true;
            }
            if (array.offset <= offset && (!nearest || array.offset > nearest->offset))
                nearest = &array;
        }
        trouble = nearest
                      ? "up to " + beside(std::string("shared array ") + nearest->name,
                                          long(offset + bytes - nearest->offset), nearest->bytes)
                      : "in shared memory that no array has";
        return false;
    }
    return false;
}

bool find_global(const char* address, size_t bytes, Target& target, std::string& trouble) {
    constexpr long kNear = 4096;  // past the end of one memory, rather than anywhere
    auto after = memories.upper_bound(address);
    if (after != memories.begin()) {
        auto& [begin, memory] = *std::prev(after);
        const size_t offset = address - begin;
        if (offset < memory.bytes && memory.freed) {
            trouble = "in " + memory.name + ", which was freed";
        } else if (offset + bytes <= memory.bytes) {
            // Granules lie at multiples of four; a memory may begin elsewhere.
            const size_t shift = reinterpret_cast<uintptr_t>(begin) % 4;
            target.granules = &memory.shadow[(offset + shift) / 4];
            target.stamp = launch_number;
            target.name = memory.name;
            target.memory = begin;
            return true;
        } else if (offset < memory.bytes + kNear) {
            trouble = "up to " + beside(memory.name, long(offset + bytes), memory.bytes);
        }
    }
    if (trouble.empty() && after != memories.end() && after->first - address < kNear)
        trouble = beside(after->second.name, long(address - after->first), after->second.bytes);
    return false;
}

// Constants and global variables of the program itself.
bool in_program(const void* address) {
    static std::unordered_map<uintptr_t, bool> pages;
    const auto page = reinterpret_cast<uintptr_t>(address) >> 12;
    if (auto entry = pages.find(page); entry != pages.end()) return entry->second;
    Dl_info module;
    return pages[page] = dladdr(address, &module) != 0;
}

enum class By { thread, atomic, copy, lane_copy };

void check(const void* where, size_t bytes, bool write, By by, const void* code, Site site) {
    Thread* thread = self();
    if (!thread || !bytes) return;
    if (on_a_stack(where)) return check_registers(*thread, where, bytes, write, code);
    const auto* address = static_cast<const char*>(where);
    const bool atomic = by == By::atomic;
    Access now{thread->block->number, uint16_t(thread->rank), 0, atomic, thread->time, code, site};
    if (by == By::copy || by == By::lane_copy) {
        now.rank = uint16_t(copier(*thread));
        now.time = thread->copy_time;
    }
    const std::lock_guard lock(guard);
    Target target;
    std::string trouble;
    if (!find_shared(address, bytes, target, trouble) &&
        (!trouble.empty() || !find_global(address, bytes, target, trouble))) {
        if (trouble.empty() && in_program(where)) return;
        return report(
            "out of bounds", site_of(now),
            std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes, " +
                (trouble.empty() ? "where the device has no memory (of the host?)" : trouble));
    }
    const auto number = reinterpret_cast<uintptr_t>(address);
    if ((by == By::thread || atomic) && bytes <= 16 && number % bytes)  // copies say it of themselves
        report("misaligned", site_of(now),
               std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                   " bytes at once, " + std::to_string(number % bytes) +
                   " bytes past a multiple of that, in " + target.name);
    if (counting && (by == By::thread || by == By::lane_copy))
        count_access(*thread, target.memory, address - target.memory, bytes, target.local, write,
                     code, site);
    const uintptr_t first = number / 4, last = (number + bytes - 1) / 4;
    for (uintptr_t at = first; at <= last; ++at) {
        now.bytes = 0;
        for (uintptr_t byte = 0; byte < 4; ++byte)
            if (const uintptr_t here = 4 * at + byte; here >= number && here < number + bytes)
                now.bytes |= 1 << byte;
        Granule& granule = target.granules[at - first];
        const bool stale = target.local && granule.stamp != target.stamp;
        if ((!write || atomic) && (now.bytes & ~(stale ? 0 : granule.written))) {
            report("uninitialised", site_of(now),
                   "reads " + target.name + " where nothing has been written");
            granule.written |= now.bytes;
        }
        check_granule(granule, target.stamp, now, write, target.local, target.name);
    }
}

}  // namespace

void check_access(const void* address, size_t bytes, bool write, const void* code) {
    check(address, bytes, write, By::thread, code, {"", 0});
}

// Copies see shared memory in their own way: what a thread has written there reaches them after its
// proxy fence alone.
static void check_shown(const void* where, size_t bytes, Site site) {
    const Thread& thread = *self();
    const auto* address = static_cast<const char*>(where);
    for (Block* block : thread.block->cluster) {
        if (!block->owns(address)) continue;
        const size_t offset = address - block->shared;
        for (size_t at = offset / 4; at <= (offset + bytes - 1) / 4; ++at)
            for (const Access& write : block->shadow[at].writes)
                if (block->shadow[at].stamp == block->number &&
                    write.rank < block->threads.size() &&
                    thread.known.of(Known::copies_of(write.block), write.rank) < write.time) {
                    const Site there = site_of(write);
                    return report("missing fence", site,
                                  "copies what " + name_of_thread(write) + " has written at line " +
                                      std::to_string(there.line) +
                                      ", without a proxy fence between the two",
                                  there);
                }
    }
}

// What an atomic operation hears from the fences of those that used the location before.
static void meet(const void* address) {
    Thread* thread = self();
    if (!thread || on_a_stack(address)) return;
    const std::lock_guard lock(guard);
    Location& location = locations[address];
    if (location.block != thread->block->number) {
        location.block = thread->block->number;
        location.in_block.clear();
    }
    thread->heard.join(location.everywhere);
    thread->heard.join(location.in_block);
    location.everywhere.join(thread->fenced[1]);
    location.in_block.join(thread->fenced[0]);
}

void check_atomic(const void* address, size_t bytes, Site site) {
    check(address, bytes, true, By::atomic, nullptr, site);
    meet(address);
}

// A store ends what earlier ones of the location have told; an update would hand it on.
void check_release(const uint32_t* flag, Site site) {
    check(flag, sizeof *flag, true, By::atomic, nullptr, site);
    const std::lock_guard lock(guard);
    Location& location = locations[flag];
    location = {};
    release(*self(), location.everywhere);
}

void check_acquire(const uint32_t* flag, Site site) {
    check(flag, sizeof *flag, false, By::atomic, nullptr, site);
    const std::lock_guard lock(guard);
    acquire(*self(), locations[flag].everywhere);
}

void check_access(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::thread, nullptr, site);
}

void check_copy(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::copy, nullptr, site);
    if (!write) check_shown(address, bytes, site);
}

void check_lane_copy(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::lane_copy, nullptr, site);
    if (!write) check_shown(address, bytes, site);
}

void check_mbarrier(const void* address, Site site) {
    check(address, 8, true, By::atomic, nullptr, site);
}

void check_end(Thread& thread) {
    Block& block = *thread.block;
    block.ended.join(thread.known);
    if (block.alive) return;
    const auto require = [&](const Access& access) {
        if (access.block == block.number ||
            block.ended.of(access.block, access.rank) >= access.time)
            return;
        report("out of bounds", site_of(access),
               "ends, and with its block the shared memory that " + name_of_thread(access) +
                   " uses here; nothing orders the two");
    };
    for (size_t at = 0; at < block.shared_used / 4; ++at) {
        if (block.shadow[at].stamp != block.number) continue;
        std::for_each(block.shadow[at].writes.begin(), block.shadow[at].writes.end(), require);
        std::for_each(block.shadow[at].reads.begin(), block.shadow[at].reads.end(), require);
    }
}

void check_volatile(const void* address, size_t bytes, bool write, const void* code) {
    // Others run before a read, not between what is heard and what is read.
    if (!write && self() && !on_a_stack(address))
        spin("a change of a volatile variable", locate(code));
    check(address, bytes, write, By::atomic, code, {"", 0});
    meet(address);
}

void check_launch() {
    ++launch_number;
    locations.clear();
}

void register_memory(const void* begin, size_t bytes, const std::string& name, bool written) {
    const std::lock_guard lock(guard);
    // What was freed, and lies where this does, is no more.
    const auto* first = static_cast<const char*>(begin);
    auto old = memories.upper_bound(first);
    if (old != memories.begin() && std::prev(old)->first + std::prev(old)->second.bytes > first)
        --old;
    while (old != memories.end() && old->first < first + bytes) old = memories.erase(old);
    Memory memory{bytes, name, std::vector<Granule>(bytes / 4 + 2)};
    if (written)
        for (Granule& granule : memory.shadow) granule.written = 15;
    memories[first] = std::move(memory);
}

void forget_memory(const void* begin) {
    const std::lock_guard lock(guard);
    const auto entry = memories.find(static_cast<const char*>(begin));
    if (entry == memories.end()) return;
    entry->second.freed = true;
    entry->second.shadow = {};
}

void mark_written(const void* begin, size_t bytes) {
    const std::lock_guard lock(guard);
    const auto* address = static_cast<const char*>(begin);
    auto after = memories.upper_bound(address);
    if (after == memories.begin() || std::prev(after)->second.freed) return;
    auto& [start, memory] = *std::prev(after);
    const size_t shift = reinterpret_cast<uintptr_t>(start) % 4, offset = address - start;
    for (size_t byte = offset; byte < std::min(offset + bytes, memory.bytes); ++byte)
        memory.shadow[(byte + shift) / 4].written |= 1 << (byte + shift) % 4;
}

}  // namespace simt
