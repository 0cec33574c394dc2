#include "check.h"

#include <dlfcn.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "machine.h"
#include "source.h"
#include "traffic.h"

namespace simt {

bool checking = false;

void Known::join(const Known& other) {
    for (const auto& [number, theirs] : other.times_) {
        auto mine = std::find_if(times_.begin(), times_.end(),
                                 [&](const auto& entry) { return entry.first == number; });
        if (mine == times_.end()) {
            times_.emplace_back(number, theirs);
        } else if (mine->second != theirs) {
            auto both = std::make_shared<std::vector<Time>>(*mine->second);
            both->resize(std::max(both->size(), theirs->size()));
            for (size_t i = 0; i < theirs->size(); ++i)
                (*both)[i] = std::max((*both)[i], (*theirs)[i]);
            mine->second = both;
        }
    }
}

void Known::set(uint32_t block, Times times) {
    for (auto& entry : times_)
        if (entry.first == block) {
            entry.second = std::move(times);
            return;
        }
    times_.emplace_back(block, std::move(times));
}

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
auto& found = *new std::vector<Finding>;
auto& memories = *new std::map<const char*, Memory>;
auto& locations = *new std::unordered_map<const void*, Location>;
uint32_t launch_number = 1;
constexpr size_t kMostReaders = 16;  // of a place in global memory that are remembered

Place place_of(const Access& access) {
    return access.code ? locate(access.code) : Place{access.site.file, access.site.line};
}

void add(Finding finding) {
    const std::lock_guard lock(guard);
    for (Finding& old : found)
        if (old.kind == finding.kind && old.file == finding.file && old.line == finding.line &&
            old.other_file == finding.other_file && old.other_line == finding.other_line) {
            ++old.count;
            return;
        }
    if (const Thread* thread = self(); thread && finding.thread.empty()) {
        finding.thread = text(thread->index);
        finding.block = text(thread->block->index);
    }
    found.push_back(std::move(finding));
}

// A thread's copies are an agent of their own: its number follows those of all threads.
unsigned agents(const Block& block) {
    return 2 * block.threads.size();
}
unsigned copier(const Thread& thread) {
    return thread.block->threads.size() + thread.rank;
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
    const Place here = place_of(now), there = place_of(earlier);
    const auto verb = [](bool writes, bool atomic) {
        return atomic ? "updates" : writes ? "writes" : "reads";
    };
    add({"race", here.file, here.line,
         std::string(verb(write, now.atomic)) + " " + what + ", which " + name_of_thread(earlier) +
             " " + verb(earlier_write, earlier.atomic) + " at " + there.file + ":" +
             std::to_string(there.line) + "; nothing orders the two",
         there.file, there.line, "", "", 1});
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
    // An access that this one follows, and that touched no other bytes, can be forgotten.
    const auto superseded = [&](const Access& earlier) {
        return !(earlier.bytes & ~now.bytes) && happened_before(earlier, thread);
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
    if (!thread || !bytes || on_a_stack(where)) return;
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
        const Place here = place_of(now);
        add({"out of bounds", here.file, here.line,
             std::string(write ? "writes " : "reads ") + std::to_string(bytes) + " bytes, " +
                 (trouble.empty() ? "where the device has no memory (of the host?)" : trouble),
             "", 0, "", "", 1});
        return;
    }
    const auto number = reinterpret_cast<uintptr_t>(address);
    if (bytes <= 16 && number % bytes) {
        const Place here = place_of(now);
        add({"misaligned", here.file, here.line,
             std::string(write ? "writes " : "reads ") + std::to_string(bytes) +
                 " bytes at once, " + std::to_string(number % bytes) +
                 " bytes past a multiple of that, in " + target.name,
             "", 0, "", "", 1});
    }
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
            const Place here = place_of(now);
            add({"uninitialised", here.file, here.line,
                 "reads " + target.name + " where nothing has been written", "", 0, "", "", 1});
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
                    const Place there = place_of(write);
                    return add({"missing fence", site.file, site.line,
                                "copies what " + name_of_thread(write) + " has written at line " +
                                    std::to_string(there.line) +
                                    ", without a proxy fence between the two",
                                there.file, there.line, "", "", 1});
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

void check_access(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::thread, nullptr, site);
}

void check_proxy_fence(Thread& thread) {
    const uint32_t copies = Known::copies_of(thread.block->number);
    auto times = std::make_shared<std::vector<Time>>(agents(*thread.block));
    for (unsigned i = 0; i < times->size(); ++i) (*times)[i] = thread.known.of(copies, i);
    (*times)[thread.rank] = thread.time++;
    thread.known.set(copies, times);
}

void check_copy(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::copy, nullptr, site);
    if (!write) check_shown(address, bytes, site);
}

