"""Where a package's decoder runs and its caches lie: on the host, or on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from avl_plugins.policies import Plan
from avl_runtime.execute import HostBackend
from avl_runtime.execute.device.backend import DeviceBackend
from avl_runtime.generate.conversation import Conversation
from avl_runtime.generate.decode import Decoder
from avl_runtime.generate.device_decode import DeviceDecoder
from avl_runtime.generate.device_growth import device_dense_bytes
from avl_runtime.generate.device_prompt import DeviceConversation
from avl_runtime.generate.host_conversation import HostConversation
from avl_runtime.generate.loop import Steps
from avl_runtime.generate.results import DeviceBytes
from avl_runtime.kv.cache import dense_bytes
from avl_runtime.package.manifest import Manifest
from avl_runtime.prompts.embedding import Embedding

Own = TypeVar("Own", HostConversation, DeviceConversation)


class Execution(Protocol):
    """Reads prompts and decodes on one backend."""

    def conversation(self) -> Conversation:
        """A new conversation with nothing in its cache."""
        ...

    def decoder(self, conversations: Sequence[Conversation], plan: Plan, max_steps: int) -> Steps:
        """Decode steps over conversations whose prompts have been read.

        Args:
            conversations: begun by this very execution.

        Raises:
            TypeError: one was begun by another.
            AvlError: a device has no room for them.
        """
        ...

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        """Bytes of a dense cache after `rows` of prompt and `steps` of at most `limit`."""
        ...

    def device_bytes(self) -> DeviceBytes | None:
        """What is in a device's memory now; None where caches are in the host's."""
        ...


def execution_on(
    backend: HostBackend | DeviceBackend, manifest: Manifest, embedding: Embedding
) -> Execution:
    """The way of running a package that its backend asks for."""
    if isinstance(backend, DeviceBackend):
        return DeviceExecution(backend, embedding)
    return HostExecution(backend, manifest, embedding)


class HostExecution:
    """Caches are NumPy arrays."""

    def __init__(self, backend: HostBackend, manifest: Manifest, embedding: Embedding) -> None:
        self._backend, self._manifest, self._embedding = backend, manifest, embedding

    def conversation(self) -> HostConversation:
        return HostConversation(self._backend, self._manifest)

    def decoder(self, conversations: Sequence[Conversation], plan: Plan, max_steps: int) -> Decoder:
        own = _own(conversations, HostConversation, self._backend)
        return Decoder(self._backend, self._manifest, self._embedding, own, plan, max_steps)

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        dims = self._manifest.dims
        one = dense_bytes(rows, steps, limit, dims.num_kv_heads, dims.head_dim, self._backend.dtype)
        return dims.num_layers * one

    def device_bytes(self) -> None:
        return None


class DeviceExecution:
    """Caches are in a device's memory."""

    def __init__(self, backend: DeviceBackend, embedding: Embedding) -> None:
        self._backend, self._embedding = backend, embedding

    def conversation(self) -> DeviceConversation:
        return DeviceConversation(self._backend)

    def decoder(
        self, conversations: Sequence[Conversation], plan: Plan, max_steps: int
    ) -> DeviceDecoder:
        own = _own(conversations, DeviceConversation, self._backend)
        return DeviceDecoder(self._backend, self._embedding, own, plan, max_steps)

    def dense_bytes(self, rows: int, steps: int, limit: int) -> int:
        return device_dense_bytes(self._backend, rows, steps, limit)

    def device_bytes(self) -> DeviceBytes:
        memory = self._backend.memory
        used = {kind: memory.used[kind] for kind in ("weights", "active", "parked", "scratch")}
        return DeviceBytes(**used, parked_on_host=memory.parked_on_host)


def _own(
    conversations: Sequence[Conversation], kind: type[Own], backend: HostBackend | DeviceBackend
) -> list[Own]:
    """`conversations`, all of which must have their rows on `backend`.

    Raises:
        TypeError: one has them elsewhere.
    """
    own = [each for each in conversations if isinstance(each, kind) and each.backend is backend]
    if len(own) < len(conversations):
        raise TypeError(
            f"expected conversations begun on this {backend.name}, found "
            f"{len(conversations) - len(own)} of {len(conversations)} begun elsewhere"
        )
    return own
