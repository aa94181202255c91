"""The instruction as the prompt DreamOmni2's transformer was trained on, asked once per distinct request."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .chat import rewrite_request
from .generate import Reply, TokenStream

DEFAULT_MAX_NEW_TOKENS = 4096
CACHED_REPLIES = 128


class TextGenerator(Protocol):
    """What a rewrite needs of a loaded VLM."""

    @property
    def identity(self) -> str:
        """Names the model and its precision."""
        ...

    def generate_text(
        self,
        text: str,
        images: Sequence[Tensor],
        max_new_tokens: int,
        on_token: Callable[[TokenStream], None],
    ) -> Reply:
        """The greedy answer to pictures and text."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RewriteRequest:
    """Everything the VLM's answer depends on besides the VLM; pictures as B H W 3 tensors, source first."""

    instruction: str
    task: str
    images: Sequence[Tensor]
    content_key: str
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        rewrite_request(self.instruction, self.task)

    def key(self, identity: str) -> str:
        """Names this request to the VLM `identity`; equal keys get equal answers, decoding is greedy."""
        parts = [identity, self.task, self.instruction, self.content_key, self.max_new_tokens]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


class ReplyCache:
    """Replies by request key; the least recently used ones are forgotten."""

    def __init__(self, size: int = CACHED_REPLIES) -> None:
        self.size = size
        self.replies: OrderedDict[str, Reply] = OrderedDict()

    def get(self, key: str) -> Reply | None:
        """The reply stored under `key`."""
        if key in self.replies:
            self.replies.move_to_end(key)
        return self.replies.get(key)

    def put(self, key: str, reply: Reply) -> None:
        """Store `reply` under `key`."""
        self.replies[key] = reply
        self.replies.move_to_end(key)
        while len(self.replies) > self.size:
            self.replies.popitem(last=False)


def ask(
    vlm: TextGenerator,
    request: RewriteRequest,
    cache: ReplyCache,
    on_token: Callable[[TokenStream], None] = lambda stream: None,
) -> Reply:
    """The VLM's reply to `request`, from `cache` when the very same was asked before."""
    key = request.key(vlm.identity)
    reply = cache.get(key)
    if reply is None:
        text = rewrite_request(request.instruction, request.task)
        reply = vlm.generate_text(text, request.images, request.max_new_tokens, on_token)
        cache.put(key, reply)
    return reply