void check_lane_copy(const void* address, size_t bytes, bool write, Site site) {
    check(address, bytes, write, By::lane_copy, nullptr, site);
    if (!write) check_shown(address, bytes, site);
}

void check_volatile(const void* address, size_t bytes, bool write, const void* code) {
    check(address, bytes, write, By::atomic, code, {"", 0});
    meet(address);
    if (!write && self() && !on_a_stack(address)) {
        const Place& here = locate(code);
        spin("a change of a volatile variable", {here.file.c_str(), here.line});
    }
}

void check_fence(Thread& thread, bool device_wide) {
    thread.known.join(thread.heard);
    thread.fenced[0].clear();
    release(thread, thread.fenced[0]);
    if (device_wide) thread.fenced[1] = thread.fenced[0];
}

void release(Thread& thread, Known& to) {
    to.join(thread.known);
    const uint32_t block = thread.block->number;
    auto times = std::make_shared<std::vector<Time>>(agents(*thread.block));
    for (unsigned i = 0; i < times->size(); ++i) (*times)[i] = to.of(block, i);
    (*times)[thread.rank] = thread.time++;
    to.set(block, times);
}

void release_copies(const Thread& thread, Time time, Known& to) {
    const uint32_t block = thread.block->number;
    auto times = std::make_shared<std::vector<Time>>(agents(*thread.block));
    for (unsigned i = 0; i < times->size(); ++i) (*times)[i] = to.of(block, i);
    Time& mine = (*times)[copier(thread)];
    mine = std::max(mine, time);
    to.set(block, times);
}

void acquire(Thread& thread, const Known& from) {
    thread.known.join(from);
}

void check_barrier(const std::vector<Thread*>& threads, const Known& arrived) {
    Known all = arrived;
    for (const Thread* thread : threads) all.join(thread->known);
    // Own times, block by block: the threads of one block lie together.
    for (size_t begin = 0; begin < threads.size();) {
        const Block& block = *threads[begin]->block;
        auto times = std::make_shared<std::vector<Time>>(agents(block));
        for (unsigned i = 0; i < times->size(); ++i) (*times)[i] = all.of(block.number, i);
        for (; begin < threads.size() && threads[begin]->block == &block; ++begin)
            (*times)[threads[begin]->rank] = threads[begin]->time++;
        all.set(block.number, times);
    }
    for (Thread* thread : threads) thread->known = all;
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

void report(const char* kind, Site site, const std::string& message) {
    add({kind, site.file, site.line, message, "", 0, "", "", 1});
}

const std::vector<Finding>& findings() {
    return found;
}
void clear_findings() {
    found.clear();
}

void print_findings() {
    for (const Finding& f : found) {
        std::fprintf(stderr, "%s:%d: error: %s: ", f.file.c_str(), f.line, f.kind.c_str());
        if (!f.thread.empty())
            std::fprintf(stderr, "thread %s of block %s ", f.thread.c_str(), f.block.c_str());
        std::fprintf(stderr, "%s", f.message.c_str());
        if (f.count > 1) std::fprintf(stderr, " (%u times)", f.count);
        std::fputc('\n', stderr);
    }
}

static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + '"';
}

std::string findings_as_json() {
    std::string out = "[";
    for (const Finding& f : found) {
        if (out.size() > 1) out += ",\n ";
        out += "{\"kind\": " + quoted(f.kind) + ", \"file\": " + quoted(f.file) +
               ", \"line\": " + std::to_string(f.line) + ", \"message\": " + quoted(f.message) +
               ", \"other_file\": " + quoted(f.other_file) +
               ", \"other_line\": " + std::to_string(f.other_line) +
               ", \"block\": " + quoted(f.block) + ", \"thread\": " + quoted(f.thread) +
               ", \"count\": " + std::to_string(f.count) + "}";
    }
    return out + "]\n";
}

