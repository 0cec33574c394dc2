"""Learning the merges of byte-pair encoding: merge the most frequent pair, count again, repeat.

Counting again from scratch costs a pass over the text for each merge. But a merge changes only the
words that hold its pair. So pairs are counted once, an index says which words hold each, and a heap
says which pair is the most frequent. Counts in the heap may be out of date, never too small: a pair
is counted in full in the step that makes its second half, and from then on can only be broken up.
An entry that turns out too large when it comes up is put back with its true count.

Ties: of pairs that are equally frequent the one with the smaller left id is merged, then the one
with the smaller right id, as BpeTrainer of Hugging Face's tokenizers does. (Others decide
otherwise; the paper, Sennrich et al. 2016, algorithm 1, leaves it open.)
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

Pair = tuple[int, int]


def learn_merges(
    words: list[list[int]],
    counts: Sequence[int],
    num_base: int,
    num_merges: int,
    min_frequency: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """At most num_merges pairs, in the order in which they are merged.

    words: the ids of each distinct word, all below num_base; changed in place. counts: how often
    each occurs. The id of merge i is num_base + i. progress: called with (done, num_merges).
    """
    frequency: defaultdict[Pair, int] = defaultdict(int)
    holders: defaultdict[Pair, set[int]] = defaultdict(set)  # words that hold, or once held, a pair
    for index, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[index]
            holders[pair].add(index)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        count, pair = heapq.heappop(heap)
        if -count != frequency[pair]:
            heapq.heappush(heap, (-frequency[pair], pair))
            continue
        if -count < max(min_frequency, 1):
            break
        new = num_base + len(merges)
        merges.append(pair)
        born = set()
        for index in holders.pop(pair):
            word = words[index]
            merged = words[index] = merge(word, pair, new)
            for old_pair in pairwise(word):
                frequency[old_pair] -= counts[index]
            for new_pair in pairwise(merged):
                frequency[new_pair] += counts[index]
                if new in new_pair:
                    holders[new_pair].add(index)
                    born.add(new_pair)
        for new_pair in born:
            heapq.heappush(heap, (-frequency[new_pair], new_pair))
        if progress:
            progress(len(merges), num_merges)
    return merges


def merge(word: Sequence[int], pair: Pair, new: int) -> list[int]:
    """The word with each occurrence of the pair replaced by `new`, from left to right."""
    merged = []
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            merged.append(new)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged
