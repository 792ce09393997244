"""Loading and saving: the published layout, bases with projector or LoRA, quantisation, what damaged folders say."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from conftest import TINY, prompt_for, random_pixels
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2Config, Qwen2ForCausalLM

import videoxl
from videoxl.errors import CheckpointError, ConfigError, VideoXLError
from videoxl.model.loading import load_pretrained_model
from videoxl.model.modeling import LlavaQwenForCausalLM

NEW = {"max_new_tokens": 4, "do_sample": False}


def load(folder, base=None, **kwargs):
    return load_pretrained_model(folder, base, "llava_qwen", device_map="cpu", **kwargs)


@pytest.fixture
def copy(tmp_path):
    """The bundled checkpoint, to be damaged."""
    return shutil.copytree(TINY, tmp_path / "checkpoint")


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder):
    model = load(folder)[1]
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="400KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_the_loader_returns_what_the_quick_start_takes():
    tokenizer, model, processor, context = load(TINY)
    assert not model.training and model.dtype == torch.float32 and context == 32768
    assert model.config._attn_implementation == "sdpa"
    assert processor.size == {"shortest_edge": 336} and tokenizer("<|im_end|>").input_ids == [258]


def test_auto_classes_know_the_architecture():
    assert isinstance(AutoConfig.from_pretrained(TINY), videoxl.VideoXLConfig)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        assert isinstance(auto.from_pretrained(TINY), LlavaQwenForCausalLM)


def test_saving_writes_the_published_layout_and_loads_equal_to_the_bit(golden, tmp_path):
    _, model, _, _ = load(golden / "tiny")
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    published = load_file(golden / "tiny" / "model.safetensors")
    assert set(stored) == set(published)
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llava_qwen", ["LlavaQwenForCausalLM"])
    shutil.copytree(golden / "tiny-clip", tmp_path / "tiny-clip")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(golden / "tiny" / name, tmp_path / "saved")
    again = load(tmp_path / "saved")[1]
    for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters()):
        assert torch.equal(one, other), name
        assert torch.equal(one, published[name]), name


def test_a_sharded_checkpoint_loads_and_a_missing_shard_is_named(copy):
    reference = dict(load(TINY)[1].named_parameters())
    shards = shard(copy)
    assert all(torch.equal(reference[name], value) for name, value in load(copy)[1].named_parameters())
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load(copy)


def test_tied_embeddings_need_no_lm_head(copy, tmp_path):
    edit_config(copy, tie_word_embeddings=True)
    edit_weights(copy, lambda weights: weights.pop("lm_head.weight"))
    model = load(copy)[1]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_missing_beacon_weights_start_as_copies(copy):
    def drop(weights):
        for name in [name for name in weights if "beacon_" in name]:
            del weights[name]

    edit_weights(copy, drop)
    model = load(copy)[1]
    for layer in model.model.layers:
        for name in "qkv":
            own, twin = (getattr(layer.self_attn, f"{kind}{name}_proj") for kind in ("beacon_", ""))
            assert torch.equal(own.weight, twin.weight) and torch.equal(own.bias, twin.bias)
    eos = model.config.eos_token_id
    assert torch.equal(model.model.beacon_embed_tokens.weight[0], model.model.embed_tokens.weight[eos])


def index_of(folder, **names):
    """An index whose weights lie in the files of these names."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "whole.safetensors")
    content = {"weight_map": dict.fromkeys(weights, "whole.safetensors") | names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def replaced(folder, name, make):
    (folder / name).unlink()
    make(folder / name)


def some_beacons_missing(weights):
    for name in [name for name in weights if "beacon_k_proj" in name][1:]:
        del weights[name]


def no_tokenizer(folder):
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
                "post_processor": None, "decoder": None, "truncation": None, "padding": None,
                "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2}, "unk_token": "a"},
            }
        )
    )  # fmt: skip


def preprocessor(**values):
    """A damage: other values in `preprocessor_config.json`."""

    def damage(folder):
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


