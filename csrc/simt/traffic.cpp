#include "traffic.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>
#include <utility>

#include "machine.h"
#include "source.h"

namespace simt {
namespace {

constexpr size_t kBank = 4, kBanks = 32, kSector = 32, kAlignment = 256;

struct Instruction {
    const char* kernel;
    const void* code;
    const char* file;
    int line;
    size_t bytes;
    bool shared, write;

    auto operator<=>(const Instruction&) const = default;
};

// What the lanes of a warp want at once.
struct Request {
    unsigned lanes = 0;
    uintptr_t memory = 0;  // the first lane's
    uintptr_t address[kWarp];
};

// The requests of one instruction that may still grow, and how many of them each lane has joined.
struct Open {
    std::vector<Request> requests;
    unsigned joined[kWarp] = {};
};

struct Cost {
    uint64_t transfers = 0, least = 0;
};

struct Total {
    uint64_t requests = 0;
    Cost cost, worst;
    std::array<long, kWarp> lanes;  // of the worst request: where in its memory each was, or -1
};

// Never destroyed: a program's last act is to write them.
auto& open_requests = *new std::map<std::pair<const Block*, unsigned>, std::map<Instruction, Open>>;
auto& totals = *new std::map<Instruction, Total>;

void keep_different(std::vector<uintptr_t>& numbers) {
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
}

// Which pieces of so many bytes the lanes from `first` to `end` touch.
std::vector<uintptr_t> pieces(const Request& request, unsigned first, unsigned end, size_t bytes,
                              size_t piece) {
    std::vector<uintptr_t> touched;
    for (unsigned lane = first; lane < std::min(end, kWarp); ++lane)
        if (request.lanes >> lane & 1)
            for (uintptr_t at = request.address[lane] / piece;
                 at <= (request.address[lane] + bytes - 1) / piece; ++at)
                touched.push_back(at);
    keep_different(touched);
    return touched;
}

Cost cost_in_shared(const Request& request, size_t bytes) {
    Cost cost;
    const unsigned together = unsigned(kBank * kBanks / std::clamp(bytes, kBank, kBank * kBanks));
    for (unsigned first = 0; first < kWarp; first += together) {
        const auto words = pieces(request, first, first + together, bytes, kBank);
        std::array<unsigned, kBanks> asked{};
        for (const uintptr_t word : words) ++asked[word % kBanks];
        cost.transfers += *std::max_element(asked.begin(), asked.end());
        cost.least += (words.size() + kBanks - 1) / kBanks;
    }
    return cost;
}

Cost cost_in_global(const Request& request, size_t bytes) {
    std::vector<uintptr_t> begins;
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (request.lanes >> lane & 1) begins.push_back(request.address[lane]);
    keep_different(begins);
    uintptr_t wanted = 0, end = 0;  // bytes, up to `end`
    for (const uintptr_t begin : begins) {
        wanted += begin + bytes - std::max(begin, end);
        end = begin + bytes;
    }
    return {pieces(request, 0, kWarp, bytes, kSector).size(), (wanted + kSector - 1) / kSector};
}

void add(const Instruction& instruction, const Request& request) {
    const Cost cost = instruction.shared ? cost_in_shared(request, instruction.bytes)
                                         : cost_in_global(request, instruction.bytes);
    Total& total = totals[instruction];
    ++total.requests;
    total.cost.transfers += cost.transfers;
    total.cost.least += cost.least;
    if (cost.transfers <= total.worst.transfers) return;
    total.worst = cost;
    for (unsigned lane = 0; lane < kWarp; ++lane)
        total.lanes[lane] =
            request.lanes >> lane & 1 ? long(request.address[lane] - request.memory) : -1;
}

void close(const Block& block, unsigned warp) {
    const auto entry = open_requests.find({&block, warp});
    if (entry == open_requests.end()) return;
    for (const auto& [instruction, open] : entry->second)
        for (const Request& request : open.requests) add(instruction, request);
    open_requests.erase(entry);
}

// A program's counts go to the file that SIMT_COUNTS names.
void write_counts() {
    if (FILE* file = std::fopen(std::getenv("SIMT_COUNTS"), "w")) {
        std::fputs(traffic_as_json().c_str(), file);
        std::fclose(file);
    }
}

}  // namespace

bool counting = std::getenv("SIMT_COUNTS") && !std::atexit(write_counts);

void count_access(const Thread& thread, const void* memory, size_t offset, size_t bytes,
                  bool shared, bool write, const void* code, Site site) {
    const Block& block = *thread.block;
    const Instruction instruction{
        block.grid->launch.name, code, site.file, site.line, bytes, shared, write};
    Open& open = open_requests[{&block, thread.warp()}][instruction];
    const unsigned lane = thread.lane(), turn = open.joined[lane]++;
    if (turn == open.requests.size()) open.requests.emplace_back();
    Request& request = open.requests[turn];
    const auto begin = reinterpret_cast<uintptr_t>(memory) / kAlignment * kAlignment;
    if (!request.lanes) request.memory = begin;
    request.lanes |= 1u << lane;
    request.address[lane] = begin + offset;
}

void in_step(Block& block, unsigned warp, unsigned lanes) {
    const size_t first = warp * kWarp, end = std::min(first + kWarp, block.threads.size());
    for (size_t rank = first; rank < end; ++rank)
        if (block.threads[rank].state != Thread::done && !(lanes >> (rank - first) & 1)) return;
    close(block, warp);
}

void in_step(const std::vector<Thread*>& threads) {
    std::map<std::pair<Block*, unsigned>, unsigned> warps;
    for (const Thread* thread : threads)
        warps[{thread->block, thread->warp()}] |= 1u << thread->lane();
    for (const auto& [warp, lanes] : warps) in_step(*warp.first, warp.second, lanes);
}

void end_of_block(Block& block) {
    for (unsigned warp = 0; warp * kWarp < block.threads.size(); ++warp) close(block, warp);
}

void clear_traffic() {
    open_requests.clear();
    totals.clear();
}

// Instructions of one line that are of one kind count as one: a loop that was unrolled, say.
static std::map<std::tuple<std::string, std::string, int, bool, bool, size_t>, Total> by_line() {
    std::map<std::tuple<std::string, std::string, int, bool, bool, size_t>, Total> lines;
    for (const auto& [one, total] : totals) {
        const Site place = one.code ? locate(one.code) : Site{one.file, one.line};
        Total& sum = lines[{one.kernel, place.file, place.line, one.shared, one.write, one.bytes}];
        sum.requests += total.requests;
        sum.cost.transfers += total.cost.transfers;
        sum.cost.least += total.cost.least;
        if (total.worst.transfers > sum.worst.transfers) {
            sum.worst = total.worst;
            sum.lanes = total.lanes;
        }
    }
    return lines;
}

std::string traffic_as_json() {
    std::string out = "[";
    for (const auto& [key, total] : by_line()) {
        const auto& [kernel, file, line, shared, write, bytes] = key;
        const auto number = [](auto x) { return std::to_string(x); };
        if (out.size() > 1) out += ",\n ";
        out += "{\"kernel\": \"" + kernel + "\", \"file\": \"" + file +
               "\", \"line\": " + number(line) + ", \"memory\": \"" +
               (shared ? "shared" : "global") + "\", \"access\": \"" + (write ? "write" : "read") +
               "\", \"bytes\": " + number(bytes) + ", \"requests\": " + number(total.requests) +
               ", \"transfers\": " + number(total.cost.transfers) +
               ", \"least\": " + number(total.cost.least) + ", \"lanes\": [";
        for (unsigned lane = 0; lane < kWarp; ++lane)
            out += (lane ? ", " : "") +
                   (total.lanes[lane] < 0 ? std::string("null") : number(total.lanes[lane]));
        out += "]}";
    }
    return out + "]\n";
}

}  // namespace simt
