"""Models for reference_test.py: safetensors files with what a codec may get wrong, from fixed random numbers."""
import json
import struct

import numpy as np

BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64}
MANTISSA = {"F8_E4M3": 3, "F8_E5M2": 2, "F16": 10, "BF16": 7, "F32": 23, "F64": 52}
UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
HIDDEN, INNER, HEADS, VOCABULARY, LAYERS = 64, 96, 4, 150, 3


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, array of that content)"""
    header, at = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + content.nbytes]}
        at += content.nbytes
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    body = b"".join(content.tobytes() for _, _, content in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def patterns(values, dtype):
    """float64 values as patterns of dtype, cut off."""
    if dtype in ("F32", "F64"):
        return values.astype(np.float32 if dtype == "F32" else np.float64).view(UINT[BITS[dtype]])
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        half = values.astype(np.float16).view(np.uint16)
    if dtype == "F16":
        return half
    if dtype == "F8_E5M2":
        return (half >> 8).astype(np.uint8)
    magnitude = ((half & 0x7fff) >> 7).astype(np.int64) - 64  # the exponent's bias is 7 instead of 15
    return (np.clip(magnitude, 0, 0x7e) | (half >> 15) << 7).astype(np.uint8)


def special(random, count, dtype):
    """Patterns of any bits, one in three NaN or infinity."""
    x = np.frombuffer(random.bytes(8 * count), np.uint64)
    exponent = np.uint64(((1 << BITS[dtype] - 1) - 1) >> MANTISSA[dtype] << MANTISSA[dtype])
    x = x >> np.uint64(64 - BITS[dtype])
    return np.where(random.random(count) < 0.3, x | exponent, x).astype(UINT[BITS[dtype]])


def write_cross_dtypes(folder):
    """The same numbers in every dtype, with NaN of all kinds, infinities, ties and subnormals at fixed places."""
    random = np.random.default_rng(1)
    values = random.normal(0, 0.05, 70000) * np.exp(random.normal(0, 2, 70000))
    tied = random.choice(70000, 4000, replace=False)
    values[tied] = np.round(values[tied] * 2**12) / 2**12 * (1 + 2.0**-9)
    edges = random.choice(70000, 300, replace=False)
    large = [448, 464, 465, 57344, 61440, 65504, 65519.9, 65520, 1e6, 3.4e38, -464, -65520, -0.0]
    values[edges] = random.choice(large, 300)
    tiny = random.choice(70000, 2000, replace=False)
    values[tiny] = random.normal(0, 1, 2000) * 10.0**random.integers(-45, -1, 2000)
    places = random.choice(70000, 1000, replace=False)
    for dtype in BITS:
        content = patterns(np.clip(values, -3e38, 3e38), dtype).copy()
        content[places] = special(random, len(places), dtype)
        write_safetensors(folder / dtype / "model.safetensors", {"x": (dtype, [70000], content)})
    return list(BITS)


def write_sizes(folder):
    """A base and a finetune with tensors of many sizes, besides other types and files."""
    random = np.random.default_rng(2)
    base, finetune = {}, {}
    for dtype in BITS:
        for count in (1, 31, 32, 33, 511, 513, 8191, 8192, 9217, 65537, 140000):
            values = random.normal(0, 0.05, count)
            moved = values + random.normal(0, 0.0005, count) * (random.random(count) < 0.7)
            base[f"{dtype}.{count}"] = (dtype, [count], patterns(values, dtype))
            finetune[f"{dtype}.{count}"] = (dtype, [count], patterns(moved, dtype))
        base[f"{dtype}.noise"] = (dtype, [9000], special(random, 9000, dtype))
    for dtype, kind in (("U8", np.uint8), ("I16", np.int16), ("I32", np.int32), ("U64", np.uint64), ("BOOL", np.uint8)):
        base[dtype] = (dtype, [40, 500], random.integers(0, 2, 20000).astype(kind))
    words = patterns(random.normal(0, 1, 200000), "BF16")
    base["even"] = ("BF16", [200000], words & np.uint16(0xfffe))
    base["f32.of.bf16"] = ("F32", [200000], words.astype(np.uint32) << 16)
    base["f32.of.words"] = ("F32", [70000], random.integers(0, 1 << 16, 70000).astype(np.uint32) << 16)
    base["none"], base["scalar"] = ("F32", [0, 4], np.zeros(0)), ("F64", [], np.ones(1))
    write_safetensors(folder / "sizes" / "model.safetensors", base)
    write_safetensors(folder / "sizes-ft" / "model.safetensors", finetune)
    many = {}
    for i in range(500):
        many[f"layer.{i}"] = ("BF16", [3, i % 40 + 1], patterns(random.normal(0, 1, 3 * (i % 40 + 1)), "BF16"))
    write_safetensors(folder / "many" / "model.safetensors", many)
    (folder / "files" / "sub").mkdir(parents=True)
    files = {"empty": b"", "one": b"x", "text": b"text\n" * 90000, "sub/random": random.bytes(300001)}
    for name, content in files.items():
        (folder / "files" / name).write_bytes(content)
    (folder / "files" / "tail.safetensors").write_bytes((folder / "many" / "model.safetensors").read_bytes() + b"tail")
    return ["sizes", "sizes-ft", "many", "files"]


def write_networks(folder):
    """A base and a finetune for compact pushes, in all dtypes, with rows that stay and tensors without a base."""
    base, finetune = {}, {}
    random = np.random.default_rng(3)
    for dtype in BITS:
        for rows, columns in ((256, 200), (100, 77), (40, 1000)):
            values = random.normal(0, 0.05, (rows, columns)) * np.exp(random.normal(0, 1, (rows, 1)))
            values[random.random((rows, columns)) < 0.01] = -0.0
            moved = random.normal(0, 1, (rows, 4)) @ random.normal(0, 1, (4, columns)) * 0.003
            moved += random.normal(0, 0.002, (rows, columns)) * (random.random((rows, columns)) < 0.3)
            moved[::2] *= rows != 40
            base[f"{dtype}.{rows}"] = (dtype, [rows, columns], patterns(values.ravel(), dtype))
            finetune[f"{dtype}.{rows}"] = (dtype, [rows, columns], patterns((values + moved).ravel(), dtype))
        norm = random.normal(1, 0.1, HIDDEN)
        base[f"{dtype}.norm"] = (dtype, [HIDDEN], patterns(norm, dtype))
        finetune[f"{dtype}.norm"] = (dtype, [HIDDEN], patterns(norm * 1.01, dtype))
        finetune[f"{dtype}.new"] = (dtype, [HIDDEN], patterns(norm * 1.02, dtype))
    write_safetensors(folder / "network" / "model.safetensors", base)
    write_safetensors(folder / "network-ft" / "model.safetensors", finetune)


def write_llama(folder, name, dtype):
    """A small Llama."""
    random = np.random.default_rng(4)
    tensors = {}

    def add(name, *shape, around=0.0):
        tensors[name] = (dtype, list(shape), patterns(random.normal(around, 0.1, shape).ravel(), dtype))

    add("model.embed_tokens.weight", VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        for part in "qkvo":
            add(f"model.layers.{layer}.self_attn.{part}_proj.weight", HIDDEN, HIDDEN)
        for part, rows, columns in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
            add(f"model.layers.{layer}.mlp.{part}_proj.weight", rows, columns)
        add(f"model.layers.{layer}.input_layernorm.weight", HIDDEN, around=1)
        add(f"model.layers.{layer}.post_attention_layernorm.weight", HIDDEN, around=1)
    add("model.norm.weight", HIDDEN, around=1)
    add("lm_head.weight", VOCABULARY, HIDDEN)
    write_safetensors(folder / name / "model.safetensors", tensors)
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=HIDDEN, intermediate_size=INNER,
                  vocab_size=VOCABULARY, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
                  rms_norm_eps=1e-5, hidden_act="silu", max_position_embeddings=64, tie_word_embeddings=False)
    (folder / name / "config.json").write_text(json.dumps(config))
    return tensors


def write_moments(path, tensors):
    """Moments of such a Llama (docs/moments.md): any will do, but those that share an input have the same."""
    random = np.random.default_rng(5)
    moments, known = {}, {}
    for name, (_, shape, _) in tensors.items():
        if len(shape) == 2 and "embed" not in name:
            layer, _, part = name.partition("layers.")[2].partition(".")
            source = (layer, part if "o_proj" in part or "down" in part else part.split(".")[0])
            if source not in known:
                x = random.normal(0, 1, (300, shape[1])) * np.exp(-np.arange(shape[1]) / 20)
                known[source] = (x.T @ x / 300).astype(np.float32)
            moments[name] = ("F32", [shape[1]] * 2, known[source])
    rows = np.full((VOCABULARY, 2), 1 / VOCABULARY, np.float32)
    moments["model.embed_tokens.weight.rows"] = ("F32", [VOCABULARY, 2], rows)
    write_safetensors(path, moments)