// A program's last act: its findings, to the file that SIMT_JSON names or else to the standard
// error.
static void tell() {
    std::fflush(stdout);
    const char* path = std::getenv("SIMT_JSON");
    FILE* file = path ? std::fopen(path, "w") : nullptr;
    if (file) {
        std::fputs(findings_as_json().c_str(), file);
        std::fclose(file);
    } else {
        print_findings();
    }
    if (!found.empty()) std::_Exit(1);
}

// A kernel that reads or writes where the processor has no memory ends the program: not before it
// has told what was found, the last access among it.
static void end_of_program(int signal) {
    if (const Thread* thread = self())
        std::fprintf(stderr, "%s ends the program with signal %d\n", describe(*thread).c_str(),
                     signal);
    tell();
    std::_Exit(128 + signal);
}

static void catch_signals() {
    static char stack[1 << 16];
    const stack_t alternative{stack, 0, sizeof stack};
    sigaltstack(&alternative, nullptr);
    struct sigaction action{};
    action.sa_handler = end_of_program;
    action.sa_flags = SA_ONSTACK | SA_RESETHAND;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &action, nullptr);
}

}  // namespace simt

// What the compiler has the kernels call.
using simt::check_access;
#define SIMT_CODE __builtin_return_address(0)

extern "C" {

// Called before main: a program of the check build tells at its end what was found.
void __tsan_init() {
    if (!simt::checking) {
        std::atexit(simt::tell);
        simt::catch_signals();
    }
    simt::checking = true;
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define SIMT_SIZE(n)                                   \
    void __tsan_read##n(void* p) {                     \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_write##n(void* p) {                    \
        check_access(p, n, true, SIMT_CODE);           \
    }                                                  \
    void __tsan_unaligned_read##n(void* p) {           \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_unaligned_write##n(void* p) {          \
        check_access(p, n, true, SIMT_CODE);           \
    }                                                  \
    void __tsan_volatile_read##n(void* p) {            \
        simt::check_volatile(p, n, false, SIMT_CODE);  \
    }                                                  \
    void __tsan_volatile_write##n(void* p) {           \
        simt::check_volatile(p, n, true, SIMT_CODE);   \
    }                                                  \
    void __tsan_unaligned_volatile_read##n(void* p) {  \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_unaligned_volatile_write##n(void* p) { \
        check_access(p, n, true, SIMT_CODE);           \
    }
SIMT_SIZE(1)
SIMT_SIZE(2)
SIMT_SIZE(4)
SIMT_SIZE(8)
SIMT_SIZE(16)
#undef SIMT_SIZE

void __tsan_read_range(void* p, size_t bytes) {
    check_access(p, bytes, false, SIMT_CODE);
}
void __tsan_write_range(void* p, size_t bytes) {
    check_access(p, bytes, true, SIMT_CODE);
}

// Atomics of the host's code in a kernel's file: done, not watched.
#define SIMT_ATOMIC(bits, T)                                                                      \
    T __tsan_atomic##bits##_load(const volatile T* p, int) {                                      \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                              \
    }                                                                                             \
    void __tsan_atomic##bits##_store(volatile T* p, T x, int) {                                   \
        __atomic_store_n(p, x, __ATOMIC_SEQ_CST);                                                 \
    }                                                                                             \
    T __tsan_atomic##bits##_exchange(volatile T* p, T x, int) {                                   \
        return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);                                       \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_add(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_sub(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_sub(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_and(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_and(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_or(volatile T* p, T x, int) {                                   \
        return __atomic_fetch_or(p, x, __ATOMIC_SEQ_CST);                                         \
    }                                                                                             \
    bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* old, T x, int, int) {    \
        return __atomic_compare_exchange_n(p, old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }                                                                                             \
    bool __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* old, T x, int, int) {      \
        return __atomic_compare_exchange_n(p, old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
#undef SIMT_ATOMIC
void __tsan_atomic_thread_fence(int) {}

}  // extern "C"
