"""Are published checkpoints read exactly, with hostile and damaged ones refused and nothing ever run?"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toto_robot import cli
from toto_robot.foreign_weights import Checkpoint, state_dict
from toto_robot.inert_pickle import Call, Name, read_pickle
from toto_robot.run_folder import sha256_file
from toto_robot.tokenizers.import_tokenizer import ImportTokenizerConfig, import_tokenizer, read_dalle, read_taming
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig

VQGAN_SIZES = VQGANConfig(
    name="vqgan_40", vocab=40, width=32, multipliers=(1, 2), blocks=1, attention_levels=(1,),
    latent_width=8, code_width=6,
)  # fmt: skip
CONTAINERS = [pytest.param(True, id="zip"), pytest.param(False, id="legacy")]


# ------------------------------------------------------------------------------------------------- files as published


@pytest.fixture
def dalle() -> Iterator[Any]:
    """The DALL-E package past its `__init__`, which wants an HTTP client; gone again after the test."""
    before = {name for name in sys.modules if name.startswith("dall_e")}
    if "dall_e" not in sys.modules:
        spec = importlib.util.find_spec("dall_e")
        assert spec is not None, "no reference: pip install --no-deps DALL-E==0.1 attrs (`make setup` does)"
        sys.modules["dall_e"] = importlib.util.module_from_spec(spec)
    yield lambda module: importlib.import_module(f"dall_e.{module}")
    for name in [name for name in sys.modules if name.startswith("dall_e") and name not in before]:
        del sys.modules[name]


def save_dalle(dalle: Any, folder: Path, zipped: bool, blocks: int = 1) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Save whole modules, as OpenAI did; of a decoder as old as theirs, the upsampling lacks a later attribute."""
    torch.manual_seed(blocks)
    encoder = dalle("encoder").Encoder(n_hid=64, n_blk_per_group=blocks, vocab_size=512)
    decoder = dalle("decoder").Decoder(n_init=16, n_hid=64, n_blk_per_group=blocks, vocab_size=512)
    for module in (encoder, decoder):
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.data.normal_(0, 0.1)
    for group in ("group_1", "group_2", "group_3"):
        del getattr(decoder.blocks, group).upsample.recompute_scale_factor
    torch.save(encoder, folder / "encoder.pkl", _use_new_zipfile_serialization=zipped)
    torch.save(decoder, folder / "decoder.pkl", _use_new_zipfile_serialization=zipped)
    for group in ("group_1", "group_2", "group_3"):
        getattr(decoder.blocks, group).upsample.recompute_scale_factor = None
    return encoder, decoder