HUGE = 1 << 63
REFUSED = [
    (preprocessor(crop_size="large"), "the size is large; it must be"),
    (preprocessor(crop_size=[3]), "the size is"),
    (preprocessor(crop_size=224), "gives pictures of 224 pixels; the vision tower reads 336"),
    (preprocessor(image_mean=[0.5, 0.5]), "image_mean is .*; it must be three numbers"),
    (preprocessor(image_mean=[0.5, 0.5, float("nan")]), "image_mean is"),
    (preprocessor(image_std=[0.5, 0.5, 0]), "above 0"),
    (
        lambda folder: edit_weights(folder, some_beacons_missing),
        "lacks 5 of its 19 .* or none .*: .*beacon_k_proj",
    ),
    (
        lambda folder: edit_weights(folder, lambda w: w.pop("model.beacon_embed_tokens.weight")),
        "or none .*: model.beacon_embed_tokens.weight",
    ),
    (
        lambda folder: edit_weights(folder, lambda w: w.update({"model.norm.weight": w["model.norm.weight"].int()})),
        "model.norm.weight holds I32",
    ),
    (lambda folder: edit_config(folder, num_hidden_layers=HUGE), f"num_hidden_layers is {HUGE}; it must be 1 to 4,096"),
    (lambda folder: edit_config(folder, num_hidden_layers=4000), "num_hidden_layers.* .4000. must be equal"),
    (lambda folder: edit_config(folder, hidden_size=100_000), "hidden_size is 100000, and the weights have 96"),
    (lambda folder: edit_config(folder, vocab_size=-1), "vocab_size is -1"),
    (lambda folder: edit_config(folder, vocab_size="many"), "vocab_size is many"),
    (lambda folder: edit_config(folder, vocab_size=1 << 23), "vocab_size is 8388608, and the weights have"),
    (lambda folder: edit_config(folder, beacon_window=1e9), r"beacon_window is 1000000000\.0"),
    (lambda folder: edit_config(folder, mm_vision_config={"hidden_size": HUGE}), "mm_vision_config.hidden_size"),
    (
        lambda folder: edit_config(folder, mm_vision_config={"hidden_size": 1 << 17, "num_hidden_layers": 4096}),
        "mm_vision_config asks for",
    ),
    (lambda folder: edit_config(folder, mm_vision_config={"model_type": "siglip_vision_model"}), "siglip_vision_model"),
    (lambda folder: (folder / "config.json").write_text("[1]"), "holds a list"),
    (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not valid JSON"),
    (lambda folder: replaced(folder, "config.json", lambda path: os.mkfifo(path)), "no regular file"),
    (lambda folder: replaced(folder, "config.json", lambda path: path.symlink_to(path)), "config.json"),
    (lambda folder: replaced(folder, "model.safetensors", lambda path: os.mkfifo(path)), "no regular file"),
    (lambda folder: replaced(folder, "model.safetensors", lambda path: path.mkdir()), "no regular file"),
    (lambda folder: index_of(folder, a="../elsewhere.safetensors"), r"'\.\./elsewhere.safetensors', which is no file"),
    (lambda folder: index_of(folder, a="/etc/passwd"), "'/etc/passwd', which is no file"),
    (lambda folder: index_of(folder, a=".."), "'..', which is no file"),
    (lambda folder: index_of(folder, a=3), "no object of file names"),
    (lambda folder: index_of(folder, a="other.safetensors"), "other.safetensors: No such file"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 400), "its header has"),
    (no_tokenizer, "has 6 tokens for a vocabulary of 320 and gives"),
    (
        lambda folder: edit_config(folder, mm_vision_config=None, mm_vision_tower="google/siglip-base"),
        "vision tower 'google/siglip-base'",
    ),
]


@pytest.mark.parametrize(("damage", "said"), REFUSED)
def test_what_cannot_be_a_checkpoint_is_refused_in_one_line(copy, damage, said, monkeypatch):
    def look_up(*args, **kwargs):
        raise AssertionError("nothing is looked up on a hub")

    monkeypatch.setattr("huggingface_hub.file_download._get_metadata_or_catch_error", look_up)
    damage(copy)
    with pytest.raises(VideoXLError, match=said) as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def test_a_new_kind_of_beacon_weights_may_be_missing(copy):
    """A checkpoint without `o` in `beacon_param` starts a training with it."""
    config = videoxl.VideoXLConfig.from_pretrained(copy)
    config.beacon_param = ["q", "k", "v", "o"]
    model = LlavaQwenForCausalLM.from_pretrained(copy, config=config)
    layer = model.model.layers[0].self_attn
    assert torch.equal(layer.beacon_o_proj.weight, layer.o_proj.weight)


