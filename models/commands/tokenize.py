"""`minitorch tokenize`: learn a vocabulary, look at how a text is cut, write a file of tokens."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from minitorch.data import load_text, write_tokens
from minitorch.errors import CheckpointError
from minitorch.tokenizers import BPETokenizer, Tokenizer
from minitorch.tokenizers import load as load_tokenizer
from models import checkpoints

FILE = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
TOKENIZER = click.option(
    "--tokenizer",
    "path",
    type=FILE,
    required=True,
    help="A tokenizer.json, or a run's folder.",
)


@click.group(
    epilog="""
    \b
    Examples:
      minitorch tokenize train book.txt --vocab-size 2048 --out book.json
      minitorch tokenize show 'How is this cut?' --tokenizer book.json
      minitorch tokenize encode book.txt --tokenizer book.json --out book.tokens
      minitorch train --data book.tokens --set tokenizer=book.json
    """
)
def tokenize() -> None:
    """Train a tokenizer, or show how a text is split into tokens."""


@tokenize.command(epilog="Example: minitorch tokenize train embedded --vocab-size 512 --out t.json")
@click.argument("source")
@click.option("--vocab-size", default=1024, show_default=True, type=click.IntRange(min=256))
@click.option("--out", type=FILE, default="tokenizer.json", show_default=True)
@JSON
def train(source: str, vocab_size: int, out: Path, as_json: bool) -> None:
    """Learn a byte-level BPE from SOURCE: a file, a folder, a URL, or `embedded`."""
    text = load_text(source)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("learning merges", total=None)
        tokenizer = BPETokenizer.train(
            text,
            vocab_size,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    tokenizer.save(out)
    result = {"out": str(out), "vocab_size": tokenizer.vocab_size} | _counts(
        text, len(tokenizer.encode_array(text))
    )
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(
        f"{out}: {tokenizer.vocab_size:,} tokens; the text has {result['count']:,} of them, "
        f"{result['bytes_per_token']:.2f} bytes to each"
    )


@tokenize.command(epilog="Example: minitorch tokenize show 'to be or not' --tokenizer t.json")
@click.argument("text")
@TOKENIZER
@JSON
def show(text: str, path: Path, as_json: bool) -> None:
    """Show the tokens of TEXT, each with its id."""
    tokenizer = _load(path)
    ids = tokenizer.encode(text, allowed_special="all")
    if as_json:
        names = [tokenizer.id_to_token(token) for token in ids]
        result = {"ids": ids, "tokens": names} | _counts(text, len(ids))
        click.echo(json.dumps(result, ensure_ascii=False))
        return
    line = Text()
    for i, token in enumerate(ids):
        piece = tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace")
        line.append(piece.replace("\n", "⏎"), style=("reverse", "bold underline")[i % 2])
        line.append(f" {token}  ", style="dim")
    console = Console(highlight=False)
    console.print(line)
    console.print(f"{len(ids)} tokens, {len(text)} characters, {len(text.encode())} bytes")


@tokenize.command(
    epilog="Example: minitorch tokenize encode book.txt --tokenizer book.json --out book.tokens"
)
@click.argument("source")
@TOKENIZER
@click.option("--out", type=FILE, required=True, help="File to write; train with --data FILE.")
@JSON
def encode(source: str, path: Path, out: Path, as_json: bool) -> None:
    """Write the tokens of SOURCE to a file that training reads without loading it whole."""
    if out.suffix != ".tokens":
        raise click.UsageError(f"--out {out}: expected a name that ends in .tokens")
    text = load_text(source)
    ids = _load(path).encode_array(text)
    write_tokens(out, ids)
    result = {"out": str(out)} | _counts(text, len(ids))
    click.echo(json.dumps(result) if as_json else f"{out}: {len(ids):,} tokens")


def _load(path: Path) -> Tokenizer:
    if path.is_dir():
        path = checkpoints.model_folder(path) / "tokenizer.json"
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; `minitorch tokenize train` makes one")
    return load_tokenizer(path)


def _counts(text: str, tokens: int) -> dict[str, float]:
    size = len(text.encode())
    return {"count": tokens, "bytes": size, "bytes_per_token": size / max(tokens, 1)}
