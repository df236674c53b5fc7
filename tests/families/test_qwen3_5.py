"""Qwen3.5: layers of the gated delta rule between gated attention, pictures and videos."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5 import modeling_qwen3_5

from avl_export.cli import main as avl_export
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_plugins.bodies.state_body import state_function
from avl_plugins.errors import AvlError
from avl_plugins.policies import parse
from avl_plugins.schema import GATED_DELTA_RULE
from avl_runtime import LVLM
from avl_runtime.cli.bench import main as avl_bench
from avl_runtime.engines.options import Options as BuildOptions
from avl_runtime.engines.plan import make_plan as build_plan
from avl_runtime.evaluate.measure import flops_share
from avl_runtime.generate.prefill import finished
from avl_runtime.generate.sequence import RollbackError, Sequence
from avl_runtime.machine.probe import probe
from families.engines import EngineTests
from families.qwen import TEXT, TOKENS, PatchTests
from families.shared import PROMPT
from families.states import StateTests
from families.support import Made, picture
from families.test_qwen3_vl import PATCH, case
from ops.op_models import op_model, session
from ops.op_models import run as run_op
from support.traced import traced_once

STEPS = 200
STATE, ROWS = "linear_attention", "full_attention"


def config(**changes: Any) -> Qwen3_5Config:
    """Two value heads read each key head; nothing divides anything evenly."""
    rope = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
    }
    text = {
        **TEXT,
        "num_hidden_layers": 5,
        "layer_types": [STATE, ROWS, STATE, STATE, ROWS],
        "head_dim": 32,
        "rope_parameters": rope,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 10,
        "linear_value_head_dim": 14,
    }
    return Qwen3_5Config(
        text_config=text | changes.pop("text_config", {}),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": PATCH,
            "num_position_embeddings": 25,
        },
        **(TOKENS | changes),
    )


CASES = (case("qwen3_5", Qwen3_5ForConditionalGeneration, config()),)


class TestQwen35(PatchTests, StateTests, EngineTests):
    cases = CASES
    steps: ClassVar[dict[int, int]] = {1: 20, 7: 20, 256: STEPS}
    tolerance = 1e-3  # transformers' two ways to compute the rule differ by 4e-4 in logits
    between = 2e-3  # of states up to 20: the gated norm enlarges rows that are tiny

    @pytest.mark.parametrize("compiled", [False, True], ids=["body", "kernel"])
    def test_two_hundred_steps_of_each_rule(
        self, made: Made, compiled: bool, request: pytest.FixtureRequest
    ) -> None:
        """What transformers' rules are given, given to the op: outputs, and states at the end."""
        library = request.getfixturevalue("kernels") if compiled else None
        op = op_model(GATED_DELTA_RULE, [state_function(GATED_DELTA_RULE, 4)], {}, {})
        op_session = session(op, library)
        for calls in rule_calls(made):
            assert len(calls) == 1 + STEPS
            state = np.zeros_like(calls[0][-1])
            for *given, out, _ in calls:
                feeds = dict(zip(("q", "k", "v", "decay", "beta"), given, strict=True))
                found, state = run_op(op_session, feeds | {"delta_state": state})
                np.testing.assert_allclose(found, out, atol=1e-5, rtol=0)
            np.testing.assert_allclose(state, calls[-1][-1], atol=1e-5, rtol=0)

    def test_sequences_of_unlike_lengths_decode_together(self, made: Made) -> None:
        """Each as alone, also when one leaves and another joins."""
        asked = [("What?", []), (PROMPT, [picture((97, 61), 0)]), ("Describe the image.", [])]
        alone = [steps(made, [begun(made, *one)], 9)[:, 0] for one in asked]
        first, second, third = (begun(made, *one) for one in asked)
        decoder = made.model.loaded.decoder()
        decoder.join([first, second], 20)
        found = [decoder.run([5, 5]).copy() for _ in range(3)]
        decoder.leave(first, keep=True)
        decoder.join([third], 20)
        later = [decoder.run([5, 5]).copy() for _ in range(3)]
        decoder.leave(second, keep=False)
        decoder.join([first], 20)
        last = [decoder.run([5, 5]).copy() for _ in range(3)]
        ways = (
            (alone[0], [*found, *last], (0, 1)),
            (alone[1], [*found, *later], (1, 0)),
            (alone[2], [*later, *last], (1, 0)),
        )
        for want, runs, columns in ways:
            got = [run[columns[number // 3]] for number, run in enumerate(runs)]
            np.testing.assert_allclose(got, want[: len(got)], atol=1e-4, rtol=0)

    def test_forks_go_their_own_ways(self, made: Made) -> None:
        sequence = begun(made, PROMPT, [picture((97, 61), 0)])
        other = sequence.fork()
        steps(made, [other], 4, token=9)
        np.testing.assert_array_equal(
            steps(made, [sequence], 4),
            steps(made, [begun(made, PROMPT, [picture((97, 61), 0)])], 4),
        )

    def test_tokens_are_taken_back_with_the_states_of_before(self, made: Made) -> None:
        sequence = begun(made, PROMPT, [])
        length, states = sequence.length, sequence.states()
        first = steps(made, [sequence], 4)
        with pytest.raises(RollbackError, match="keep a state; go on from a fork"):
            sequence.roll_back(length)
        sequence.roll_back(length, states)
        np.testing.assert_array_equal(steps(made, [sequence], 4), first)

    def test_prompts_that_begin_alike_share_states(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = LVLM.load(made.package, backend="ort-cpu", threads=1, prefix_cache="auto")
        monkeypatch.setattr(model.loaded.executor, "chunk", 8)
        image = picture((97, 61), 0)
        asked = ("Read the text. What is it?", "Read the text. How many objects are there?")
        for text in asked:
            fresh = LVLM.load(made.package, backend="ort-cpu", threads=1)
            monkeypatch.setattr(fresh.loaded.executor, "chunk", 8)
            options = {"max_new_tokens": 8, "return_logits": True}
            found, want = (one.generate(text, [image], **options) for one in (model, fresh))
            np.testing.assert_array_equal(found.logits, want.logits)
        assert found.stats.prefix_tokens >= 24

    def test_states_do_not_grow(self, made: Made) -> None:
        dims = made.model.package.manifest.dims
        states = 3 * 4 * (3 * dims.states.channels + 6 * 10 * 14)
        for text in ("What?", PROMPT * 3):
            stats = made.model.generate(text, max_new_tokens=2).stats
            assert stats.kv_bytes == stats.kv_bytes_dense
            rows = stats.kv_bytes - states
            assert rows % (2 * 2 * 2 * dims.head_dim * 4) == 0
            assert states < stats.kv_bytes

    def test_what_a_request_costs(self, made: Made) -> None:
        """Tokens that a policy drops cost nothing in layers of either kind behind it."""
        prompt = made.model.processor.encode(PROMPT, [picture((97, 61), 0)])
        dims = made.model.package.manifest.dims
        assert (dims.row_layers, dims.states.layers) == ([1, 4], (0, 2, 3))
        shares = []
        for spec in ("dense", "avl:keep=0.5,core=0.25", "fastv:layer=2,keep=0.5"):
            got = made.model.generate(
                PROMPT,
                [picture((97, 61), 0)],
                policy=spec,
                max_new_tokens=3,
                return_placements=True,
            )
            assert len(got.placements[0].core) == 2
            shares.append(flops_share(dims, prompt, parse(spec), got))
        assert shares[0] == 1 > shares[1] > shares[2] > 0.5

    def test_speed_is_measured(self, made: Made, tmp_path: Path) -> None:
        out, asked = tmp_path / "speed.json", "--visual-tokens 0 --new-tokens 2 --repeats 1"
        rest = "--warm-up 0 --threads 1 --idle-wait 0 --policies dense"
        command = [str(made.package), *f"{asked} {rest}".split(), "--json", str(out)]
        assert avl_bench(command) == 0
        report = json.loads(out.read_text())
        assert report["dims"]["states"]["layers"] == [0, 2, 3]
        assert report["candidates"][0]["kv_bytes"] > 0

    def test_rows_in_eight_bits(self, made: Made) -> None:
        model = LVLM.load(made.package, backend="ort-cpu", threads=1, kv="int8")
        image = picture((97, 61), 0)
        found, exact = (
            one.generate(PROMPT, [image], max_new_tokens=1, return_logits=True).logits
            for one in (model, made.model)
        )
        assert 1e-4 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()

    def test_int4(self, made: Made, tmp_path: Path) -> None:
        out = tmp_path / "int4.avl"
        command = ["--model", str(made.folder), "--out", str(out), "--quantize", "int4", "--check"]
        with traced_once(made.graphs):
            assert avl_export(command) == 0
        names = {
            name
            for file in ("decoder.0.onnx", "decoder.1.onnx")
            for one in onnx.load(out / file, load_external_data=False).graph.initializer
            if one.data_type == onnx.TensorProto.INT4 and "linear_attn" in (name := one.name)
        }
        assert any("in_proj_qkv" in name for name in names), names
        model = LVLM.load(out, backend="ort-cpu", threads=1)
        assert len(model.generate(PROMPT, max_new_tokens=4).token_ids) == 4

    def test_what_states_cannot_do_is_refused(self, made: Made, tmp_path: Path) -> None:
        with pytest.raises(AvlError, match="keep a state; use ort-cpu"):
            LVLM.load(made.package, backend="tensorrt-rtx")
        with pytest.raises(AvlError, match="whose engines nothing drives"):
            build_plan(BuildOptions(made.package, "tensorrt-rtx", dry_run=True), probe())
        with pytest.raises(AvlError, match="none in layers 0 to 0; cut after others"):
            make_plan(Options(str(made.folder), tmp_path / "x.avl", split=(1,)))


def rule_calls(made: Made) -> list[list[tuple[np.ndarray, ...]]]:
    """By layer with a state, and call, all that transformers' rule is given and gives back."""
    layers = made.model.package.manifest.dims.states.layers
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in layers]
    place = itertools.cycle(range(len(layers)))

    def noted(rule: Any) -> Any:
        def call(q: Any, k: Any, v: Any, *, g: Any, beta: Any, **named: Any) -> Any:
            out, state = rule(q, k, v, g=g, beta=beta, **named)
            arrays = (q, k, v, g, beta, out, state)
            found[next(place)].append(tuple(one.detach().numpy().copy() for one in arrays))
            return out, state

        return call

    names = (f"torch_{kind}_gated_delta_rule" for kind in ("chunk", "recurrent"))
    rules = {name: noted(getattr(modeling_qwen3_5, name)) for name in names}
    with patch.multiple(modeling_qwen3_5, **rules):
        made.generate(made.encode(PROMPT, [picture((97, 61), 0)]), STEPS + 1)
    return found


def begun(made: Made, text: str, images: list[Any]) -> Sequence:
    """A conversation whose prompt has been read."""
    loaded = made.model.loaded
    sequence = loaded.sequence(parse("dense"))
    finished(loaded.prefill(sequence, loaded.processor.encode(text, images)))
    return sequence


def steps(made: Made, sequences: list[Sequence], count: int, token: int = 5) -> np.ndarray:
    """Logits [count, B, V] of decode steps that all read the same token."""
    decoder = made.model.loaded.decoder()
    decoder.join(sequences, count)
    found = [decoder.run([token] * len(sequences)).copy() for _ in range(count)]
    for sequence in sequences:
        decoder.leave(sequence, keep=True)
    return np.stack(found)