def save_taming(path: Path, model: VQGAN, zipped: bool = True, **extra: Any) -> None:
    """Save what Lightning 1.0 did: weights with the training loss's, optimisers, and a callback's class as a key."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    state: OrderedDict[str, torch.Tensor] = OrderedDict(model.state_dict())
    state["loss.perceptual_loss.lin0.model.1.weight"] = torch.rand(1, 64, 1, 1)
    state["loss.discriminator.main.0.weight"] = torch.rand(4, 3, 4, 4)
    moments = {"step": 7, "exp_avg": torch.rand(3), "exp_avg_sq": torch.rand(3)}
    content = {
        "epoch": 3, "global_step": 1234, "pytorch-lightning_version": "1.0.8", "state_dict": state,
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "epoch=3.ckpt"}},
        "optimizer_states": [{"state": {0: moments}, "param_groups": [{"lr": 4.5e-6, "betas": (0.5, 0.9)}]}],
        "lr_schedulers": [], **extra,
    }  # fmt: skip
    parents = {parent: types.ModuleType(parent) for parent in ("pytorch_lightning", "pytorch_lightning.callbacks")}
    sys.modules.update({**parents, name: module})
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    finally:
        for added in (*parents, name):
            del sys.modules[added]


def vqgan() -> VQGAN:
    return VQGAN(VQGAN_SIZES, generator=torch.Generator().manual_seed(2)).eval()


def frames(px: int = 32) -> torch.Tensor:
    return torch.randint(256, (2, px, px, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("zipped", CONTAINERS)
@pytest.mark.parametrize("blocks", [1, 2])
def test_dalle_files_give_the_modules_they_were_saved_from(
    dalle: Any, tmp_path: Path, zipped: bool, blocks: int
) -> None:
    encoder, decoder = save_dalle(dalle, tmp_path, zipped, blocks)
    ours, hashes = read_dalle(tmp_path)
    assert (ours.config.blocks_per_group, ours.vocab, ours.config.decoder_init) == (blocks, 512, 16)
    assert hashes == {name: sha256_file(tmp_path / name) for name in ("encoder.pkl", "decoder.pkl")}
    mapped = dalle("utils").map_pixels(frames().permute(0, 3, 1, 2).float() / 255)
    codes = encoder(mapped).argmax(dim=1)
    assert torch.equal(ours.encode(frames()), codes)
    expected = decoder(F.one_hot(codes, 512).permute(0, 3, 1, 2).float())
    assert expected.std() > 0.01
    torch.testing.assert_close(ours.decoder.from_codes(codes), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("zipped", CONTAINERS)
def test_taming_checkpoints_give_the_weights_that_were_saved(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "checkpoints").mkdir()
    saved = vqgan()
    save_taming(tmp_path / "checkpoints" / "last.ckpt", saved, zipped)
    ours, hashes = read_taming(tmp_path)
    assert ours.config == VQGAN_SIZES and list(hashes) == ["last.ckpt"]
    assert all(torch.equal(tensor, saved.state_dict()[name]) for name, tensor in ours.state_dict().items())
    assert ours.fingerprint() == saved.fingerprint()


def test_reading_imports_nothing(dalle: Any, tmp_path: Path) -> None:
    """In a process of its own: the packages that the files name stay outside, and nothing asks for their modules."""
    save_dalle(dalle, tmp_path, zipped=False)
    save_taming(tmp_path / "last.ckpt", vqgan())
    program = (
        "import sys, pathlib\n"
        "from toto_robot.tokenizers.import_tokenizer import read_dalle, read_taming\n"
        "import pickle\n"
        "class Trap:\n"
        "    def __init__(self, *args, **keywords): raise SystemExit('an unpickler was made')\n"
        "pickle.Unpickler = pickle._Unpickler = pickle.load = pickle.loads = Trap\n"
        "before = set(sys.modules)\n"
        "read_dalle(pathlib.Path(sys.argv[1])); read_taming(pathlib.Path(sys.argv[1]) / 'last.ckpt')\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'dall_e', 'pytorch_lightning', 'attr'}, new\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_views_transposes_and_number_types_come_back(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    tensors = {
        "transposed": base.T, "slice": base[1:3, ::2], "half": base.half(), "long": base.long(), "scalar": base[2, 3],
        "bool": base > 3, "empty": torch.empty(0, 5), "bf16": base.bfloat16(), "double": base.double(),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "tensors.pt", _use_new_zipfile_serialization=zipped)
        with Checkpoint(tmp_path / "tensors.pt") as file:
            read = {name: file.tensor(stored) for name, stored in state_dict(file.content).items()}
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in read)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner, inner, inner)
    | st.lists(inner, max_size=3).map(tuple) | st.sets(st.integers() | st.text()),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(PLAIN, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_come_back_as_pickle_reads_them(value: Any, protocol: int) -> None:
    read = read_pickle(io.BytesIO(pickle.dumps(value, protocol)))
    assert read == value and repr(sorted_sets(read)) == repr(sorted_sets(value))


def sorted_sets(value: Any) -> Any:
    """Return `value` in a form whose repr does not depend on the order of a set."""
    if isinstance(value, set):
        return ["set", *sorted(map(repr, value))]
    if isinstance(value, dict):
        return {key: sorted_sets(item) for key, item in value.items()}
    return type(value)(map(sorted_sets, value)) if isinstance(value, list | tuple) else value


# ------------------------------------------------------------------------------------------------- hostile and damaged


class Runs:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [1, 2, 4])
@pytest.mark.parametrize("zipped", CONTAINERS)
@pytest.mark.parametrize("attack", ["os.system", "builtins.eval", "builtins.open", "subprocess.Popen", "getattr"])
def test_a_hostile_file_is_refused_and_not_run(tmp_path: Path, attack: str, zipped: bool, protocol: int) -> None:
    mark = tmp_path / "was_here"
    runs = {
        "os.system": Runs(os.system, f"touch {mark}"),
        "builtins.eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "builtins.open": Runs(open, str(mark), "w"),
        "subprocess.Popen": Runs(subprocess.Popen, ["touch", str(mark)]),
        "getattr": Runs(getattr, Path, "home"),  # finds a way to any function from a harmless class
    }[attack]
    path = tmp_path / "hostile.ckpt"
    torch.save(
        {"state_dict": {"a": torch.ones(2)}, "callbacks": runs}, path,
        _use_new_zipfile_serialization=zipped, pickle_protocol=protocol,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"refused: it asks for .*Nothing was run"):
        read_taming(path)
    assert not mark.exists()
    if attack != "getattr":  # the same bytes do harm when they are unpickled, or this test could not fail
        torch.load(path, weights_only=False)
        wait_for(mark)


def wait_for(mark: Path) -> None:
    for _ in range(200):
        if mark.exists():
            return
        subprocess.run(["sleep", "0.05"], check=True)
    raise AssertionError("the attack does nothing even when run")


def test_a_hostile_legacy_header_is_refused(tmp_path: Path) -> None:
    """Before the zips a file is a row of pickles: any of them may attack."""
    mark = tmp_path / "was_here"
    good = io.BytesIO()
    torch.save({"state_dict": {}}, good, _use_new_zipfile_serialization=False)
    hostile = pickle.dumps(Runs(os.system, f"touch {mark}"), 2)
    pieces = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    for place in range(4):
        path = tmp_path / f"{place}.ckpt"
        path.write_bytes(b"".join(pieces[:place]) + hostile + b"".join(pieces[place + 1 :]))
        with pytest.raises(ValueError, match=r"refused: it asks for posix\.system"):
            Checkpoint(path)
    assert not mark.exists()


def test_allowed_names_stay_descriptions() -> None:
    """Even inside torch and numpy: a name is never looked up, so what it would do does not matter."""
    read = read_pickle(io.BytesIO(b"ctorch.hub\nload\n(S'evil/repo'\nS'model'\ntR."))
    assert isinstance(read, Call) and read.callee == Name("torch.hub", "load") and read.args == ("evil/repo", "model")
    poisoned = b"ctorch\ndevice\n}S'__class__'\nI1\nsb."  # a state given to a name would change a class for everybody
    with pytest.raises(ValueError, match="a state is given to a Name"):
        read_pickle(io.BytesIO(poisoned))


@pytest.mark.parametrize(
    "text",
    [b"", b".", b"(.", b"t.", b"\x80\x02}q\x00(K\x01.", b"h\x05.", b"\x80\x02]\x94]\x85.x", b"K\x01K\x02R.",
     b"\x80\x02}]K\x01s.", b"\x82\x01.", b"\x80\x05\x97.", b"}]b.", b"\x80\x02U\xffab", b"not a pickle"],
)  # fmt: skip
def test_damaged_pickles_are_value_errors(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"damaged\.ckpt"):
        Checkpoint(path)


@pytest.mark.parametrize("zipped", CONTAINERS)
def test_a_truncated_file_is_a_value_error_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    save_taming(tmp_path / "whole.ckpt", vqgan(), zipped)
    whole = (tmp_path / "whole.ckpt").read_bytes()
    path = tmp_path / "part.ckpt"
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"part\.ckpt"):
            read_taming(path)


def test_a_description_that_its_numbers_do_not_fit_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    size = b"K\x00K\x04\x85q"  # offset 0, size (4,)
    assert whole.count(size) == 1
    for forged in (b"K\x02K\x04\x85q", b"K\x00K\x05\x85q", b"K\x63K\x04\x85q"):
        (tmp_path / "b.pt").write_bytes(whole.replace(size, forged))
        with Checkpoint(tmp_path / "b.pt") as file, pytest.raises(ValueError, match=r"b\.pt: a tensor .* numbers"):
            file.tensor(state_dict(file.content)["a"])


def test_other_zips_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="got another zip archive"):
        Checkpoint(tmp_path / "a.zip")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="without compression"):
        Checkpoint(tmp_path / "b.pt")


def test_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_taming(path, vqgan())
    right = sha256_file(path)
    assert read_taming(path, sha256=right.upper())[1] == {"last.ckpt": right}
    with pytest.raises(ValueError, match=rf"expected SHA-256 {'0' * 64}, got {right}; download it again"):
        read_taming(path, sha256="0" * 64)


# ------------------------------------------------------------------------------------------------------- the command


def run(words: list[str]) -> int:
    """Return the exit code of a command line."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    return int(str(stopped.value.code))


