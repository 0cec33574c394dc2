"""Learning the merges of byte-pair encoding: merge the most frequent pair, count again, repeat.

Counting again from scratch costs a pass over the text for each merge. But a merge changes nothing
except its own occurrences and their neighbours. So the words lie in one linked list, an index says
where each pair occurs, and a heap says which is the most frequent; all merges together then cost
as much as there are occurrences merged, however long a word is.

Counts in the heap may be out of date, but are never too small: a pair is born in the step that
makes the younger of its tokens, which counts it in full, and from then on occurrences only go.
A count that proves too large when it comes up is put back corrected.

Ties: of pairs that are equally frequent the one with the smaller left id is merged, then the one
with the smaller right id, as BpeTrainer of Hugging Face's tokenizers does. (Others decide
otherwise; the paper, Sennrich et al. 2016, algorithm 1, leaves it open.)
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

Pair = tuple[int, int]
_GONE = -1  # an id that is none: between words, and where a token was merged into its left one


def learn_merges(
    words: Iterable[tuple[Sequence[int], int]],
    num_base: int,
    num_merges: int,
    min_frequency: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pair]:
    """At most num_merges pairs, in the order in which they are merged.

    words: each distinct word, as ids below num_base, and how often it occurs. The id of merge i is
    num_base + i. It ends early where no pair occurs min_frequency times. progress: called after
    each merge with (done, num_merges).
    """
    ids, weights = [_GONE], [0]
    for word, count in words:
        ids += [*word, _GONE]
        weights += [count] * (len(word) + 1)
    following = [*range(1, len(ids)), 0]
    preceding = [*range(-1, len(ids) - 1)]

    frequency: defaultdict[Pair, int] = defaultdict(int)
    places: defaultdict[Pair, list[int]] = defaultdict(list)  # ascending, some out of date
    for place, pair in enumerate(pairwise(ids)):
        if _GONE not in pair:
            frequency[pair] += weights[place]
            places[pair].append(place)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapq.heapify(heap)

    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        negative_count, pair = heapq.heappop(heap)
        if -negative_count != frequency[pair]:
            heapq.heappush(heap, (-frequency[pair], pair))
            continue
        if frequency[pair] < max(min_frequency, 1):
            break
        new = num_base + len(merges)
        merges.append(pair)
        born = set()
        for left in places.pop(pair):
            right = following[left]
            if (ids[left], ids[right]) != pair:
                continue  # merged with something else since, or just now: aaa holds aa once
            before, after, weight = preceding[left], following[right], weights[left]
            ids[left], ids[right] = new, _GONE
            following[left], preceding[after] = after, left
            if ids[before] != _GONE:
                frequency[ids[before], pair[0]] -= weight
                frequency[ids[before], new] += weight
                places[ids[before], new].append(before)
                born.add((ids[before], new))
            if ids[after] != _GONE:
                frequency[pair[1], ids[after]] -= weight
                frequency[new, ids[after]] += weight
                places[new, ids[after]].append(left)
                born.add((new, ids[after]))
        for new_pair in born:
            heapq.heappush(heap, (-frequency[new_pair], new_pair))
        if progress:
            progress(len(merges), num_merges)
    return merges
