"""How vLLM 0.32 divides memory into blocks of KV cache, and what one request takes of them. Pure.

Layers of one kind form groups of the same number of layers, and a block holds one page of each layer of a group, so that every
block has the same size (vllm/v1/core/kv_cache_utils.py, _get_kv_cache_groups_uniform_page_size). A page has the size of the
largest layer's, and attention pages become as large as a state of fixed size (vllm/platforms/interface.py,
_align_hybrid_block_size).
"""

from dataclasses import dataclass
from math import ceil

from pipeline.model.layers import AttentionLayers, StateLayers
from pipeline.model.shape import DTYPE_BYTES, Shape

BLOCK_TOKENS = 16  # on GPUs
# A state for the step that runs, and one to go on from (mamba_cache_mode align, vLLM's own choice with prefix caching).
STATES_PER_REQUEST = 2
CONCURRENT_BATCHES = 2  # asynchronous scheduling, vLLM's default


@dataclass(frozen=True)
class Allocation:
    """What decides the blocks of a request besides its length: bytes per value, tokens in flight at once, states kept."""

    width: int
    in_flight: int
    states: int = STATES_PER_REQUEST


@dataclass(frozen=True)
class Bucket:
    """Layers that hold the same number of blocks: how many, the bytes of a page, and the tokens in it (0 for a state)."""

    count: int
    page: int
    tokens: int
    layers: AttentionLayers | None


def state_bytes(states: StateLayers, dtype: str) -> int:
    """Return the bytes of the state of one request in one layer: its convolution in the model's dtype, its recurrence in its own."""
    width = DTYPE_BYTES.get(dtype, 2)
    convolution = states.convolution + states.groups * states.group_values
    return convolution * width + states.recurrence * DTYPE_BYTES.get(states.dtype, width)


def buckets(shape: Shape, width: int) -> list[Bucket]:
    """Return the model's layers by kind, with pages of one size where there are several kinds."""
    state = state_bytes(shape.states, shape.dtype) if shape.states else 0
    tokens = BLOCK_TOKENS
    if shape.attention and state:
        first = next((layers for layers in shape.attention if layers.kind == "full"), shape.attention[0])
        tokens = BLOCK_TOKENS * max(1, ceil(state / (BLOCK_TOKENS * first.bytes_per_token(width))))
    sizes = [tokens * layers.bytes_per_token(width) for layers in shape.attention]
    page = max([*sizes, state])
    found = [
        Bucket(layers.count, page, tokens * (page // size if page % size == 0 else 1), layers)
        for layers, size in zip(shape.attention, sizes, strict=True)
    ]
    return [*found, Bucket(shape.states.count, page, 0, None)] if shape.states else found


def group_size(counts: list[int]) -> int:
    """Return how many layers share a block: those of the rarest kind, or of the commonest where that is less than half as many more."""
    least, most = min(counts), max(counts)
    return most if most < 1.5 * least else least


def request_bytes(shape: Shape, length: int, allocation: Allocation) -> int:
    """Return the bytes of KV cache that a request of `length` tokens holds at most (vLLM's max_memory_usage_bytes, by groups)."""
    kinds = buckets(shape, allocation.width)
    if not kinds:
        return 0
    size = group_size([bucket.count for bucket in kinds])
    block = size * kinds[0].page
    return block * sum(ceil(bucket.count / size) * blocks(bucket, length, allocation) for bucket in kinds)


def blocks(bucket: Bucket, length: int, allocation: Allocation) -> int:
    """Return the blocks that a request holds for each group of these layers.

    A window that begins inside a block needs one more (SlidingWindowSpec.max_admission_blocks_per_request).
    """
    if bucket.layers is None:
        return allocation.states
    limit = bucket.layers.limit
    if limit is None:
        return ceil(length / bucket.tokens)
    window = bucket.layers.kind == "window"
    held = min(limit - window + allocation.in_flight, length)
    return ceil(held / bucket.tokens) + window


def fixed_bytes(shape: Shape, length: int, allocation: Allocation) -> int:
    """Return the part of a request of `length` tokens that does not grow with it: windows, chunks and states, and padding."""
    growing = sum(layers.count * layers.bytes_per_token(allocation.width) for layers in shape.attention if layers.limit is None)
    return max(0, request_bytes(shape, length, allocation) - growing * length)
