"""Does an exported program answer as the policy does, and is what cannot be exported said?"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from policies.bundle import load_parts, load_policy
from policies.export import ExportConfig, export
from policies.heads.diffusion import DiffusionConfig
from policies.observation import Observer
from policies.program import HeadProgram, head_arrays
from policies.train import train_bundle
from tests.policies.small import make_small
from toto_robot.run_folder import read_json

pytestmark = pytest.mark.render


def trained(folder, demos, toto, **head):
    config = make_small(demos, toto, folder)
    bc = replace(config.bc, steps=10, head=replace(config.bc.head, **head))
    return train_bundle(replace(config, bc=bc), folder / "run")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, demos, toto):
    """A policy that sees one frame at a time and predicts three actions."""
    return trained(tmp_path_factory.mktemp("one"), demos, replace(toto, context_frames=1), chunk_steps=3)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory, demos, toto):
    """A policy with a stream, a history and a diffusion head."""
    settings = DiffusionConfig(width=16, blocks=1, kernel=3, step_width=8, sample_steps=3)
    return trained(
        tmp_path_factory.mktemp("two"), demos, toto, name="diffusion", chunk_steps=4, history=2, diffusion=settings
    )


def answers_alike(file, bundle, store, far_out=1):
    """Compare an exported program with the policy on a recorded frame; return what the program answers."""
    program = torch.export.load(file).module()
    proprio = far_out * store.read("observation.state", 7, 8)
    pixels = {camera: store.read(f"observation.images.{camera}", 7, 8) for camera in store.cameras}
    with torch.no_grad():
        chunk = program(torch.from_numpy(proprio), *(torch.from_numpy(image) for image in pixels.values())).numpy()
    policy = load_policy(bundle)
    action = policy.act({"proprio": proprio, "pixels": pixels})
    np.testing.assert_allclose(np.clip(chunk[:, 0], policy._low, policy._high), action, atol=1e-4)
    return chunk


def test_the_exported_program_is_the_policy_from_pixels_to_actions(bundle, store, tmp_path, capsys):
    assert export(ExportConfig(policy=str(bundle)), tmp_path) == 0
    assert "differ by at most" in capsys.readouterr().out
    assert answers_alike(tmp_path / "policy.pt2", bundle, store).shape == (1, 3, 7)
    facts = read_json(tmp_path / "export.json")
    assert [array["name"] for array in facts["inputs"]] == ["proprio", "pixels_front", "pixels_wrist"]
    assert 0 <= facts["largest_difference"] < 1e-3 and facts["output"]["shape"] == [1, 3, 7]
    assert "pixels_wrist" in (tmp_path / "EXPORT.md").read_text()


def test_proprioception_that_is_left_as_it_is_is_not_clipped_in_the_program_either(demos, toto, store, tmp_path):
    config = make_small(demos, replace(toto, context_frames=1), tmp_path)
    bc = replace(config.bc, steps=10, proprio_normalizer="none")
    bundle = train_bundle(replace(config, bc=bc), tmp_path / "run")
    assert export(ExportConfig(policy=str(bundle)), tmp_path) == 0
    answers_alike(tmp_path / "policy.pt2", bundle, store, far_out=40)


def test_a_head_with_history_and_noise_is_exported_from_features(drawing, store, tmp_path):
    assert export(ExportConfig(policy=str(drawing), out=str(tmp_path / "out"), batch=2), tmp_path) == 0
    facts = read_json(tmp_path / "out" / "export.json")
    assert facts["part"] == "head"
    shapes = {array["name"]: array["shape"] for array in facts["inputs"]}
    assert shapes == {
        "proprio": [2, 2, 27], "noise": [2, 4, 7], "tokens_front": [2, 2, 16, 32], "tokens_wrist": [2, 2, 16, 32],
    }  # fmt: skip
    program = torch.export.load(tmp_path / "out" / "head.pt2").module()
    parts = load_parts(drawing)
    observer = Observer(parts.encoder, store.cameras, 32, parts.proprio, batch=2, history=2)
    proprio = store.read("observation.state", 0, 2)
    pixels = {camera: store.read(f"observation.images.{camera}", 0, 2) for camera in store.cameras}
    inputs = observer.step({"proprio": proprio, "pixels": pixels}, np.ones(2, dtype=bool))
    noise = torch.randn(2, 4, 7)
    with torch.no_grad():
        expected = parts.actions.restore(parts.head.act(inputs, noise).numpy())
        told = torch.from_numpy(proprio)[:, None].repeat(1, 2, 1)
        got = program(told, noise, *inputs.tokens.values()).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_what_is_no_single_program_is_said(drawing, tmp_path):
    with pytest.raises(ValueError, match=r"sees one frame at a time is one program .* part=head"):
        export(ExportConfig(policy=str(drawing), part="policy"), tmp_path)
    with pytest.raises(ValueError, match="expected format torch_export or onnx"):
        ExportConfig(policy="x", format="tflite")
    assert not list(tmp_path.iterdir())


def test_a_program_that_answers_otherwise_is_refused(bundle):
    from policies.export import _compare

    parts = load_parts(bundle)
    program, arrays = HeadProgram(parts).eval(), head_arrays(parts, 1)

    def wrong(*values):
        return program(*values) + 0.01

    with torch.no_grad(), pytest.raises(ValueError, match="answers differently"):
        _compare(program, wrong, arrays, torch.Generator())


@pytest.mark.parametrize("part", ["head", "policy"])
def test_onnx_answers_alike_or_names_its_extra(bundle, tmp_path, part):
    config = ExportConfig(policy=str(bundle), format="onnx", part=part)
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"needs the extra onnx .*pip install"):
            export(config, tmp_path)
        return
    assert export(config, tmp_path) == 0
    assert (tmp_path / f"{part}.onnx").exists()
    assert read_json(tmp_path / "export.json")["largest_difference"] < 1e-3
