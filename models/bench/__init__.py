"""Benchmarks: this engine and its peers in turns, beside what the machine can do.

A suite is a module whose `cases` yields `Case`s. Peers are other libraries, imported only when a
benchmark asks for them; they are in the extra `peers`.
"""