def test_code_beside_a_tokenizer_is_not_run_nor_asked_about(copy, monkeypatch):
    path = copy / "tokenizer_config.json"
    stored = json.loads(path.read_text())
    stored |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}}
    path.write_text(json.dumps(stored))
    mark, asked = copy / "it-was-run", []
    (copy / "mine.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Mine: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    said = None
    try:
        load(copy)  # another tokenizer may be taken in its place
    except CheckpointError as error:
        said = str(error)
    assert said is None or "\n" not in said
    assert not mark.exists() and not asked


def test_a_given_configuration_stands_for_the_folders(copy):
    config = videoxl.VideoXLConfig.from_pretrained(copy)
    edit_config(copy, vocab_size=100)
    assert load(copy, overwrite_config={"vocab_size": config.vocab_size})[1].vocab_size == config.vocab_size
    (copy / "config.json").unlink()
    assert load(copy, customized_config=config)[1].vocab_size == config.vocab_size


@pytest.mark.parametrize("bits", [4, 8])
def test_saved_quantised_weights_load_again(copy, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    model = load(copy, **{f"load_{bits}bit": True})[1]
    model.save_pretrained(tmp_path / "small")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(TINY / name, tmp_path / "small")
    again = load(tmp_path / "small", verify=True)[1]
    assert again.config.quantization_config is not None


def test_an_index_that_was_left_behind_does_not_count(copy):
    model = load(copy)[1]
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="400KB")
    model.save_pretrained(copy)
    again = load(copy, verify=True)[1]
    assert torch.equal(again.model.norm.weight, model.model.norm.weight)


def test_a_flipped_bit_of_the_weights_is_named(copy):
    with pytest.raises(CheckpointError, match=r"no checksums\.json"):
        load(copy, verify=True)
    _, model, _, _ = load(copy)
    with pytest.warns(UserWarning, match=r"model\.safetensors was there before"):
        model.save_pretrained(copy, max_shard_size="400KB")  # each loader would take the old single file
    load(copy, verify=True)
    path = sorted(copy.glob("model-*.safetensors"))[1]
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 4
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=rf"{path.name}: model\.\S+ is not what was saved"):
        load(copy, verify=True)
    (copy / "checksums.json").write_text('{"files": 3}')
    with pytest.raises(CheckpointError, match="no checksums"):
        load(copy, verify=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: shutil.rmtree(folder), "no such checkpoint folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: edit_config(folder, model_type="llama"), "'llama' model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x10" * 400), "cannot load"),
        (lambda folder: (folder / "vocab.json").unlink(), "cannot load"),
        (lambda folder: edit_weights(folder, lambda w: w.pop("model.norm.weight")), "1 missing: model.norm.weight"),
        (lambda folder: edit_weights(folder, lambda w: w.pop("model.mm_projector.0.bias")), "mm_projector.0.bias"),
        (lambda folder: edit_weights(folder, lambda w: w.update(odd=torch.ones(1))), "1 unexpected: odd"),
        (
            lambda folder: edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(5)})),
            r"another shape: model.norm.weight \(checkpoint \[5\], model \[96\]\)",
        ),
        (lambda folder: edit_config(folder, beacon_attn="step-expansion"), "'full-coverage'"),
        (
            lambda folder: edit_config(folder, mm_vision_config=None, mm_vision_tower="/data/no/tower"),
            "vision tower '/data/no/tower'",
        ),
    ],
)
def test_damaged_checkpoints_are_named(copy, damage, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage(copy)
    with pytest.raises(VideoXLError, match=said):
        load(copy)


def test_the_tower_is_found_by_path_beside_the_checkpoint_and_by_name(golden, tmp_path):
    from videoxl.model.configuration import VideoXLConfig
    from videoxl.model.towers import resolve_vision_config

    config = VideoXLConfig(mm_vision_tower=str(golden / "tiny-clip"))
    assert resolve_vision_config(config).hidden_size == 32
    config = VideoXLConfig.from_pretrained(golden / "tiny")
    assert config.mm_vision_tower == "tiny-clip"
    assert resolve_vision_config(config, golden / "tiny").hidden_size == 32
    for name in ("openai/clip-vit-large-patch14-336", "/share/somebody/clip-vit-large-patch14-336"):
        known = resolve_vision_config(VideoXLConfig(mm_vision_tower=name))
        assert (known.hidden_size, known.num_hidden_layers, known.image_size) == (1024, 24, 336)


def plain_base(folder, model):
    """A plain Qwen2 checkpoint with the decoder's weights and the tokenizer of the bundled model."""
    keys = set(Qwen2Config().to_dict()) - {"model_type", "architectures"}
    config = Qwen2Config(**{key: value for key, value in model.config.to_dict().items() if key in keys})
    qwen = Qwen2ForCausalLM(config)
    qwen.load_state_dict({key: value for key, value in model.state_dict().items() if key in qwen.state_dict()})
    qwen.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return folder


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_base_with_a_projector_file(tmp_path, suffix):
    _, model, _, _ = load(TINY)
    base = plain_base(tmp_path / "base", model)
    tower = model.model.vision_tower.vision_tower.vision_model
    tower.save_pretrained(tmp_path / "stage1" / "tiny-clip")
    projector = {f"model.mm_projector.{k}": v for k, v in model.model.mm_projector.state_dict().items()}
    if suffix == "bin":
        torch.save(projector, tmp_path / "stage1" / "mm_projector.bin")
    else:
        save_file(projector, tmp_path / "stage1" / "mm_projector.safetensors")
    config = json.loads((TINY / "config.json").read_text())
    config.pop("mm_vision_config")
    (tmp_path / "stage1" / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path / "stage1", tmp_path / "base")
    model.copy_missing_beacon_weights({name for name, _ in model.named_parameters() if "beacon_" in name})
    for (name, one), (_, other) in zip(model.named_parameters(), loaded[1].named_parameters()):
        assert torch.equal(one, other), name
    (tmp_path / "stage1" / f"mm_projector.{suffix}").unlink()
    with pytest.raises(CheckpointError, match="neither mm_projector"):
        load(tmp_path / "stage1", base)


def test_a_projector_file_with_code_in_it_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("run",))

    shutil.copytree(TINY, tmp_path / "stage1")
    (tmp_path / "stage1" / "model.safetensors").unlink()
    torch.save({"model.mm_projector.0.weight": Harmful()}, tmp_path / "stage1" / "mm_projector.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        load(tmp_path / "stage1", TINY)


def test_a_lora_folder_is_merged(tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer, model, _, _ = load(TINY)
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(r=4, target_modules=r".*layers\.\d+\.self_attn\.(beacon_)?[qv]_proj", init_lora_weights=False),
    ).eval()
    with torch.no_grad():
        model.model.mm_projector[0].weight.mul_(1.5)
    _, ids = prompt_for(tokenizer)
    video = {"images": [random_pixels(11)], "modalities": ["video"]}
    with torch.no_grad():
        expected = adapted(ids, **video).logits
    adapted.save_pretrained(tmp_path / "lora")
    save_file(
        {"base_model.model.model.mm_projector.0.weight": model.model.mm_projector[0].weight.detach().clone()},
        tmp_path / "lora" / "non_lora_trainables.safetensors",
    )
    shutil.copy(TINY / "config.json", tmp_path / "lora")
    merged = load(tmp_path / "lora", TINY)[1]
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(merged(ids, **video).logits, expected, atol=1e-4, rtol=1e-4)
        assert (load(TINY)[1](ids, **video).logits - expected).abs().max() > 1e-2


def test_flash_attention_falls_back_with_one_notice():
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed")
    with pytest.warns(UserWarning, match="flash-attn is not installed") as notices:
        model = load(TINY, attn_implementation="flash_attention_2")[1]
    assert model.config._attn_implementation == "sdpa"
    assert len([notice for notice in notices if "flash-attn" in str(notice.message)]) == 1


def test_dtype_and_configuration_can_be_set():
    assert load(TINY, torch_dtype=torch.bfloat16)[1].dtype == torch.bfloat16
    assert load(TINY, torch_dtype="float16")[1].dtype == torch.float16
    assert load(TINY, overwrite_config={"beacon_ratio": [4]})[1].config.beacon_ratio == [4]
    with pytest.raises(ConfigError, match="float99"):
        load(TINY, torch_dtype="float99")
    custom = videoxl.VideoXLConfig.from_pretrained(TINY)
    custom.beacon_ratio = [16]
    assert load(TINY, customized_config=custom, multimodal=True)[1].config.beacon_ratio == [16]


@pytest.mark.parametrize("bits", ["load_4bit", "load_8bit"])
def test_quantised_weights_answer(golden, bits):
    """On the recorded checkpoint: its widths are multiples of 64, as bitsandbytes' blocks need on the CPU."""
    pytest.importorskip("bitsandbytes")
    tokenizer, model, _, _ = load(golden / "tiny", **{bits: True})
    kinds = {type(layer.self_attn.beacon_q_proj).__name__ for layer in model.model.layers}
    assert type(model.model.mm_projector[0]) is type(model.lm_head) is torch.nn.Linear
    assert kinds == {"Linear4bit" if bits == "load_4bit" else "Linear8bitLt"}
    _, ids = prompt_for(tokenizer)
    output = model.generate(ids, images=[random_pixels(11)], modalities=["video"], **NEW)
    assert output.shape[1] == ids.shape[1] - 1 + 11 * 144 + 4
    memory = videoxl.VideoMemory.start(model, [1])
    assert memory.fingerprint["quantization"] == "bitsandbytes"
