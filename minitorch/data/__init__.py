"""Text to train on, tokens on disk, and batches whose order can be resumed."""

from minitorch.data.corpora import CORPORA, download, embedded_text, load_text
from minitorch.data.loader import BatchLoader, sequential_batches, split_tokens
from minitorch.data.tokens import open_tokens, write_tokens

__all__ = [
    "CORPORA",
    "BatchLoader",
    "download",
    "embedded_text",
    "load_text",
    "open_tokens",
    "sequential_batches",
    "split_tokens",
    "write_tokens",
]
