"""What must hold of encoders that tell the attention of their tokens: it is transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from transformers import AttentionInterface
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as theirs

from avl_export.checkpoint.checkpoint import weights_root
from avl_export.families.encoders.clip_attention import middle_of
from avl_export.graph.graph import finish
from avl_export.graph.trace import trace_encoder
from avl_export.graph.weights import bind
from avl_export.options import Options
from avl_export.plan.plan import encoders_of, make_plan
from avl_plugins.graph_io import DEEPSTACK_FEATURES, FEATURES, PIXELS, VISION_ATTENTION
from avl_runtime.prompts.processor import Prompt
from families.support import Made, clip, picture

PROMPT = "What is in the picture?"


def received(tower: Any, pixels: torch.Tensor, config: Any) -> torch.Tensor:
    """[images, tokens, 3] as transformers' tower says it, a class token included."""
    with torch.inference_mode():
        found = [one.double() for one in tower(pixels, output_attentions=True).attentions]
    layers, asked = len(found), config.vision_feature_layer
    asked = asked if isinstance(asked, list) else [asked]
    late = max(n if n >= 0 else n + layers + 1 for n in asked) - 1
    from_all = found[late].mean((1, 2))
    classed = config.vision_config.model_type == "clip_vision_model"
    by_class = found[late].mean(1)[:, 0] if classed else from_all
    middle = found[min(late, middle_of(layers))].mean((1, 2))
    return torch.stack([by_class, from_all, middle], -1)


def told(made: Made, shown: Prompt, kind: str = "image") -> np.ndarray:
    """[tokens, 3] by the graph of an encoder alone, for the media of a prompt."""
    options = Options(str(made.folder), made.folder.parent / "none.avl", vision_attention=True)
    plan = make_plan(options)
    files = {one.file: one for one in encoders_of(plan.family, options)}
    encoder = plan.family.traits.image if kind == "image" else plan.family.traits.video
    assert encoder is not None
    traced = trace_encoder(plan.family, files[encoder.file])
    bind(traced, plan.weights, plan.family.constants(), weights_root(plan.checkpoint))
    sessions = ort.SessionOptions()
    folder = "session.model_external_initializers_file_folder_path"
    sessions.add_session_config_entry(folder, str(weights_root(plan.checkpoint)))
    model = ir.serde.serialize_model(finish(traced)).SerializeToString()
    session = ort.InferenceSession(model, sessions, providers=["CPUExecutionProvider"])
    deepstack = [DEEPSTACK_FEATURES] * bool(plan.family.traits.deepstack)
    made_by = (FEATURES, *deepstack, VISION_ATTENTION)
    assert [one.name for one in session.get_outputs()] == list(made_by)
    parts = [
        one.features([session.run(None, run) for run in one.runs()], made_by) for one in shown.media
    ]
    return np.concatenate([part.attention for part in parts])


def check_tiles(made: Made) -> None:
    """Through transformers' own packing of tiles; a line break receives nothing."""
    one = made.case
    shown = [picture((97, 61))]
    inputs, core = made.encode(PROMPT, shown), made.reference.model
    tiles = received(core.vision_tower, inputs["pixel_values"][0], one.config)
    tiles = tiles[:, int(one.config.vision_feature_select_strategy == "default") :].float()
    more: dict[str, Any] = {"image_newline": torch.zeros(3)}
    if one.config.model_type == "llava_next":
        more["vision_feature_select_strategy"] = "default"
    else:
        more["vision_aspect_ratio"] = one.config.vision_aspect_ratio
    want, _ = core.pack_image_features([tiles], inputs["image_sizes"], **more)
    found = told(made, made.model.processor.encode(PROMPT, shown))
    np.testing.assert_allclose(found, want[0], atol=1e-6, rtol=1e-3)


def recorded(made: Made, inputs: dict[str, torch.Tensor]) -> list[list[torch.Tensor]]:
    """Of each layer of a Qwen's tower, weights [H, P, P] of each run of its attention."""
    found: dict[int, list[torch.Tensor]] = {}
    visual = made.reference.model.visual

    def noting(module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **how: Any):
        weights = (q.double() @ k.double().transpose(2, 3) * how["scaling"]).softmax(-1)
        found.setdefault(id(module), []).append(weights[0])
        return (weights @ v.double()).to(q.dtype).transpose(1, 2), weights

    AttentionInterface.register("noting", noting)
    before = visual.config._attn_implementation
    visual.config._attn_implementation = "noting"
    try:
        with torch.inference_mode():
            visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    finally:
        visual.config._attn_implementation = before
    return [found[id(block.attn)] for block in visual.blocks]


def check_cells(made: Made) -> None:
    """What patches receive, mean of a cell's, where windows lie in another order too."""
    one = made.case
    shown = [picture((130, 97)), picture((60, 61), 1)]
    inputs, visual = made.encode(PROMPT, shown), made.reference.model.visual
    layers, vision = recorded(made, inputs), one.config.vision_config
    late = middle = len(layers) - 1
    middle = middle_of(len(layers))
    cells = torch.arange(int(inputs["image_grid_thw"].prod(1).sum()) // visual.spatial_merge_unit)
    if one.config.model_type == "qwen2_5_vl":
        full = sorted(vision.fullatt_block_indexes)
        late, middle = full[-1], next(n for n in full if n >= middle)
        index, _ = theirs.get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=visual.spatial_merge_size,
            window_size=visual.window_size,
            patch_size=visual.patch_size,
            kwargs={},
        )
        cells = index.argsort()
    want = torch.stack(
        [
            torch.cat([run.mean((0, 1)) for run in layers[number]])
            .reshape(-1, visual.spatial_merge_unit)
            .mean(1)[cells]
            for number in (late, late, middle)
        ],
        1,
    )
    attention = told(made, made.model.processor.encode(PROMPT, shown))
    np.testing.assert_allclose(attention, want, atol=1e-7, rtol=1e-3)


def check_frames(made: Made) -> None:
    """Of a video whose frames have a tower of their own, class tokens included."""
    film = clip(4, (40, 30))
    prompt = made.model.processor.encode(PROMPT, (), [film])
    found = told(made, prompt, "video")
    frames = torch.from_numpy(prompt.media[0].inputs[PIXELS])
    want = received(made.reference.model.video_tower, frames, made.case.config)
    np.testing.assert_allclose(found, want.flatten(0, 1), atol=1e-7, rtol=1e-4)
