#!/usr/bin/env python3
"""Perplexity of a Llama checkpoint on given tokens, and its divergence from another one's predictions. numpy alone.

    llama_forward.py MODEL_DIR TOKENS.npy [REFERENCE_DIR]

TOKENS.npy: integers [sequences, length]. Each sequence is scored alone, from an empty context: length - 1 predictions. Prints
JSON: the perplexity with its standard error over sequences; with a reference also KL(reference || model) a prediction, nats.

Float32 arithmetic whatever the stored type. Llama's layout without biases and with plain rotary embeddings; anything else is
refused. Sliced models (sliced_size in config.json, as modelstore derive makes them) are known. A model is any mapping from
names to arrays, so that a changed one needs no file.
"""
import json
import pathlib
import sys

import numpy as np

TOGETHER = 4  # sequences in one matrix product


class Unsupported(Exception):
    """A model that this forward pass would get wrong."""


class Checkpoint:
    """The tensors of a folder with safetensors files, in float32, read when they are asked for."""

    def __init__(self, folder):
        self.folder, self.places = pathlib.Path(folder), {}
        index = self.folder / "model.safetensors.index.json"
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ["model.safetensors"]
        for name in names:
            with open(self.folder / name, "rb") as file:
                size = int.from_bytes(file.read(8), "little")
                for tensor, at in json.loads(file.read(size)).items():
                    if tensor != "__metadata__":
                        self.places[tensor] = (name, 8 + size, at)

    def keys(self):
        return self.places.keys()

    def dtype(self, name):
        return self.places[name][2]["dtype"]

    def shape(self, name):
        return tuple(self.places[name][2]["shape"])

    def __getitem__(self, name):
        file, start, at = self.places[name]
        begin, end = at["data_offsets"]
        data = np.fromfile(self.folder / file, np.uint8, end - begin, offset=start + begin)
        if at["dtype"] == "BF16":
            values = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        elif at["dtype"] in ("F16", "F32"):
            values = data.view({"F16": "<f2", "F32": "<f4"}[at["dtype"]]).astype(np.float32)
        else:
            raise Unsupported(f"{name}: dtype {at['dtype']}; expected BF16, F16 or F32")
        return values.reshape(at["shape"])


class Llama:
    """The forward pass of a configuration; the weights come with each call."""

    EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

    def __init__(self, folder):
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if config.get("model_type") != "llama" or config.get("hidden_act", "silu") != "silu" or \
                config.get("attention_bias") or config.get("mlp_bias") or \
                rope.get("rope_type", rope.get("type", "default")) != "default":
            raise Unsupported(f"{folder}: expected a Llama without biases and without scaled rotary embeddings")
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.kv_heads = config.get("num_key_value_heads") or self.heads
        self.width = config.get("head_dim") or config["hidden_size"] // self.heads
        self.sliced, self.hidden_size = "sliced_size" in config, config["hidden_size"]
        self.epsilon = np.float32(config["rms_norm_eps"])
        self.theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000)

    def head(self, weights):
        return weights[self.HEAD] if self.HEAD in weights.keys() else weights[self.EMBEDDING]

    def hidden(self, weights, tokens):
        """What the head gets, [sequences, length - 1, hidden]: all positions but the last."""
        states = weights[self.EMBEDDING][tokens]
        turns = self.turns(tokens.shape[1])
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            part = {name: weights[f"{prefix}{module}.{name}_proj.weight"]
                    for module, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))) for name in names}
            before = after = attn_shortcut = mlp_shortcut = None
            if self.sliced:
                attn_shortcut, mlp_shortcut = (weights[f"{prefix}{name}_shortcut.weight"] for name in ("attn", "mlp"))
                wider = np.empty(states.shape[:2] + (len(mlp_shortcut),), np.float32)
            else:
                before, after = (weights[f"{prefix}{name}_layernorm.weight"] for name in ("input", "post_attention"))
            for at in range(0, len(states), TOGETHER):
                x = states[at:at + TOGETHER]  # a view: added to in place
                read = self.normed(x, before)
                if self.sliced:
                    x = x @ attn_shortcut.T
                x += self.attention(read, part, turns)
                y = self.normed(x, after)
                gate = y @ part["gate"].T
                with np.errstate(over="ignore"):  # exp(-gate) = inf gives 0, the limit
                    gate /= 1 + np.exp(-gate)
                y = (gate * (y @ part["up"].T)) @ part["down"].T
                if self.sliced:
                    wider[at:at + TOGETHER] = x @ mlp_shortcut.T + y
                else:
                    x += y
            if self.sliced:
                states = wider
        return self.normed(states, weights["model.norm.weight"])[:, :-1]

    def normed(self, x, weight):
        x = x / np.sqrt(np.square(x).sum(-1, keepdims=True) / self.hidden_size + self.epsilon)
        return x if weight is None else x * weight

    def turns(self, length):
        angles = np.outer(np.arange(length), self.theta ** (-np.arange(0, self.width, 2) / self.width))
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def attention(self, x, part, turns):
        count, length, _ = x.shape

        def by_head(y, heads, turned):
            y = y.reshape(count, length, heads, self.width).transpose(0, 2, 1, 3)
            if turned:  # dimension j turns with j + width / 2
                (cos, sin), (a, b) = turns, np.split(y, 2, -1)
                y = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
            return y

        query = by_head(x @ part["q"].T, self.heads, True) / np.float32(np.sqrt(self.width))
        key = by_head(x @ part["k"].T, self.kv_heads, True)
        value = by_head(x @ part["v"].T, self.kv_heads, False)
        future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        out = np.empty_like(query)
        for head in range(self.heads):
            shared = head * self.kv_heads // self.heads
            score = query[:, head] @ key[:, shared].swapaxes(1, 2) + future
            score = np.exp(score - score.max(-1, keepdims=True))
            out[:, head] = score @ value[:, shared] / score.sum(-1, keepdims=True)
        return out.transpose(0, 2, 1, 3).reshape(count, length, -1) @ part["o"].T


