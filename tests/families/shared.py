"""Tests that every family passes: inherit `FamilyTests`, name the cases and what they are shown."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from avl_export.check.cli import main as avl_check
from avl_export.cli import main as avl_export
from avl_export.options import Options
from avl_export.plan.plan import make_plan
from avl_plugins.policies import parse
from avl_runtime.cli.run import main as avl_run
from avl_runtime.generate.prefill import finished
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.prompts.processor import Processor
from export.checkpoints import join_file, split_file
from families.int4 import Int4Tests
from families.support import Case, Made, clip, picture
from ops.declared import check_graphs
from oracle.hf_oracle import Oracle, run
from oracle.reading import read
from oracle.rules_of import ranking_of, rules_of
from support.appended import appended_prompts

PROMPT = "What is in the picture? Read the text."
STEPS = 16
TOLERANCE = 1e-4  # of logits
CLEAR = 3e-5  # relative gap of scores above which float32 noise cannot change a ranking
DRAWS = 8
ROOM = 5 << 20  # bytes that a package may have beside its weights

Size = tuple[int, int]
Film = tuple[int, Size]  # frames and their size
Renames = tuple[tuple[str, str], ...]

# Where transformers saves language_model.model.*, vision_tower.* and image_newline.
NEW_LAYOUT: Renames = (
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(vision_tower|image_tower|video_tower|multi_modal_projector|image_newline)", r"model.\1"),
)
HUB_LAYOUT: Renames = ((r"^(vision_tower|image_tower|video_tower)\.", r"\1.vision_model."),)


class FamilyTests(Int4Tests):
    """What must hold for every family and each of its cases.

    Attributes:
        cases: variants, each with a small checkpoint.
        turns: pictures (width, height) that one prompt comes with; () is a prompt without any.
        films: videos that one prompt comes with.
        asked: the turn under which policies and chats are tried.
        policies: compared with the oracle, step by step.
        divided: what the package's features are divided by, as its decoder multiplies them again.
        tolerance: of logits.
        between: of what a check compares, states between layers among them.
    """

    cases: ClassVar[tuple[Case, ...]]
    tolerance: ClassVar[float] = TOLERANCE
    between: ClassVar[float] = TOLERANCE
    turns: ClassVar[tuple[tuple[Size, ...], ...]] = (
        (),
        ((97, 61),),
        ((40, 130), (64, 64)),
    )
    films: ClassVar[tuple[tuple[Film, ...], ...]] = ()
    asked: ClassVar[tuple[Size, ...]] = ((97, 61),)
    policies: ClassVar[tuple[str, ...]] = (
        "fastv:layer=2,keep=0.5",
        "avl:keep=0.5,core=0.25,refresh=2,prefill=0.7,text=0.6,text_min=4",
    )

    divided: ClassVar[float] = 1.0

    def pixels(self, inputs: Mapping[str, torch.Tensor], kind: str) -> np.ndarray:
        """All pixel values of transformers' inputs, [..., H, W], as the package orders them."""
        name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
        return inputs[name].numpy()

    def test_graphs_declare_what_graph_io_says(self, made: Made) -> None:
        check_graphs(made.package)

    # The processor.

    def test_prompts_are_those_of_transformers(self, made: Made) -> None:
        processor = Processor.from_package(made.model.package)
        for images, videos in self._shown():
            want = made.encode(PROMPT, images, videos)
            got = processor.encode(PROMPT, images, videos)
            assert got.input_ids.tolist() == want["input_ids"][0].tolist()
            assert got.image_mask.tolist() == [i in made.visual for i in got.input_ids]
            for kind in ("image", "video"):
                parts = [media for media in got.media if media.kind == kind]
                if parts:
                    runs = [run for part in parts for run in part.runs()]
                    self._same_pixels(runs, self.pixels(want, kind))
            shown = read(made.reference, want)
            axes = len(got.positions)
            np.testing.assert_array_equal(got.positions, shown.positions.expand(axes, -1))
            assert got.next_position == int(shown.positions.max()) + 1

    def test_parts_and_messages_are_those_of_transformers(self, made: Made) -> None:
        """Text and pictures in any order, a system prompt, and what was said before."""
        ours = made.model.processor
        for sizes, films in ((self.asked * 2, ()), *((self.asked[:1], one) for one in self.films)):
            images, videos = self._pictures(sizes, 0), [clip(*film) for film in films]
            shown = [{"type": "image", "image": image} for image in images]
            shown += [{"type": "video", "video": video} for video in videos]
            parts = [
                part
                for number, one in enumerate(shown)
                for part in ({"type": "text", "text": f"Here is {number}: "}, one)
            ]
            question = {"type": "text", "text": "Which?"}
            asked = {"role": "user", "content": [*parts, question]}
            system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
            answer = {"role": "assistant", "content": [{"type": "text", "text": "the first"}]}
            again = {"role": "user", "content": [question]}
            turns = [{"role": "user", "content": [one, question]} for one in shown]
            talk = [message for turn in turns for message in (turn, answer)][:-1]
            want = [
                made.encode_messages(said, images, videos)["input_ids"][0].tolist()
                for said in ([asked], [system, asked], [system, asked, answer, again], talk)
            ]
            found = [
                ours.encode(asked["content"]),
                ours.encode(asked["content"], system="Be brief."),
                ours.encode([system, asked, answer, again]),
                ours.encode(talk),
            ]
            assert [prompt.input_ids.tolist() for prompt in found] == want

    def test_tokens_show_every_cell_of_a_picture(self, made: Made) -> None:
        processor = made.model.processor
        for images, videos in self._shown():
            for media in processor.encode(PROMPT, images, videos).media:
                rows, columns = media.cells.grid
                index = media.cells.index
                assert index.shape == (media.tokens,)
                assert set(index.tolist()) - {-1} == set(range(rows * columns))

    # Numbers.

    def test_features_are_those_of_transformers(self, made: Made) -> None:
        engine = made.model.loaded
        for images, videos in self._shown():
            if not images and not videos:
                continue
            shown = read(made.reference, made.encode(PROMPT, images, videos))
            prompt = engine.processor.encode(PROMPT, images, videos)
            found = finished(
                FeatureCache(engine.backend, engine.package.manifest.encoded).encoding(prompt.media)
            )
            rows = np.concatenate([one.rows for one in found])
            self._close(rows, shown.embeds[shown.visual].numpy() / self.divided)
            if len(shown.deepstack):
                deepstack = np.concatenate([one.deepstack for one in found], axis=1)
                self._close(deepstack, shown.deepstack.numpy())

    def test_dense_is_transformers_generate(self, made: Made) -> None:
        for images, videos in self._shown():
            tokens, logits = made.generate(made.encode(PROMPT, images, videos), STEPS)
            got = made.model.generate(
                PROMPT, images, videos, policy="dense", max_new_tokens=STEPS, return_logits=True
            )
            assert list(got.token_ids) == tokens
            np.testing.assert_allclose(got.logits, logits, atol=self.tolerance, rtol=0)

    def test_policies_are_the_oracles(self, made: Made) -> None:
        for spec in self.policies:
            for images in self._draws():
                got = made.model.generate(
                    PROMPT, images, policy=spec, max_new_tokens=STEPS, return_logits=True
                )
                policy = parse(spec)
                want = run(
                    made.reference,
                    made.encode(PROMPT, images),
                    rules_of(policy),
                    STEPS,
                    follow=got.token_ids,
                    ranking=ranking_of(policy),
                )
                if want.gap > CLEAR:
                    np.testing.assert_allclose(got.logits, want.logits, atol=self.tolerance, rtol=0)
                    break
            else:
                pytest.fail(f"{spec}: no draw with clear rankings among {DRAWS}")

    def test_keeping_everything_is_dense(self, made: Made) -> None:
        images, videos = self._shown()[-1]
        dense, *others = [
            made.model.generate(
                PROMPT, images, videos, policy=spec, max_new_tokens=8, return_logits=True
            )
            for spec in ("dense", "fastv:layer=2,keep=1.0", "avl:keep=1.0,core=1.0,text=1.0")
        ]
        for other in others:
            assert other.token_ids == dense.token_ids
            np.testing.assert_allclose(other.logits, dense.logits, atol=1e-5, rtol=0)

    def test_a_second_turn_with_a_picture_goes_on_from_the_first(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The oracle is told only which tokens the second turn adds."""
        appended = appended_prompts(monkeypatch)
        spec = self.policies[-1]
        for images in self._draws():
            chat = made.model.chat(policy=spec)
            first = chat.send(PROMPT, images, max_new_tokens=5)
            second = chat.send("And here?", images[:1], max_new_tokens=5, return_logits=True)
            oracle = Oracle(made.reference, rules_of(parse(spec)))
            with torch.inference_mode():
                oracle.turn(made.encode(PROMPT, images))
                for token in first.token_ids[:-1]:
                    oracle.step(token)
                # The last token of a reply has no row yet: it opens the next turn.
                ids = [first.token_ids[-1], *appended[-1].input_ids.tolist()]
                logits = [oracle.turn(with_ids(made, made.encode(PROMPT, images[:1]), ids))]
                logits += [oracle.step(token) for token in second.token_ids[:-1]]
            if oracle.ranking.gap > CLEAR:
                expected = torch.stack(logits).numpy()
                np.testing.assert_allclose(second.logits, expected, atol=self.tolerance, rtol=0)
                return
        pytest.fail(f"no draw with clear rankings among {DRAWS}")

    # The commands.

    def test_dry_run_tells_the_plan(
        self, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["--model", str(made.folder), "--out", str(tmp_path / "x.avl")]
        assert avl_export([*arguments, "--dry-run", "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["family"] == made.case.config.model_type
        assert not (tmp_path / "x.avl").exists()

    def test_every_layer_is_that_of_transformers(
        self, made: Made, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = [str(made.package), "--model", str(made.folder), "--layers"]
        capsys.readouterr()
        assert avl_check([*command, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        names = [row["name"] for row in rows]
        layers = made.case.config.get_text_config().num_hidden_layers
        assert [f"decoder layer {n}" for n in range(layers)] == [
            name for name in names if name.startswith("decoder")
        ]
        assert "last vision layer and projector" in names
        assert all(row["difference"] < self.between < row["largest"] for row in rows), rows

    def test_keys_values_and_states_are_those_of_transformers(
        self, made: Made, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Tensor by tensor, read in chunks and step by step, with half of the picture parked."""
        command = [str(made.package), "--model", str(made.folder)]
        capsys.readouterr()
        assert avl_check([*command, "--backend", "ort-cpu", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        layers = made.case.config.get_text_config().num_hidden_layers
        dims = made.model.loaded.package.manifest.dims
        for mode in ("dense", "parked"):
            names = [row["name"] for row in rows if row["name"].startswith(mode)]
            for layer in set(range(layers)).difference(dims.sources):
                ends = tuple(f" {kind}.{layer}" for kind in ("k_new", "conv_new"))
                assert sum(name.endswith(ends) for name in names) == 1
        assert all(row["difference"] < self.between < row["largest"] for row in rows), rows

    def test_packages_are_small(self, made: Made) -> None:
        assert sum(path.stat().st_size for path in made.package.iterdir()) < ROOM

    def test_heatmap_and_show_run(
        self, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = []
        for number, image in enumerate(self._pictures(self.asked, 0)):
            files += ["--image", str(tmp_path / f"{number}.png")]
            image.save(files[-1])
        map_file = tmp_path / "map.png"
        policy = "avl:keep=0.5,core=0.25"
        arguments = [str(made.package), PROMPT, *files, "--policy", policy, "--show"]
        arguments += ["--max-new-tokens", "4", "--heatmap", str(map_file)]
        assert avl_run(arguments) == 0
        assert "##" in capsys.readouterr().err
        with Image.open(map_file) as drawn:
            assert drawn.size > (200, 100)

    # Helpers.

    def _shown(self) -> list[tuple[list[Image.Image], list[list[Image.Image]]]]:
        """Pictures and videos of every turn; where there are videos, both together too."""
        turns = [(self._pictures(sizes, 0), []) for sizes in self.turns]
        films = [
            ([], [clip(*film, seed) for seed, film in enumerate(films)]) for films in self.films
        ]
        both = [(self._pictures(self.asked, 0), films[0][1])] if films else []
        return [*turns, *films, *both]

    def _draws(self) -> list[list[Image.Image]]:
        return [self._pictures(self.asked, draw) for draw in range(DRAWS)]

    @staticmethod
    def _pictures(sizes: Sequence[Size], draw: int) -> list[Image.Image]:
        return [picture(size, 100 * draw + number) for number, size in enumerate(sizes)]

    @staticmethod
    def _same_pixels(inputs: list[dict[str, np.ndarray]], want: np.ndarray) -> None:
        got = np.concatenate([one["pixel_values"].ravel() for one in inputs])
        np.testing.assert_allclose(got.reshape(want.shape), want, atol=1e-6, rtol=0)

    @staticmethod
    def _close(found: np.ndarray, expected: np.ndarray) -> None:
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, rtol=0)


class KeyLayoutTests:
    """Checkpoints on the hub and new ones spell the keys of their weights in their own ways.

    Attributes:
        layouts: each as regular expressions and what they become, from how transformers saves.
    """

    layouts: ClassVar[tuple[Renames, ...]] = (HUB_LAYOUT, NEW_LAYOUT)

    def test_other_key_layouts_are_understood(self, made: Made, tmp_path: Path) -> None:
        usual = make_plan(Options(str(made.folder), tmp_path / "x.avl")).weights.places
        for number, renames in enumerate(self.layouts):
            folder = tmp_path / str(number)
            shutil.copytree(made.folder, folder)
            header, data = split_file(folder / "model.safetensors")
            join_file(
                folder / "model.safetensors",
                {renamed(key, renames): entry for key, entry in header.items()},
                data,
            )
            found = make_plan(Options(str(folder), tmp_path / "x.avl")).weights.places
            expected = {name: renamed(placed.key, renames) for name, placed in usual.items()}
            assert {name: placed.key for name, placed in found.items()} == expected
            assert set(expected.values()) & set(header) != set(header), "nothing was renamed"


def renamed(key: str, renames: Renames) -> str:
    """A key of a checkpoint in another layout."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def with_ids(
    made: Made, inputs: Mapping[str, torch.Tensor], ids: list[int]
) -> dict[str, torch.Tensor]:
    """`inputs` with other tokens around the same pictures."""
    changed = dict(inputs)
    changed["input_ids"] = torch.tensor([ids])
    if "attention_mask" in changed:
        changed["attention_mask"] = torch.ones_like(changed["input_ids"])
    for name in {"mm_token_type_ids", "token_type_ids"}.intersection(changed):
        types = torch.zeros_like(changed["input_ids"])
        for number, token in enumerate(made.visual, start=1):
            types[changed["input_ids"] == token] = number
        changed[name] = types
    return changed
