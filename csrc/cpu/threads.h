// Loops over the processor's cores.
//
// What a loop computes may not depend on how many threads run it: the pieces into which it is cut
// are given by the caller, and threads only take one after the other. A kernel that adds up across
// pieces keeps one partial result for each and adds those in order. So the same input gives the
// same bits with any number of threads.

#pragma once

namespace minitorch {

// How many threads a loop may use, the caller's among them.
int num_threads();
void set_num_threads(int count);

// body(context, i, first) for every i in [0, count), each once, on any thread, in any order; a thread
// begins with those that it began with in the last loop of so many. first: it is the thread's first in
// this loop. Returns when all are done. A loop inside of a loop, or while another Python thread runs one,
// runs on its caller alone.
void parallel_for(long count, void (*body)(void* context, long i, bool first), void* context);
// The same, and every thread takes the next of all: for pieces that grow shorter.
void parallel_one_after_another(long count, void (*body)(void* context, long i, bool first),
                                void* context);

// body(i), or body(i, first).
template <typename Body>
void call_body(void* context, long i, bool first) {
    const Body& body = *static_cast<const Body*>(context);
    if constexpr (requires { body(i, first); })
        body(i, first);
    else
        body(i);
}
template <typename Body>
void parallel_for(long count, const Body& body) {
    void* context = const_cast<void*>(static_cast<const void*>(&body));
    count == 1 ? call_body<Body>(context, 0, true) : parallel_for(count, call_body<Body>, context);
}
template <typename Body>
void parallel_one_after_another(long count, const Body& body) {
    parallel_one_after_another(count, call_body<Body>,
                               const_cast<void*>(static_cast<const void*>(&body)));
}

// body(begin, end) over [0, count) in pieces of `grain` (the last one may be shorter).
template <typename Body>
void parallel_ranges(long count, long grain, Body&& body) {
    if (grain < 1) grain = 1;
    parallel_for((count + grain - 1) / grain, [&](long piece) {
        const long begin = piece * grain;
        body(begin, begin + grain < count ? begin + grain : count);
    });
}

// Loops that follow one another, each of which begins when the one before has ended.
struct Piece {
    long step, number;  // of which loop, and which one
};
struct Steps {
    long count;          // how many loops
    const long* pieces;  // of each
    // first: the thread computes its first piece of this loop.
    void (*body)(void* context, Piece piece, bool first);
    // In small turns, what helps a piece while it waits for its loop to begin; false: no more of it.
    bool (*meanwhile)(void* context, Piece piece, long turn);
};

// A thread takes a piece of the next loop as soon as there is none left of this one; between loops
// there is nothing but waiting for the other threads' last pieces.
void parallel_steps(const Steps& steps, void* context);

// The number of rows that make a piece worth a thread's while, for rows of so much work (elements
// read or written, say).
inline long rows_per_piece(long work_per_row) {
    constexpr long kWorth = 1 << 14;
    return work_per_row >= kWorth ? 1 : kWorth / (work_per_row > 0 ? work_per_row : 1);
}

}  // namespace minitorch
