"""A loaded package: everything of it that requests share."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np

from avl_plugins.errors import AvlError, PolicyError, quoted
from avl_plugins.logits import Logits
from avl_plugins.policies import Policy, When, parse
from avl_plugins.schema import COMPUTED, ROW_TYPES
from avl_runtime.execute import executor_on, load_backend
from avl_runtime.execute.protocol import BackendError
from avl_runtime.generate.decode import Decoder
from avl_runtime.generate.given import choose
from avl_runtime.generate.grammars import Grammars
from avl_runtime.generate.prefill import Reading, prefill
from avl_runtime.generate.prefix import Prefix
from avl_runtime.generate.sequence import Sequence
from avl_runtime.generate.whites import Whites
from avl_runtime.kv.prefixes import PrefixCache
from avl_runtime.machine.resources import cores, usable_memory
from avl_runtime.package.info import check_bias, check_vision
from avl_runtime.package.manifest import Manifest
from avl_runtime.package.package import Package
from avl_runtime.package.quantization import EXPERTS
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.prompts.option_values import whole
from avl_runtime.prompts.processor import Processor, Prompt
from avl_runtime.prompts.rows import PromptRows
from avl_runtime.requests.on_disk import disk_of

AUTO = "auto"
MOST_PREFIXES = 1 << 30  # bytes of rows that "auto" keeps; an eighth of a smaller memory
STORED_BITS = {"F32": 32, "F16": 16, "BF16": 16, "I8": 8, "I4": 4}


class ClosedError(AvlError):
    """A model was closed."""

    def __init__(self) -> None:
        super().__init__("expected a model that is open, found one that was closed; load it again")


class Loaded:
    """Everything of a package that requests share.

    Attributes:
        package, processor, backend: what was loaded.
        features: image features by content.
        embedding: the token embedding matrix.
        executor: how the backend runs the decoder.
        prefixes: rows of prompts for later ones that begin alike; None: none are kept.
        grammars: what replies can be held to.
    """

    def __init__(
        self,
        package: Package,
        backend: str,
        threads: int | None,
        park: str = "device",
        kv: str = "auto",
        compute: str = "auto",
        prefix_cache: int | str | None = None,
        cache_dir: str | Path | None = None,
        cache_limit: int | None = None,
    ) -> None:
        """
        Raises:
            AvlError: the backend cannot run the package, or cannot keep what it was asked to.
        """
        limit = _limit(prefix_cache)
        on_disk = disk_of(cache_dir, cache_limit, limit)
        self.package = package
        self.processor = Processor.from_package(package)
        self.embedding = Embedding(package)
        self.backend = load_backend(backend, package, threads, park, kv=kv, compute=compute)
        self._threads = threads or cores()
        self.executor = executor_on(self.backend, package.manifest)
        self.features = FeatureCache(self.backend, package.manifest.encoded)
        if not self.executor.shares:
            asked = {"prefix_cache": prefix_cache not in (None, AUTO), "cache_dir": on_disk}
            if option := next((name for name, found in asked.items() if found), None):
                raise BackendError(f"{option}: {self._unshared()}; leave it out")
        shares = limit and self.executor.shares
        disk = None if on_disk is None else on_disk.opened(package, self.executor, threads, compute)
        self.prefixes = PrefixCache(limit, disk) if shares else None
        manifest = package.manifest
        self.grammars = Grammars(
            self.processor.tokenizer, manifest.dims.vocab_size, manifest.tokens.eos
        )
        self._whites = Whites(self.processor, self.sequence, self.prefill)
        self._closed = False

    def close(self) -> None:
        """Let go of the backend and what lies on it; a second time nothing happens."""
        if not self._closed:
            self._closed = True
            if self.prefixes is not None and self.prefixes.disk is not None:
                self.prefixes.disk.close()
            del self.backend, self.executor, self.features, self.embedding, self.prefixes

    def check_open(self) -> None:
        """Refuse a model that was closed.

        Raises:
            ClosedError: it was.
        """
        if self._closed:
            raise ClosedError

    def _unshared(self) -> str:
        """Why no rows are kept for other prompts, as expected and found."""
        reach = self.package.manifest.reach
        if reach.window is not None:
            return f"expected layers that keep all of their rows, found {reach}"
        return (
            "expected the backend ort-cpu, whose rows lie in the host's memory, found "
            f"{self.executor.name}"
        )

    def sequence(self, policy: Policy) -> Sequence:
        """A new conversation with nothing in its cache."""
        self.check_open()
        return Sequence(self.executor, self.package.manifest, policy)

    def decoder(self) -> Decoder:
        """Decode steps over sequences of this package."""
        self.check_open()
        return Decoder(self.executor, self.package.manifest, self.embedding)

    def prefill(
        self, sequence: Sequence, prompt: Prompt, logits: Logits = Logits.ALL, steps: int = 0
    ) -> Reading:
        """Read a prompt, a picture or a chunk each time; see `generate.prefill`."""
        self.check_open()
        manifest, rows, prefix = self.package.manifest, None, None
        choosing = [action for action in sequence.actions if When.EMBEDDED in action.when]
        if choosing and prompt.media:
            rows = yield from self.embed(prompt)
            asked = self.embedding.words(self.processor.asked_ids(prompt))
            before = len(sequence.visuals)
            rows = yield from choose(rows, prompt, choosing, asked, before, self._threads)
        factors = yield from self._whites.factors(sequence.actions, prompt)
        # Rows that count tokens otherwise are no others' prefix.
        if self.prefixes is not None and not sequence.length and factors is None:
            prefix = Prefix(self.prefixes, sequence, manifest, prompt, rows)
            yield from prefix.fetch()
        if rows is None:
            rows = yield from self.embed(prompt, 0 if prefix is None else prefix.unread)
        return (yield from prefill(sequence, manifest, rows, logits, steps, prefix, factors))

    def embed(self, prompt: Prompt, first: int = 0) -> Generator[None, None, PromptRows]:
        """What the decoder reads of a prompt; stops behind each run of an encoder.

        Args:
            first: the first token that is read; rows of those before it are whatever they are.
        """
        self.check_open()
        mask, layers = prompt.image_mask, self.package.manifest.deepstack_layers
        read = [(media, at) for media, at in prompt.places() if len(at) and at[-1] >= first]
        features = yield from self.features.encoding([media for media, _ in read])
        # Ids of visual tokens may lie outside the embedding matrix.
        texts = np.flatnonzero(~mask[first:]) + first
        text = self.embedding.lookup(prompt.input_ids[texts])
        hidden = np.zeros((len(mask), text.shape[1]), text.dtype)
        hidden[texts] = text
        columns = self.package.manifest.dims.hidden_size
        deepstack = np.zeros((len(layers), len(mask), columns), hidden.dtype)
        wide = features[0].attention.shape[1] if features else 0
        attention = np.zeros((len(mask), wide), np.float32)
        for (_, at), part in zip(read, features, strict=True):
            hidden[at] = self.embedding.shown(part.rows)
            deepstack[:, at] = part.deepstack
            attention[at] = part.attention
        return PromptRows(
            prompt.input_ids,
            mask,
            hidden,
            deepstack,
            prompt.positions,
            prompt.next_position,
            prompt.ends,
            attention=attention,
        )

    def check(self, policy: Policy) -> None:
        """Refuse a policy this package cannot serve.

        Raises:
            PolicyError: it drops tokens after a layer at which the decoder is not split, chooses by
                what the encoder does not tell, has steps computed again where they cannot be,
                merges rows that are not at hand, or drafts some that could not be checked.
            ClosedError: the model was closed.
        """
        self.check_open()
        policy.check(self.package.manifest.splits(), self.package.manifest.dims.num_layers)
        check_vision(policy, self.package.manifest)
        check_bias(policy, self.package.manifest)
        if any(one.weighs or one.evens for one in policy.actions()) and not self.executor.repeats:
            raise PolicyError(
                f"{policy}: expected steps that can be computed again, and heads that count tokens "
                f"differently, found {self.executor.name}, which does neither; use ort-cpu"
            )
        if any(one.merges for one in policy.actions()) and not self.executor.at_hand:
            raise PolicyError(
                f"{policy}: expected rows that the host can write, as some are merged into others, "
                f"found {self.executor.name}, whose rows stay on the device; use ort-cpu"
            )
        window = self.package.manifest.reach.window
        if window is not None and any(action.closes_up for action in policy.actions()):
            raise PolicyError(
                f"{policy}: expected layers without a window for positions=renumber, as windows "
                f"count tokens where they stood, found {self.package.manifest.reach}; leave it out"
            )
        if policy.drafting() is None:
            return
        if self.executor.most_answers <= 1:
            raise PolicyError(
                f"{policy}: expected graphs that give logits of several tokens, found "
                f"{self.executor.name} and a package that give the last one's alone; choose dense, "
                "or export again and run on ort-cpu"
            )
        if ROW_TYPES.get(self.executor.kv, COMPUTED).parked_bits is not None:
            raise PolicyError(
                f"{policy}: expected rows that are all kept alike, as dense attention has them, "
                f"found --kv {self.executor.kv}; use --kv int8, or another policy"
            )


def _limit(prefix_cache: int | str | None) -> int:
    """Bytes of rows that are kept for later prompts.

    Raises:
        OptionError: it is no number of bytes, AUTO or None.
    """
    if prefix_cache is None:
        return 0
    if prefix_cache == AUTO:
        memory = usable_memory()
        return MOST_PREFIXES if memory is None else min(MOST_PREFIXES, memory // 8)
    return whole("prefix_cache", prefix_cache, 1, 'bytes; "auto" chooses, None keeps none')


def weights_read(manifest: Manifest) -> int:
    """About how many bytes of weights a step reads: of linears alone, by their bits."""
    dims, quantized = manifest.dims, manifest.quantization
    sizes = sum(map(dims.head_size, range(dims.num_layers)))
    attention = 2 * sizes * (dims.num_heads + dims.num_kv_heads)
    layers, mixed = range(dims.num_layers), dims.experts.layers if dims.experts else ()
    widths = sum(dims.width(layer) for layer in layers if layer not in mixed)
    linears = dims.hidden_size * (attention + 3 * widths)
    experts = dims.hidden_size * 3 * sum(map(dims.width, mixed))
    bits = stored = STORED_BITS[manifest.embedding.dtype]
    if quantized is not None:  # whatever the table is
        stored = quantized.bits if EXPERTS in quantized.parts else STORED_BITS["BF16"]
        if "decoder" in quantized.parts:
            bits = quantized.bits
    return ((linears + dims.vocab_size * dims.hidden_size) * bits + experts * stored) // 8


def as_policy(policy: str | Policy) -> Policy:
    """A policy as callers name it: itself, or its name and options as text.

    Raises:
        PolicyError: there is no such policy.
    """
    if isinstance(policy, str):
        return parse(policy)
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"expected a policy, or its name and options as text, found {quoted(policy)}; write "
            "policy='avl'"
        )
    return policy
