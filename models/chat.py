"""Conversations as tokens: what a template writes around each message, and which tokens count.

Three templates, by what a conversation with one question and one answer becomes:

    chatml   <|im_start|>user⏎Hi<|im_end|>⏎<|im_start|>assistant⏎Hello<|im_end|>⏎
    turns    <|user|>Hi<|end|><|assistant|>Hello<|end|>
    plain    HiHello<|endoftext|>

The mask is true at the tokens that the model has to write: those of the assistant's messages, and
the token that ends each of them. Without the latter a model never learns to stop. The mask comes
from what writes the tokens; searching for it in a finished text would find what a user has pasted.

A message is encoded by itself, as ordinary text: a special token has an id that no message can
produce, however its words read. One exception: where the tokenizer has tokens for the tags of
thinking and answers, the assistant writes those, and nobody else does. Since prompts and answers
never share a token, a prompt that is continued by a model has the same tokens as in training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minitorch.errors import ConfigError, DataError
from minitorch.tokenizers import Tokenizer
from models.environments.answers import TAGS

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """Who says what. role: one of ROLES."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"message: expected a role of {', '.join(ROLES)}; got {self.role!r}")
        if not isinstance(self.content, str):
            raise DataError(f"message: expected a text as content; got {self.content!r}")


@dataclass(frozen=True)
class Rendered:
    """A conversation's token ids, and for each whether the model has to write it."""

    ids: list[int]
    mask: list[bool]


@dataclass(frozen=True)
class Template:
    """before: what stands before a message, by role; the roles are those that it can write.

    end: the special token that ends the messages of `ended`. after: what follows it. special: the
    special tokens in `before`.
    """

    before: Mapping[str, str]
    end: str
    ended: Sequence[str] = ROLES
    after: str = ""
    special: Sequence[str] = ()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """All that the tokenizer must have."""
        return (*self.special, self.end)


TEMPLATES: dict[str, Template] = {
    "chatml": Template(
        {role: f"<|im_start|>{role}\n" for role in ROLES},
        end="<|im_end|>",
        after="\n",
        special=("<|im_start|>",),
    ),
    "turns": Template(
        {role: f"<|{role}|>" for role in ROLES},
        end="<|end|>",
        special=tuple(f"<|{role}|>" for role in ROLES),
    ),
    "plain": Template(dict.fromkeys(ROLES[:3], ""), end="<|endoftext|>", ended=("assistant",)),
}
"""By name. The first that a tokenizer has the tokens of is taken to be its own."""


def template_of(tokenizer: Tokenizer) -> Template:
    """The template whose special tokens the tokenizer has; ConfigError where there is none."""
    for template in TEMPLATES.values():
        if tokenizer.special_tokens.keys() >= set(template.special_tokens):
            return template
    raise ConfigError(
        f"chat: the tokenizer has no template's special tokens, only "
        f"{list(tokenizer.special_tokens)}; train with `minitorch sft`, which adds them"
    )


def with_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with the special tokens of a template; ids that it has do not change.

    Raises ConfigError where the tokenizer has those of another one already.
    """
    wanted = TEMPLATES[name]
    missing = [token for token in wanted.special_tokens if token not in tokenizer.special_tokens]
    extended = tokenizer.with_special_tokens(missing) if missing else tokenizer
    if template_of(extended) is not wanted:
        (other,) = (known for known in TEMPLATES if TEMPLATES[known] is template_of(extended))
        raise ConfigError(
            f"template: this model's tokenizer has the special tokens of {other!r} already; got "
            f"{name!r}. Set template={other}"
        )
    return extended


def end_id(tokenizer: Tokenizer) -> int:
    """The token that ends the assistant's messages."""
    return tokenizer.special_tokens[template_of(tokenizer).end]


def render(
    messages: Sequence[Message], tokenizer: Tokenizer, *, last_only: bool = False
) -> Rendered:
    """The tokens of a conversation in the tokenizer's template, and which the model has to write.

    last_only: of several answers the last alone. Raises DataError for a role that the template does
    not have, and where the assistant says nothing.
    """
    template = template_of(tokenizer)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise DataError("chat: expected a message of the assistant; got none")
    counted = answers[-1:] if last_only else answers
    ids: list[int] = []
    mask: list[bool] = []
    for i, message in enumerate(messages):
        opening, written, closing = _parts(message, template, tokenizer)
        ids += opening + written + closing
        mask += [False] * len(opening) + [i in counted] * len(written) + [False] * len(closing)
    return Rendered(ids, mask)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model has to write the assistant's next message."""
    template = template_of(tokenizer)
    ids = [
        token
        for message in messages
        for part in _parts(message, template, tokenizer)
        for token in part
    ]
    return ids + tokenizer.encode(template.before["assistant"], allowed_special="all")


def content_ids(message: Message, tokenizer: Tokenizer) -> list[int]:
    """The tokens of what a message says, without those of the template."""
    tags = TAGS if message.role == "assistant" else ()
    known = [tag for tag in tags if tag in tokenizer.special_tokens]
    return tokenizer.encode(message.content, allowed_special=known)


def _parts(
    message: Message, template: Template, tokenizer: Tokenizer
) -> tuple[list[int], list[int], list[int]]:
    """What opens a message, its content with the token that ends it, and what follows."""
    if message.role not in template.before:
        raise DataError(
            f"chat: this template writes messages of {', '.join(template.before)}; got one of "
            f"{message.role!r}"
        )
    special = template.special_tokens
    opening = tokenizer.encode(template.before[message.role], allowed_special=special)
    written = content_ids(message, tokenizer)
    if message.role not in template.ended:
        return opening, written, []
    return (
        opening,
        [*written, tokenizer.special_tokens[template.end]],
        tokenizer.encode(template.after),
    )