def test_the_command_converts_both_formats(
    dalle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_dalle(dalle, tmp_path, zipped=True)
    saved = vqgan()
    save_taming(tmp_path / "last.ckpt", saved)
    digest = sha256_file(tmp_path / "encoder.pkl")
    assert run(["import-tokenizer", "source=encoder.pkl", "format=dalle", "out=ours", f"sha256={digest}"]) == 0
    assert digest in capsys.readouterr().out
    dvae = load_tokenizer(tmp_path / "ours")
    assert dvae.fingerprint() == read_dalle(tmp_path)[0].fingerprint() and dvae.stride == 8
    assert run(["import-tokenizer", "source=last.ckpt", "format=taming", "run=taming"]) == 0
    assert load_tokenizer(tmp_path / "taming" / "pretrained_model").fingerprint() == saved.fingerprint()
    recorded = json.loads((tmp_path / "ours" / "imported.json").read_text())
    assert recorded["format"] == "dalle" and recorded["sha256"]["encoder.pkl"] == digest
    assert run(["import-tokenizer", "source=last.ckpt", "format=taming", "out=ours", "run=other"]) == 1
    assert "holds another model" in capsys.readouterr().err
    assert run(["import-tokenizer", "source=.", "format=dalle", "out=ours", "run=again"]) == 0  # the same: fine


def test_what_does_not_fit_is_named(dalle: Any, tmp_path: Path) -> None:
    saved = vqgan()
    save_taming(tmp_path / "a.ckpt", saved)
    torch.save({"epoch": 1}, tmp_path / "b.ckpt")
    torch.save({"state_dict": {"transformer.w": torch.ones(1)}}, tmp_path / "c.ckpt")
    state = {**saved.state_dict(), "quant_conv.weight": torch.ones(6, 9, 1, 1)}
    torch.save({"state_dict": state}, tmp_path / "d.ckpt")
    state = {**saved.state_dict(), "quant_conv.bias": torch.full((6,), torch.nan)}
    torch.save({"state_dict": state}, tmp_path / "e.ckpt")
    for name, message in (
        ("b", "has no state_dict"), ("c", "no tensor quantize.embedding.weight"), ("f", "no such file"),
        ("d", r"quant_conv\.weight is \(6, 9, 1, 1\) in the file"), ("e", "quant_conv.bias holds NaN"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_taming(tmp_path / f"{name}.ckpt")
    with pytest.raises(ValueError, match=r"expected one \.ckpt .* found 4"):
        (tmp_path / "e.ckpt").unlink()
        read_taming(tmp_path)
    save_dalle(dalle, tmp_path, zipped=True)
    (tmp_path / "decoder.pkl").write_bytes((tmp_path / "encoder.pkl").read_bytes())
    with pytest.raises(ValueError, match=r"decoder\.pkl"):
        read_dalle(tmp_path)
    with pytest.raises(ValueError, match="format must be one of dalle, taming"):
        ImportTokenizerConfig(source="a", format="onnx")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        ImportTokenizerConfig(source="a", format="dalle", sha256="abc")
    with pytest.raises(ValueError, match="two files"):
        import_tokenizer(ImportTokenizerConfig(source="a", format="taming", decoder_sha256="0" * 64), tmp_path)
