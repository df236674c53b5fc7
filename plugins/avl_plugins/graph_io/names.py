"""Names that graphs have for what is no layer's alone, and for sizes that may change."""

from __future__ import annotations

# Of a decoder segment. Of its inputs, once:
HIDDEN = "hidden"  # states before its first layer
POSITIONS = "position_ids"
WEIGHTS = "row_weights"  # of new rows in each mass
# where rows see others than all before them:
ROW_ENDS = "row_ends"  # new rows that each new row sees
ROW_POSITIONS = "row_positions"  # of new rows in their conversation, where layers have a window
# and where the package's graphs have RESTORE's bias:
ROW_STANDING = "row_standing"  # of new rows, see `schema.RESTORED_CACHE_ATTENTION`
# and its first output:
STATE = "hidden_out"  # states after its last layer
LOGITS = "logits"  # in place of them, of the last rows, where the segment ends the decoder
# and an input of that segment which need not be given:
LOGITS_FROM = "logits_from"  # the first row that has logits, counted from the end; -1 is the last
# Of a layer:
DEEPSTACK = "deepstack"  # an input of some layers, added to what they put out
TAP = "layer_out"  # what a layer puts out, for checks alone: no output of a package's graphs

# Of an encoder. Its inputs are what the layout of the manifest prepares, some of these:
PIXELS = "pixel_values"  # [images | tiles | frames, ...]
PATCH_POSITIONS = "position_ids"  # [patches, 2], or [windows, patches, 2]: row and column
TABLE_ROWS = "places"  # [patches, 4]: position embeddings that a patch's is mixed from
TABLE_SHARES = "shares"  # [patches, 4]: how much of each
WINDOW_MASK = "mask"  # [patches], or [windows, patches]: which of the places hold a patch
ORDER = "order"  # [cells]: where each cell lies among all places for one
# and its outputs:
FEATURES = "image_features"  # [..., C], a row for each visual token
DEEPSTACK_FEATURES = "deepstack_features"  # [K, tokens, C]
VISION_ATTENTION = "vision_attention"  # [..., 3] float32, see `policies.Picture.attention`

# Sizes of a decoder graph that may change.
BATCH = "batch"
NEW = "seq"  # new rows
ANSWERED = "logit_rows"  # new rows that have logits: 1 where nobody says otherwise
UNLIKE = "unlike"  # KV heads that may hold other rows than one another, or 1
WEIGHTINGS = "weightings"  # masses of a key; ONNX Runtime is given none where nobody reads them
MOST_WEIGHTINGS = 2  # the attention of the last query row, and that of all text rows