def log_softmax(hidden, head):
    logits = hidden @ head.T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, dtype=np.float64, keepdims=True)).astype(np.float32)


class Reference:
    """A model whose predictions others are compared with: its hidden states are kept, which are small, and its
    probabilities computed again from them."""

    def __init__(self, llama, weights, tokens):
        self.llama, self.tokens = llama, tokens
        self.states, self.head = llama.hidden(weights, tokens), llama.head(weights)

    def compare(self, weights):
        """(negative log likelihoods [sequences, length - 1], KL [sequences, length - 1]) of another model."""
        return score(self.llama, weights, self.tokens, self)


def score(llama, weights, tokens, reference=None):
    states, head = llama.hidden(weights, tokens), llama.head(weights)
    likelihoods = np.empty(states.shape[:2])
    divergence = np.zeros_like(likelihoods)
    for number, one in enumerate(states):
        log_q = log_softmax(one, head)
        likelihoods[number] = -np.take_along_axis(log_q, tokens[number, 1:, None].astype(np.int64), 1)[:, 0]
        if reference:
            log_p = log_softmax(reference.states[number], reference.head)
            divergence[number] = (np.exp(log_p) * (log_p - log_q)).sum(-1, dtype=np.float64)
    return likelihoods, divergence


def perplexity(likelihoods):
    return float(np.exp(likelihoods.mean()))


def gain_kept(base, finetune, candidate):
    """The share of the finetune's gain in perplexity that a candidate keeps."""
    b, f, c = map(perplexity, (base, finetune, candidate))
    return (b - c) / (b - f)


def with_error(value, *scores):
    """value(*scores) and its standard error, a jackknife over sequences: what the scores share cancels."""
    count = len(scores[0])
    parts = np.array([value(*(np.delete(s, at, 0) for s in scores)) for at in range(count)])
    return value(*scores), float(np.sqrt((count - 1) / count * np.square(parts - parts.mean()).sum()))


def load_tokens(path):
    tokens = np.load(path)
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise Unsupported(f"{path}: expected integers [sequences, length]")
    return tokens.astype(np.int64)


def main(arguments):
    if len(arguments) not in (2, 3):
        raise SystemExit(__doc__)
    llama, tokens = Llama(arguments[0]), load_tokens(arguments[1])
    reference = Reference(llama, Checkpoint(arguments[2]), tokens) if len(arguments) == 3 else None
    likelihoods, divergence = score(llama, Checkpoint(arguments[0]), tokens, reference)
    value, error = with_error(perplexity, likelihoods)
    result = {"perplexity": round(value, 4), "standard_error": round(error, 4)}
    if reference:
        result["kl_nats"] = round(float(divergence.mean()), 6)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
